"""Methods that learn from single responses, each labeled desirable or undesirable.

h = log π_θ(y|x) − log π_ref(y|x); D(z) = −log σ(z); λ is the weight of the response's label (options
``desirable_weight`` and ``undesirable_weight``). The loss of a batch is the mean over its responses.
"""

from grape_rl.maths.preference import apo_zero_unpaired, bco_unpaired, kto
from grape_rl.methods import LossTerm, Method
from grape_rl.sources.labels import Labels
from grape_rl.training.labels import label_gradient
from grape_rl.training.objective import TermFunction


def _method(name: str, summary: str, equation: str, paper: str, loss: TermFunction) -> Method:
    """A method with the given loss on labeled responses."""
    return Method(
        name, summary, equation, paper, Labels(), (LossTerm(loss),), reduction=None, update=label_gradient
    )  # fmt: skip


LABEL_METHODS = (
    _method(
        "kto", "The prospect-theory value of single responses, relative to a reference point.",
        "L = λ (1 − σ(±β (h − z))),  + if desirable, − if not;  z = max(0, mean h with mismatched prompts)",
        "KTO, arXiv 2402.01306", kto,
    ),
    _method(
        "bco_unpaired", "A classifier of responses whose logit is the implied reward less its running mean.",
        "L = λ D(±β (h − running mean of h)),  + if desirable, − if not", "BCO, arXiv 2404.04656", bco_unpaired,
    ),
    _method(
        "apo_zero_unpaired", "KTO's loss with the reference point z = 0.",
        "L = λ (1 − σ(±β h)),  + if desirable, − if not", "APO, arXiv 2408.06266 (apo_zero on single responses)",
        apo_zero_unpaired,
    ),
)  # fmt: skip
