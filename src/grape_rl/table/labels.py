"""The methods that learn from single responses, each labeled desirable or not, as their losses.

h = log π_θ(y|x) − log π_ref(y|x); D(z) = −log σ(z); λ is the weight of the response's label (options
``desirable_weight`` and ``undesirable_weight``). The plain mean over the responses of a batch is taken.
"""

from grape_rl.maths.preference import apo_zero_unpaired, bco_unpaired, kto
from grape_rl.methods import LossTerm, Method
from grape_rl.sources.labels import Labels
from grape_rl.training.labels import label_gradient
from grape_rl.training.objective import TermFunction


def _row(name: str, summary: str, equation: str, paper: str, loss: TermFunction) -> Method:
    return Method(
        name, summary, equation, paper, Labels(), (LossTerm(loss),), reduction=None, update=label_gradient
    )  # fmt: skip


LABELED = (
    _row(
        "kto", "Gains and losses as people weigh them: responses need no partner, only good or bad.",
        "L = λ (1 − σ(±β (h − z))),  + if desirable, − if not;  z = max(0, mean of h behind other prompts)",
        "KTO, arXiv 2402.01306", kto,
    ),
    _row(
        "bco_unpaired", "A classifier of good and bad whose logit is the implied reward less its running mean.",
        "L = λ D(±β (h − mean of h so far)),  + if desirable, − if not", "BCO, arXiv 2404.04656", bco_unpaired,
    ),
    _row(
        "apo_zero_unpaired", "Desirable responses up, undesirable ones down, with no point of reference to shift.",
        "L = λ (1 − σ(±β h)),  + if desirable, − if not", "APO, arXiv 2408.06266 (on single responses)",
        apo_zero_unpaired,
    ),
)  # fmt: skip
