"""Weighted sums of preference losses over one set of pairs.

The losses share their options: one ``beta`` applies to all. A loss is excluded if its default for a shared option
differs (exo, dpop, rpo, simpo, sigmoid_norm) or if it compares pairs with each other (aot, aot_unpaired, beta_dpo).
"""

from collections.abc import Mapping

from grape_rl.maths.preference import (
    apo_down,
    apo_zero,
    bco,
    cal_dpo,
    cdpo,
    chosen_nll,
    cpo,
    discopop,
    dpo,
    f_dpo,
    hinge,
    ipo,
    ld_dpo,
    nca,
    odpo,
    orpo,
    r_dpo,
    robust_dpo,
    slic,
    sppo,
    tdpo1,
    tdpo2,
    wpo,
)
from grape_rl.methods import LossTerm, Method
from grape_rl.sources.preferences import Preferences
from grape_rl.training.objective import TermFunction
from grape_rl.training.pairs import pair_gradient

MIXTURE_LOSSES: tuple[TermFunction, ...] = (
    dpo, cdpo, robust_dpo, ipo, hinge, slic, nca, bco, apo_zero, apo_down, sppo, orpo, cpo, cal_dpo, r_dpo, ld_dpo,
    odpo, f_dpo, discopop, tdpo1, tdpo2, wpo,
)  # fmt: skip
"""The losses that ``mixture`` can weight."""


def _mixture(name: str, summary: str, equation: str, paper: str, weights: Mapping[TermFunction, float]) -> Method:
    """A method with a weighted sum of losses. Each weight is an option with the name of its loss."""
    terms = tuple(LossTerm(loss, weight, loss.__name__) for loss, weight in weights.items() if loss is not chosen_nll)
    sft = LossTerm(chosen_nll, weights[chosen_nll], "sft")
    return Method(name, summary, equation, paper, Preferences(), (*terms, sft), reduction=None, update=pair_gradient)


MIXTURE_METHODS = (
    _mixture(
        "mpo", "A sum of DPO for the order of a pair, BCO for the quality of each response, and SFT for fluency.",
        "L = dpo · D(β Δ) + bco · (D(β h_w) + D(−β h_l)) − sft · p̄_w",
        "MPO, arXiv 2411.10442 (BCO without its reward shift)", {dpo: 0.8, bco: 0.2, chosen_nll: 1.0},
    ),
    _mixture(
        "mixture", "A weighted sum of preference losses, with each weight as an option; DPO alone by default.",
        "L = Σ_loss w_loss · L_loss, for each pair", "ours, after MPO, arXiv 2411.10442",
        {dpo: 1.0} | dict.fromkeys(MIXTURE_LOSSES[1:], 0.0) | {chosen_nll: 0.0},
    ),
)  # fmt: skip
