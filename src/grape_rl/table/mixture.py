"""Preference losses added up: on the same pairs, each with a weight of its own.

The losses share their options, so that one ``beta`` is that of all. Losses whose default of a shared option is another
(exo, dpop, rpo, simpo, sigmoid_norm) or that compare pairs with each other (aot, beta_dpo) have no part in it.
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

LOSSES: tuple[TermFunction, ...] = (
    dpo, cdpo, robust_dpo, ipo, hinge, slic, nca, bco, apo_zero, apo_down, sppo, orpo, cpo, cal_dpo, r_dpo, ld_dpo,
    odpo, f_dpo, discopop, tdpo1, tdpo2, wpo,
)  # fmt: skip


def _mixture(name: str, summary: str, equation: str, paper: str, weights: Mapping[TermFunction, float]) -> Method:
    """A weighted sum of losses: each weight is an option of the loss's name."""
    terms = tuple(LossTerm(loss, weight, loss.__name__) for loss, weight in weights.items() if loss is not chosen_nll)
    sft = LossTerm(chosen_nll, weights[chosen_nll], "sft")
    return Method(name, summary, equation, paper, Preferences(), (*terms, sft), reduction=None, update=pair_gradient)


MIXTURE = (
    _mixture(
        "mpo", "DPO for which of two is better, BCO for how good each is, SFT for how to say it.",
        "L = dpo · D(β Δ) + bco · (D(β h_w) + D(−β h_l)) − sft · p̄_w",
        "MPO, arXiv 2411.10442 (BCO without its reward shift)", {dpo: 0.8, bco: 0.2, chosen_nll: 1.0},
    ),
    _mixture(
        "mixture", "Any weighted sum of preference losses, each weight an option: DPO alone until another is set.",
        "L = Σ_loss w_loss · L_loss, of each pair", "ours, after MPO, arXiv 2411.10442",
        {dpo: 1.0} | dict.fromkeys(LOSSES[1:], 0.0) | {chosen_nll: 0.0},
    ),
)  # fmt: skip
