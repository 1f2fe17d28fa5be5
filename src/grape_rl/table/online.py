"""Online forms of the preference methods: pairs of the policy's own responses instead of pairs from data.

A reward takes the place of the human label. By default the best response to a prompt is chosen and the worst is
rejected; the option ``pairing`` has other choices. Each form keeps the loss, options and update of its offline method.
"""

from dataclasses import replace

from grape_rl.maths.grape import unweighted
from grape_rl.maths.pairing import ranked_pairs
from grape_rl.methods import Method
from grape_rl.sources.preferences import Preferences
from grape_rl.sources.sampled_preferences import SampledPreferences
from grape_rl.table.mixture import MIXTURE_METHODS
from grape_rl.table.preference import PREFERENCE_METHODS

_PUBLISHED = ("dpo", "ipo", "slic")
"""Methods whose losses Online AI Feedback was published with."""
ONLINE_PAPER = "Online AI Feedback, arXiv 2402.04792"
"""Paper of the pairs; each method's loss has its own."""


def online_form(method: Method) -> Method:
    """The online form ``online_NAME`` of a method that learns from pairs in data.

    Raises:
        ValueError: the method's source is not pairs from data.
    """
    if method.source != Preferences():
        raise ValueError(f"{method.name} does not learn from pairs of data, so it has no online form")
    reading = "" if method.name in _PUBLISHED else " (with this loss: our reading)"
    return replace(
        method,
        name=f"online_{method.name}",
        summary=f"The loss of {method.name} on pairs of the policy's own responses, ranked by their rewards.",
        equation=f"y_1 … y_G ~ π_θ(·|x);  w = argmax_i R_i, l = argmin_i R_i;  {method.equation}",
        paper=f"{method.paper}; on sampled pairs: {ONLINE_PAPER}{reading}",
        source=SampledPreferences(ranked_pairs, unweighted),
        online_of=method.name,
    )


ONLINE_METHODS = tuple(online_form(method) for method in (*PREFERENCE_METHODS, *MIXTURE_METHODS))
