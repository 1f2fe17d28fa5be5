"""Optional penalty terms, each with a coefficient of 0 by default."""

from grape_rl.maths.penalty import advantage_weighted_entropy, entropy_bonus, reference_kl
from grape_rl.methods import LossTerm

PENALTIES = (
    LossTerm(reference_kl, 0.0, "kl"),
    LossTerm(entropy_bonus, 0.0, "entropy"),
    LossTerm(advantage_weighted_entropy, 0.0, "advantage_entropy"),
)
"""The KL to the reference and the two entropy terms, with the options that set their coefficients."""
