"""The methods that learn from pairs of responses, each as its loss and what it says of itself.

They differ in the loss alone: all read pairs from data and take the plain mean over them. D(z) = −log σ(z);
h = log π_θ(y|x) − log π_ref(y|x) of the chosen response (h_w) and of the rejected one (h_l); Δ = h_w − h_l;
p = log π_θ(y|x); a bar is the mean over tokens; K = Σ_t KL(π_ref‖π_θ) over whole choices; sg is a stop-gradient.
"""

from collections.abc import Callable

from grape_rl.maths.preference import (
    aot,
    aot_unpaired,
    apo_down,
    apo_zero,
    bco,
    beta_dpo,
    cal_dpo,
    cdpo,
    chosen_nll,
    cpo,
    discopop,
    dpo,
    dpop,
    exo,
    f_dpo,
    hinge,
    ipo,
    ld_dpo,
    nca,
    odpo,
    orpo,
    r_dpo,
    robust_dpo,
    rpo,
    sigmoid_norm,
    simpo,
    slic,
    sppo,
    tdpo1,
    tdpo2,
    wpo,
)
from grape_rl.methods import LossTerm, Method, Preferences
from grape_rl.training.moving_reference import moving_reference
from grape_rl.training.objective import TermFunction
from grape_rl.training.pairs import pair_gradient, two_pass_pair_gradient

_SFT = (LossTerm(chosen_nll, 0.0, "sft"),)
"""The likelihood of the chosen response, which may be added to any of the losses (option ``sft``)."""


def _row(
    name: str,
    summary: str,
    equation: str,
    paper: str,
    loss: TermFunction,
    added: tuple[LossTerm, ...] = _SFT,
    update: Callable[..., dict[str, float]] = pair_gradient,
) -> Method:
    """A method as a row: its loss and what may be ``added`` to it."""
    terms = (LossTerm(loss), *added)
    return Method(name, summary, equation, paper, Preferences(), terms, reduction=None, update=update)


