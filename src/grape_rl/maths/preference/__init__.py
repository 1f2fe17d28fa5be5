"""Losses on pairs of responses, of which one was preferred: every one returns a loss per pair, to be minimised.

Their arguments name what they read: log-probs (summed, nats), lengths (tokens) and rewards of the chosen and of the
rejected response of each of p pairs.
"""

from grape_rl.maths.preference.free import chosen_nll, cpo, orpo, simpo, slic
from grape_rl.maths.preference.margin import (
    aot,
    cdpo,
    discopop,
    dpo,
    dpop,
    exo,
    f_dpo,
    hinge,
    ipo,
    ld_dpo,
    r_dpo,
    robust_dpo,
    sigmoid_norm,
)
from grape_rl.maths.preference.pointwise import apo_down, apo_zero, bco, cal_dpo, nca, sppo
from grape_rl.maths.preference.rewarded import odpo, rpo

__all__ = [
    "aot", "apo_down", "apo_zero", "bco", "cal_dpo", "cdpo", "chosen_nll", "cpo", "discopop", "dpo", "dpop", "exo",
    "f_dpo", "hinge", "ipo", "ld_dpo", "nca", "odpo", "orpo", "r_dpo", "robust_dpo", "rpo", "sigmoid_norm", "simpo",
    "slic", "sppo",
]  # fmt: skip
