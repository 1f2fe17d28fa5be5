"""REINFORCE on an older policy's responses, which those of a step become with ``epochs`` or ``minibatches`` over 1."""

from grape_rl.maths.advantage import group_relative
from grape_rl.maths.grape import unweighted
from grape_rl.maths.off_policy import behavior_pull, imitation, rec_one_side, rec_ring, rec_two_side, topr, truncated
from grape_rl.maths.reweighting import posterior, red_drop, red_weight
from grape_rl.maths.surrogate import policy_gradient
from grape_rl.methods import LossTerm, Method
from grape_rl.sources.responses import Responses
from grape_rl.table.penalties import PENALTIES

_REC = "Group-Relative REINFORCE is off-policy, arXiv 2509.24203"
_CENTERED = Responses(group_relative, unweighted, smallest_group=2)

OFF_POLICY = (
    Method(
        name="rec_one_side",
        summary="REINFORCE without tokens that went far enough the way their advantage pushes them.",
        equation="A_i = R_i − mean R;  L = −mean_t 1[A ≥ 0 ? ρ_t ≤ 1+ε_high : ρ_t ≥ 1−ε_low] A log π_θ",
        paper=f"{_REC}, REC-OneSide",
        source=_CENTERED,
        terms=(LossTerm(rec_one_side), *PENALTIES),
        reduction="token",
        defaults={"scale": "none"},
    ),
    Method(
        name="rec_two_side",
        summary="REINFORCE with importance weights, without tokens that went far either way.",
        equation="A_i = R_i − mean R;  L = −mean_t 1[1−ε_low ≤ ρ_t ≤ 1+ε_high] sg(ρ_t) A log π_θ",
        paper=f"{_REC}, REC-TwoSide",
        source=_CENTERED,
        terms=(LossTerm(rec_two_side), *PENALTIES),
        reduction="token",
        defaults={"scale": "none"},
    ),
    Method(
        name="rec_ring",
        summary="REINFORCE without tokens that went far, but with those that went very far the wrong way.",
        equation="L = −mean_t 1[1−ε_low ≤ ρ_t ≤ 1+ε_high, or A ≥ 0 ? ρ_t ≤ 1−ε'_low : ρ_t ≥ 1+ε'_high] A log π_θ",
        paper=f"{_REC}, REC-Ring",
        source=_CENTERED,
        terms=(LossTerm(rec_ring), *PENALTIES),
        reduction="token",
        defaults={"scale": "none"},
    ),
    Method(
        name="opmd",
        summary="REINFORCE pulled back to the policy that sampled, by the square of the log-ratio.",
        equation="A_i = R_i − mean R;  L = mean_t [−A log π_θ + pull · (log π_θ − log π_old)²]",
        paper=f"Kimi k1.5, arXiv 2501.12599; {_REC}, REP-OPMD",
        source=_CENTERED,
        terms=(LossTerm(policy_gradient), LossTerm(behavior_pull, 0.1, "pull"), *PENALTIES),
        reduction="token",
        defaults={"scale": "none"},
    ),
    Method(
        name="asymre",
        summary="REINFORCE with a baseline below the mean, so that good responses count for more than bad ones.",
        equation="A_i = R_i − mean R;  L = −mean_t (A + β) log π_θ(y_t | x, y_<t)",
        paper=f"AsymRE, arXiv 2506.20520; {_REC}, REP-AsymRE",
        source=_CENTERED,
        terms=(LossTerm(policy_gradient), LossTerm(imitation, 0.1, "beta"), *PENALTIES),
        reduction="token",
        defaults={"scale": "none"},
    ),
    Method(
        name="red_drop",
        summary="REINFORCE that drops bad responses at random until they are no more than the good ones.",
        equation="A_i = R_i − mean over the kept R, 0 for the dropped;  L = −mean_t A log π_θ(y_t | x, y_<t)",
        paper=f"{_REC}, RED-Drop",
        source=Responses(red_drop, unweighted, smallest_group=2),
        terms=(LossTerm(policy_gradient), *PENALTIES),
        reduction="token",
    ),
    Method(
        name="red_weight",
        summary="REINFORCE in which the better a response, the more it counts.",
        equation="D_i = R_i − mean R;  A_i = D_i exp(D_i / temperature);  L = −mean_t A log π_θ(y_t | x, y_<t)",
        paper=f"{_REC}, RED-Weight",
        source=Responses(red_weight, unweighted, smallest_group=2),
        terms=(LossTerm(policy_gradient), *PENALTIES),
        reduction="token",
    ),
    Method(
        name="topr",
        summary="Good responses imitated whoever wrote them, bad ones pushed down only while still likely.",
        equation="L = −mean_t w A log π_θ(y_t | x, y_<t);  w = 1 if A > 0, else min(sg(π_θ(y)/π_old(y)), 1)",
        paper="TOPR, arXiv 2503.14286 (our reading: the ratio is the whole response's)",
        source=_CENTERED,
        terms=(LossTerm(topr), *PENALTIES),
        reduction="token",
        defaults={"scale": "none"},
    ),
    Method(
        name="truncated_reinforce",
        summary="REINFORCE with importance weights that are cut at a cap.",
        equation="A_i = R_i − mean R;  L = −mean_t sg(min(ρ_t, cap)) A log π_θ(y_t | x, y_<t)",
        paper="Truncated importance sampling, Ionides 2008; IMPALA, arXiv 1802.01561",
        source=_CENTERED,
        terms=(LossTerm(truncated), *PENALTIES),
        reduction="token",
        defaults={"scale": "none"},
    ),
    Method(
        name="em_policy_gradient",
        summary="Responses imitated in proportion to their rewards: no importance weights, no clip.",
        equation="w_i = R_i / mean R;  L = −mean_i w_i Σ_t log π_θ(y_t | x, y_<t) / max_tokens",
        paper="EM Policy Gradient, arXiv 2504.18587 (our reconstruction from its abstract, no reproduction)",
        source=Responses(posterior, unweighted),
        terms=(LossTerm(policy_gradient), *PENALTIES),
        reduction="fixed_length",
    ),
)
