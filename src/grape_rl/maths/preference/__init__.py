"""Preference losses: each returns one loss per pair of a chosen and a rejected response, to be minimized.

The arguments are fields of p pairs: log-probs (summed, in nats), lengths (tokens) and rewards of the chosen and the
rejected responses. The losses of ``unpaired`` are per response, labeled desirable or undesirable.
"""

from grape_rl.maths.preference.batch import aot, aot_unpaired, beta_dpo
from grape_rl.maths.preference.distribution import policy_weight, tdpo1, tdpo2, wpo
from grape_rl.maths.preference.label_noise import cdpo, exo, robust_dpo
from grape_rl.maths.preference.length import ipo, ld_dpo, r_dpo, sigmoid_norm
from grape_rl.maths.preference.margin import discopop, dpo, dpop, f_dpo, hinge
from grape_rl.maths.preference.pointwise import apo_down, apo_zero, bco, cal_dpo, nca, sppo
from grape_rl.maths.preference.reference_free import chosen_nll, cpo, orpo, simpo, slic
from grape_rl.maths.preference.rewarded import odpo, rpo
from grape_rl.maths.preference.unpaired import apo_zero_unpaired, bco_unpaired, kto

__all__ = [
    "aot", "aot_unpaired", "apo_down", "apo_zero", "apo_zero_unpaired", "bco", "bco_unpaired", "beta_dpo", "cal_dpo",
    "cdpo", "chosen_nll", "cpo", "discopop", "dpo", "dpop", "exo", "f_dpo", "hinge", "ipo", "kto", "ld_dpo", "nca",
    "odpo", "orpo", "policy_weight", "r_dpo", "robust_dpo", "rpo", "sigmoid_norm", "simpo", "slic", "sppo", "tdpo1",
    "tdpo2", "wpo",
]  # fmt: skip
