"""Methods that learn from pairs of responses, one of them preferred.

All read pairs from data and take the mean loss over them. Most differ in the loss alone. D(z) = −log σ(z);
h = log π_θ(y|x) − log π_ref(y|x), for the chosen (h_w) and the rejected response (h_l); Δ = h_w − h_l;
p = log π_θ(y|x); a bar is the mean over tokens; K = Σ_t KL(π_ref‖π_θ) over the whole vocabulary; sg is a stop-gradient.
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
from grape_rl.methods import LossTerm, Method
from grape_rl.sources.preferences import Preferences
from grape_rl.training.moving_reference import moving_reference
from grape_rl.training.objective import TermFunction
from grape_rl.training.pairs import pair_gradient, two_pass_pair_gradient

_SFT = (LossTerm(chosen_nll, 0.0, "sft"),)
"""The likelihood of the chosen response, an optional term of every loss here (option ``sft``, 0 by default)."""


def _method(
    name: str,
    summary: str,
    equation: str,
    paper: str,
    loss: TermFunction,
    added: tuple[LossTerm, ...] = _SFT,
    update: Callable[..., dict[str, float]] = pair_gradient,
) -> Method:
    """A method with the given loss on pairs, plus the ``added`` terms."""
    terms = (LossTerm(loss), *added)
    return Method(name, summary, equation, paper, Preferences(), terms, reduction=None, update=update)


PREFERENCE_METHODS = (
    _method(
        "dpo", "The likelihood of the labels under the reward that the policy implies.",
        "L = D(β Δ)", "DPO, arXiv 2305.18290", dpo,
    ),
    _method(
        "cdpo", "DPO for partly flipped labels: the margin has a finite target.",
        "L = (1−ε) D(β Δ) + ε D(−β Δ)", "conservative DPO, Mitchell 2023", cdpo,
    ),
    _method(
        "robust_dpo", "An unbiased estimate of DPO's loss on the correct labels from partly flipped ones.",
        "L = [(1−ε) D(β Δ) − ε D(−β Δ)] / (1 − 2ε)", "robust DPO, arXiv 2403.00409", robust_dpo,
    ),
    _method(
        "ipo", "A squared loss with a fixed target for the margin, so certain preferences do not push it forever.",
        "L = (h̄_w − h̄_l − 1/(2β))²", "IPO, arXiv 2310.12036", ipo,
    ),
    _method(
        "hinge", "DPO with a hinge loss: no gradient once the margin is large enough.",
        "L = max(0, 1 − β Δ)", "RSO, arXiv 2309.06657 (its loss)", hinge,
    ),
    _method(
        "slic", "A hinge loss on the policy's own log-probabilities plus the likelihood of the chosen response.",
        "L = max(0, δ − p_w + p_l) − sft · p̄_w", "SLiC-HF, arXiv 2305.10425 (our reading)", slic,
        (LossTerm(chosen_nll, 1.0, "sft"),),
    ),
    _method(
        "exo", "The KL from the policy's preference to the label, the reverse of DPO's direction.",
        "L = q log(q/(1−ε)) + (1−q) log((1−q)/ε),  q = σ(β Δ)", "EXO, arXiv 2402.00856", exo,
    ),
    _method(
        "nca", "Noise-contrastive estimation against the reference, which keeps the chosen response likely.",
        "L = D(β h_w) + ½ D(−β h_w) + ½ D(−β h_l)", "NCA, arXiv 2402.05369", nca,
    ),
    _method(
        "bco", "A classifier of good and bad responses whose logit is the implied reward.",
        "L = D(β h_w) + D(−β h_l)", "BCO, arXiv 2404.04656 (for pairs)", bco,
    ),
    _method(
        "apo_zero", "A loss that raises the chosen and lowers the rejected response, for pairs better than the model.",
        "L = 1 − σ(β h_w) + σ(β h_l)", "APO, arXiv 2408.06266", apo_zero,
    ),
    _method(
        "apo_down", "A loss that lowers both responses, the rejected one more, for pairs worse than the model.",
        "L = σ(β h_w) + 1 − σ(β Δ)", "APO, arXiv 2408.06266", apo_down,
    ),
    _method(
        "sppo", "A squared loss with a target for the implied reward of each response (hard labels).",
        "L = (h_w − 1/(2β))² + (h_l + 1/(2β))²", "SPPO, arXiv 2405.00675", sppo,
    ),
    _method(
        "orpo", "SFT on the chosen response with an odds-ratio penalty on the rejected one, without a reference.",
        "L = −p̄_w + λ D(lo_w − lo_l),  lo = p̄ − log(1 − e^p̄)", "ORPO, arXiv 2403.07691", orpo, (),
    ),
    _method(
        "simpo", "DPO with the mean log-probability as reward and a target margin, without a reference.",
        "L = D(β (p̄_w − p̄_l) − γ)", "SimPO, arXiv 2405.14734", simpo,
    ),
    _method(
        "cpo", "DPO with a uniform reference, plus the likelihood of the chosen response.",
        "L = D(β (p_w − p_l)) − λ p̄_w", "CPO, arXiv 2401.08417", cpo, (),
    ),
    _method(
        "sigmoid_norm", "DPO on means over tokens, so that length gives no advantage.",
        "L = D(β (h̄_w − h̄_l))", "length-normalized DPO, Tülu 3, arXiv 2411.15124", sigmoid_norm,
    ),
    _method(
        "cal_dpo", "DPO with the implied rewards calibrated to a fixed scale.",
        "L = D(Δ) + ½ (h_w − 1/(2β))² + ½ (h_l + 1/(2β))²", "Cal-DPO, arXiv 2412.14516", cal_dpo,
    ),
    _method(
        "r_dpo", "DPO that discounts a preference for the longer response.",
        "L = D(β Δ + α (|y_w| − |y_l|))", "R-DPO, arXiv 2403.19159 (our reading)", r_dpo,
    ),
    _method(
        "ld_dpo", "DPO with a lower weight on tokens beyond the length of the shorter response.",
        "L = D(β (Δ_head + α Δ_tail))", "LD-DPO, arXiv 2409.06411", ld_dpo,
    ),
    _method(
        "dpop", "DPO with a penalty where the chosen response becomes less likely than under the reference.",
        "L = D(β (Δ − λ max(0, −h_w)))", "DPO-positive, Smaug, arXiv 2402.13228 (our reading)", dpop,
    ),
    _method(
        "odpo", "DPO with an offset that grows with the difference of the responses' rewards.",
        "L = D(β Δ − α log(r_w − r_l))", "ODPO, arXiv 2402.10571", odpo,
    ),
    _method(
        "f_dpo", "DPO with another f-divergence from the reference in place of the reverse KL.",
        "L = D(β (f'(π_θ/π_ref of y_w) − f'(π_θ/π_ref of y_l)))", "f-DPO, arXiv 2309.16240", f_dpo,
    ),
    _method(
        "aot", "DPO on the sorted log-ratios of the batch: quantile against quantile instead of pair by pair.",
        "L = D(β (sort(p_w − p_l) − sort(p_w^ref − p_l^ref)))", "AOT, arXiv 2406.05882", aot, _SFT,
        two_pass_pair_gradient,
    ),
    _method(
        "discopop", "A blend of the logistic and the exponential loss, found by a search over programs.",
        "L = (1−m) D(z) + m e^{−z},  z = β Δ,  m = σ(z/τ)", "DiscoPOP, arXiv 2406.08414", discopop,
    ),
    _method(
        "rpo", "A loss that fits the implied reward gap to the data's reward gap, not only its sign.",
        "L = dist(β Δ, η (r_w − r_l)),  dist = KL of two Bernoullis, or the square", "RPO, arXiv 2502.00203", rpo,
    ),
    _method(
        "aot_unpaired", "AOT on single responses: all chosen against all rejected ones, quantile by quantile.",
        "L = D(β (sort(h_w) − sort(h_l)))", "AOT, arXiv 2406.05882 (unpaired)", aot_unpaired, _SFT,
        two_pass_pair_gradient,
    ),
    _method(
        "beta_dpo", "DPO with a larger β for pairs with a margin above the batch's mean.",
        "L = D(β_i Δ),  β_i = β max(0, 1 + a (β Δ − mean β Δ)), a constant",
        "β-DPO, arXiv 2407.08639 (our reading; without its filter)", beta_dpo, _SFT, two_pass_pair_gradient,
    ),
    _method(
        "tdpo1", "DPO with the sequential KL from the reference as part of the margin.",
        "L = D(β (Δ − (K_l − K_w)))", "TDPO, arXiv 2404.11999 (first form; our reading)", tdpo1,
    ),
    _method(
        "tdpo2", "TDPO1 with a stop-gradient on the chosen response's KL and a weight on the rejected one's.",
        "L = D(β (Δ − α (K_l − sg K_w)))", "TDPO, arXiv 2404.11999 (second form; our reading)", tdpo2,
    ),
    _method(
        "wpo", "DPO that weights each pair by its likelihood under the policy.",
        "L = min(w_w w_l, limit) D(β Δ),  w = sg exp(mean_t[log π_θ(o_t) − log Σ_v π_θ(v)²])",
        "WPO, arXiv 2406.11827", wpo,
    ),
    _method(
        "tr_dpo", "DPO with a reference that follows the policy, which may then move further from the start.",
        "L = D(β Δ);  every n steps π_ref ← m π_θ + (1−m) π_ref", "TR-DPO, arXiv 2404.09656", dpo, _SFT,
        moving_reference,
    ),
)  # fmt: skip