PREFERENCE = (
    _row(
        "dpo", "Make the reward that the policy implies explain which response was preferred.",
        "L = D(β Δ)", "DPO, arXiv 2305.18290", dpo,
    ),
    _row(
        "cdpo", "DPO for labels of which some are the wrong way round: the margin stays bounded.",
        "L = (1−ε) D(β Δ) + ε D(−β Δ)", "conservative DPO, Mitchell 2023", cdpo,
    ),
    _row(
        "robust_dpo", "DPO's loss on the right labels, estimated without bias from partly wrong ones.",
        "L = [(1−ε) D(β Δ) − ε D(−β Δ)] / (1 − 2ε)", "robust DPO, arXiv 2403.00409", robust_dpo,
    ),
    _row(
        "ipo", "Bring the margin to a fixed size, so that sure preferences do not push it without end.",
        "L = (h̄_w − h̄_l − 1/(2β))²", "IPO, arXiv 2310.12036", ipo,
    ),
    _row(
        "hinge", "A hinge in place of DPO's logistic: no more push once the margin is large enough.",
        "L = max(0, 1 − β Δ)", "RSO, arXiv 2309.06657 (its loss)", hinge,
    ),
    _row(
        "slic", "A hinge on the policy's own log-probs, with the likelihood of the chosen response.",
        "L = max(0, δ − p_w + p_l) − sft · p̄_w", "SLiC-HF, arXiv 2305.10425 (a reading)", slic,
        (LossTerm(chosen_nll, 1.0, "sft"),),
    ),
    _row(
        "exo", "The KL from the policy's preference to the label: DPO's the other way round.",
        "L = q log(q/(1−ε)) + (1−q) log((1−q)/ε),  q = σ(β Δ)", "EXO, arXiv 2402.00856", exo,
    ),
    _row(
        "nca", "Noise contrast with the reference: the chosen response may not lose likelihood.",
        "L = D(β h_w) + ½ D(−β h_w) + ½ D(−β h_l)", "NCA, arXiv 2402.05369", nca,
    ),
    _row(
        "bco", "A classifier of good and bad whose logit is the reward that the policy implies.",
        "L = D(β h_w) + D(−β h_l)", "BCO, arXiv 2404.04656 (for pairs)", bco,
    ),
    _row(
        "apo_zero", "The chosen response up, the rejected one down: for pairs better than the model.",
        "L = 1 − σ(β h_w) + σ(β h_l)", "APO, arXiv 2408.06266", apo_zero,
    ),
    _row(
        "apo_down", "Both responses down, the rejected one further: for pairs worse than the model.",
        "L = σ(β h_w) + 1 − σ(β Δ)", "APO, arXiv 2408.06266", apo_down,
    ),
    _row(
        "sppo", "Bring each response's implied reward to a place of its own (hard labels).",
        "L = (h_w − 1/(2β))² + (h_l + 1/(2β))²", "SPPO, arXiv 2405.00675", sppo,
    ),
    _row(
        "orpo", "SFT on the chosen response and a penalty on the odds of the rejected one: no reference.",
        "L = −p̄_w + λ D(lo_w − lo_l),  lo = p̄ − log(1 − e^p̄)", "ORPO, arXiv 2403.07691", orpo, (),
    ),
    _row(
        "simpo", "The mean log-probability is the reward, with a gap to keep: no reference.",
        "L = D(β (p̄_w − p̄_l) − γ)", "SimPO, arXiv 2405.14734", simpo,
    ),
    _row(
        "cpo", "DPO with a uniform reference, and the likelihood of the chosen response.",
        "L = D(β (p_w − p_l)) − λ p̄_w", "CPO, arXiv 2401.08417", cpo, (),
    ),
    _row(
        "sigmoid_norm", "DPO on means over tokens, so that length is no advantage.",
        "L = D(β (h̄_w − h̄_l))", "length-normalized DPO, Tülu 3, arXiv 2411.15124", sigmoid_norm,
    ),
    _row(
        "cal_dpo", "DPO with the implied rewards calibrated to a scale.",
        "L = D(Δ) + ½ (h_w − 1/(2β))² + ½ (h_l + 1/(2β))²", "Cal-DPO, arXiv 2412.14516", cal_dpo,
    ),
    _row(
        "r_dpo", "DPO that discounts a preference for the longer response.",
        "L = D(β Δ + α (|y_w| − |y_l|))", "R-DPO, arXiv 2403.19159 (a reading)", r_dpo,
    ),
    _row(
        "ld_dpo", "DPO that counts the tokens beyond the shorter response's length for less.",
        "L = D(β (Δ_head + α Δ_tail))", "LD-DPO, arXiv 2409.06411", ld_dpo,
    ),
    _row(
        "dpop", "DPO that may not make the chosen response less likely than it was.",
        "L = D(β (Δ − λ max(0, −h_w)))", "DPO-positive, Smaug, arXiv 2402.13228 (a reading)", dpop,
    ),
    _row(
        "odpo", "DPO with a margin that grows with the difference of the responses' rewards.",
        "L = D(β Δ − α log(r_w − r_l))", "ODPO, arXiv 2402.10571", odpo,
    ),
    _row(
        "f_dpo", "DPO under another divergence from the reference than the reverse KL.",
        "L = D(β (f'(π_θ/π_ref of y_w) − f'(π_θ/π_ref of y_l)))", "f-DPO, arXiv 2309.16240", f_dpo,
    ),
    _row(
        "aot", "Preferred as a distribution: quantile against quantile over the batch, not pair by pair.",
        "L = D(β (sort(p_w − p_l) − sort(p_w^ref − p_l^ref)))", "AOT, arXiv 2406.05882", aot, _SFT,
        two_pass_pair_gradient,
    ),
    _row(
        "discopop", "A blend of logistic and exponential loss that a search over programs found.",
        "L = (1−m) D(z) + m e^(−z),  z = β Δ,  m = σ(z/τ)", "DiscoPOP, arXiv 2406.08414", discopop,
    ),
    _row(
        "rpo", "Bring the implied rewards' difference to that of the data's rewards, not only to its sign.",
        "L = dist(β Δ, η (r_w − r_l)),  dist = KL of the two coins, or the square", "RPO, arXiv 2502.00203", rpo,
    ),
    _row(
        "aot_unpaired", "All chosen over all rejected responses as distributions, whichever stood beside which.",
        "L = D(β (sort(h_w) − sort(h_l)))", "AOT, arXiv 2406.05882 (unpaired)", aot_unpaired, _SFT,
        two_pass_pair_gradient,
    ),
    _row(
        "beta_dpo", "DPO with a larger β for pairs that are told apart more easily than the batch's mean.",
        "L = D(β_i Δ),  β_i = β max(0, 1 + a (β Δ − mean β Δ)), a constant",
        "β-DPO, arXiv 2407.08639 (a reading; without its filter)", beta_dpo, _SFT, two_pass_pair_gradient,
    ),
    _row(
        "tdpo1", "DPO with the KL from the reference at each token as part of the margin.",
        "L = D(β (Δ − (K_l − K_w)))", "TDPO, arXiv 2404.11999 (first form; a reading)", tdpo1,
    ),
    _row(
        "tdpo2", "DPO that keeps the rejected response's KL from the reference near the chosen one's.",
        "L = D(β (Δ − α (K_l − sg K_w)))", "TDPO, arXiv 2404.11999 (second form; a reading)", tdpo2,
    ),
    _row(
        "wpo", "DPO in which a pair counts by how likely the policy itself would be to write it.",
        "L = min(w_w w_l, limit) D(β Δ),  w = sg exp(mean_t[log π_θ(o_t) − log Σ_v π_θ(v)²])",
        "WPO, arXiv 2406.11827", wpo,
    ),
    _row(
        "tr_dpo", "DPO whose reference follows the policy, so that it may go further from the start.",
        "L = D(β Δ);  every n steps π_ref ← m π_θ + (1−m) π_ref", "TR-DPO, arXiv 2404.09656", dpo, _SFT,
        moving_reference,
    ),
)  # fmt: skip
