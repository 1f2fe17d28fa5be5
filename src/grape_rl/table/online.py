"""The methods that learn from pairs, on pairs of the model's own responses in place of the data's.

A reward takes the place of the person who prefers one: of each prompt's responses the best is chosen and the worst
rejected, or as the option ``pairing`` says. Each form has its offline row's loss, options and update.
"""

from dataclasses import replace

from grape_rl.maths.grape import unweighted
from grape_rl.maths.pairing import ranked_pairs
from grape_rl.methods import Method
from grape_rl.sources.preferences import Preferences
from grape_rl.sources.sampled_preferences import SampledPreferences
from grape_rl.table.mixture import MIXTURE
from grape_rl.table.preference import PREFERENCE

_PUBLISHED = ("dpo", "ipo", "slic")
"""The losses that Online AI Feedback was published with."""


def online(method: Method) -> Method:
    """The online form of a method that learns from pairs: ``online_NAME``.

    Raises:
        ValueError: the method does not learn from pairs of data.
    """
    if method.source != Preferences():
        raise ValueError(f"{method.name} does not learn from pairs of data, so it has no form on sampled pairs")
    reading = "" if method.name in _PUBLISHED else " (of this loss: our reading)"
    return replace(
        method,
        name=f"online_{method.name}",
        summary=f"The loss of {method.name} on pairs of the policy's own responses, ranked by their rewards.",
        equation=f"y_1 … y_G ~ π_θ(·|x);  w = argmax_i R_i, l = argmin_i R_i;  {method.equation}",
        paper=f"{method.paper}; on sampled pairs: Online AI Feedback, arXiv 2402.04792{reading}",
        source=SampledPreferences(ranked_pairs, unweighted),
        online_of=method.name,
    )


ONLINE = tuple(online(method) for method in (*PREFERENCE, *MIXTURE))
