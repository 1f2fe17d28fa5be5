"""The methods that learn from pairs, on pairs of the model's own responses in place of the data's.

A reward takes the place of the person who prefers one: of each prompt's responses the best is chosen and the worst
rejected, or as the option ``pairing`` says. Each form has its offline row's loss, options and update.
"""

from dataclasses import replace

from grape_rl.maths.grape import unweighted
from grape_rl.maths.pairing import ranked_pairs
from grape_rl.methods import Method, Preferences, SampledPreferences
from grape_rl.table.mixture import MIXTURE
from grape_rl.table.preference import PREFERENCE

_PUBLISHED = ("dpo", "ipo", "slic")
"""The losses that Online AI Feedback was published with."""


def online(row: Method) -> Method:
    """The online form of a method that learns from pairs: ``online_NAME``.

    Raises:
        ValueError: the row's source is not pairs from data.
    """
    if not isinstance(row.source, Preferences):
        raise ValueError(f"{row.name} does not learn from pairs of data, so that it has no form on sampled pairs")
    reading = "" if row.name in _PUBLISHED else " (of this loss: our reading)"
    return replace(
        row,
        name=f"online_{row.name}",
        summary=f"The loss of {row.name} on pairs of the policy's own responses, ranked by their rewards.",
        equation=f"y_1 … y_G ~ π_θ(·|x);  w = argmax_i R_i, l = argmin_i R_i;  {row.equation}",
        paper=f"{row.paper}; on sampled pairs: Online AI Feedback, arXiv 2402.04792{reading}",
        source=SampledPreferences(ranked_pairs, unweighted),
        online_of=row.name,
    )


ONLINE = tuple(online(row) for row in (*PREFERENCE, *MIXTURE))
