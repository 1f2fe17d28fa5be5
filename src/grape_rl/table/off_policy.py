"""REINFORCE on off-policy responses, which a step's responses become with ``epochs`` or ``minibatches`` over 1."""

from grape_rl.maths.advantage import group_relative
from grape_rl.maths.grape import unweighted
from grape_rl.maths.off_policy import (
    nll_regularizer,
    rec_one_side,
    rec_ring,
    rec_two_side,
    squared_log_ratio,
    topr,
    truncated_importance,
)
from grape_rl.maths.reweighting import em_weight, red_drop, red_weight
from grape_rl.maths.surrogate import policy_gradient
from grape_rl.methods import LossTerm, Method
from grape_rl.sources.responses import Responses
from grape_rl.table.penalties import PENALTIES

_REC = "Group-Relative REINFORCE is off-policy, arXiv 2509.24203"
_CENTERED = Responses(group_relative, unweighted, smallest_group=2)

OFF_POLICY_METHODS = (
    Method(
        name="rec_one_side",
        summary="REINFORCE that masks tokens whose ratio passed its bound in the direction of the advantage.",
        equation="A_i = R_i − mean R;  L = −mean_t 1[A ≥ 0 ? ρ_t ≤ 1+ε_high : ρ_t ≥ 1−ε_low] A log π_θ",
        paper=f"{_REC}, REC-OneSide",
        source=_CENTERED,
        terms=(LossTerm(rec_one_side), *PENALTIES),
        reduction="token",
        defaults={"scale": "none"},
    ),
    Method(
        name="rec_two_side",
        summary="REINFORCE with importance weights that masks tokens whose ratio is outside the bounds.",
        equation="A_i = R_i − mean R;  L = −mean_t 1[1−ε_low ≤ ρ_t ≤ 1+ε_high] sg(ρ_t) A log π_θ",
        paper=f"{_REC}, REC-TwoSide",
        source=_CENTERED,
        terms=(LossTerm(rec_two_side), *PENALTIES),
        reduction="token",
        defaults={"scale": "none"},
    ),
    Method(
        name="rec_ring",
        summary="REC-TwoSide without weights that also keeps tokens very far in the wrong direction.",
        equation="L = −mean_t 1[1−ε_low ≤ ρ_t ≤ 1+ε_high, or A ≥ 0 ? ρ_t ≤ 1−ε'_low : ρ_t ≥ 1+ε'_high] A log π_θ",
        paper=f"{_REC}, REC-Ring",
        source=_CENTERED,
        terms=(LossTerm(rec_ring), *PENALTIES),
        reduction="token",
        defaults={"scale": "none"},
    ),
    Method(
        name="opmd",
        summary="REINFORCE with a squared log-ratio penalty that pulls back to the behavior policy.",
        equation="A_i = R_i − mean R;  L = mean_t [−A log π_θ + pull · (log π_θ − log π_old)²]",
        paper=f"Kimi k1.5, arXiv 2501.12599; {_REC}, REP-OPMD",
        source=_CENTERED,
        terms=(LossTerm(policy_gradient), LossTerm(squared_log_ratio, 0.1, "pull"), *PENALTIES),
        reduction="token",
        defaults={"scale": "none"},
    ),
    Method(
        name="asymre",
        summary="REINFORCE with a baseline below the mean: good responses count for more than bad ones.",
        equation="A_i = R_i − mean R;  L = −mean_t (A + β) log π_θ(y_t | x, y_<t)",
        paper=f"AsymRE, arXiv 2506.20520; {_REC}, REP-AsymRE",
        source=_CENTERED,
        terms=(LossTerm(policy_gradient), LossTerm(nll_regularizer, 0.1, "beta"), *PENALTIES),
        reduction="token",
        defaults={"scale": "none"},
    ),
    Method(
        name="red_drop",
        summary="REINFORCE that drops bad responses at random until they do not outnumber the good ones.",
        equation="A_i = R_i − mean over the kept R, 0 if dropped;  L = −mean_t A log π_θ(y_t | x, y_<t)",
        paper=f"{_REC}, RED-Drop",
        source=Responses(red_drop, unweighted, smallest_group=2),
        terms=(LossTerm(policy_gradient), *PENALTIES),
        reduction="token",
    ),
    Method(
        name="red_weight",
        summary="REINFORCE that weights each response exponentially by its reward.",
        equation="D_i = R_i − mean R;  A_i = D_i exp(D_i / temperature);  L = −mean_t A log π_θ(y_t | x, y_<t)",
        paper=f"{_REC}, RED-Weight",
        source=Responses(red_weight, unweighted, smallest_group=2),
        terms=(LossTerm(policy_gradient), *PENALTIES),
        reduction="token",
    ),
    Method(
        name="topr",
        summary="REINFORCE that imitates good responses and pushes bad ones down only while they are likely.",
        equation="L = −mean_t w A log π_θ(y_t | x, y_<t);  w = 1 if A > 0, else min(sg(π_θ(y)/π_old(y)), 1)",
        paper="TOPR, arXiv 2503.14286 (our reading: the ratio is the whole response's)",
        source=_CENTERED,
        terms=(LossTerm(topr), *PENALTIES),
        reduction="token",
        defaults={"scale": "none"},
    ),
    Method(
        name="truncated_reinforce",
        summary="REINFORCE with importance weights truncated at a cap.",
        equation="A_i = R_i − mean R;  L = −mean_t sg(min(ρ_t, cap)) A log π_θ(y_t | x, y_<t)",
        paper="Truncated importance sampling, Ionides 2008; IMPALA, arXiv 1802.01561",
        source=_CENTERED,
        terms=(LossTerm(truncated_importance), *PENALTIES),
        reduction="token",
        defaults={"scale": "none"},
    ),
    Method(
        name="em_policy_gradient",
        summary="Imitation of responses in proportion to their rewards, without importance weights or a clip.",
        equation="w_i = R_i / mean R;  L = −mean_i w_i Σ_t log π_θ(y_t | x, y_<t) / max_tokens",
        paper="EM Policy Gradient, arXiv 2504.18587 (our reconstruction from its abstract, not a reproduction)",
        source=Responses(em_weight, unweighted),
        terms=(LossTerm(policy_gradient), *PENALTIES),
        reduction="fixed_length",
    ),
)
