"""GRPO and its variants: advantages relative to the group (the responses to one prompt), and a clipped ratio."""

from grape_rl.maths.advantage import batch_normalized, group_relative
from grape_rl.maths.gdpo import normalize_then_sum
from grape_rl.maths.grape import confidence_weighted, running_confidence, unweighted
from grape_rl.maths.reweighting import length_penalized
from grape_rl.maths.surrogate import cispo, clipped, sequence_clipped
from grape_rl.methods import LossTerm, Method
from grape_rl.rollout.dynamic_sampling import dynamic_sampling
from grape_rl.sources.responses import Responses
from grape_rl.table.penalties import PENALTIES

GROUP_RELATIVE_METHODS = (
    Method(
        name="grpo",
        summary="PPO's clipped loss with advantages relative to the group of responses to one prompt.",
        equation="A_i = (R_i − mean R)/(std R + ε);  "
        "L = mean_t [−min(ρ_t A, clip(ρ_t, 1−ε_low, 1+ε_high) A) + kl · ρ_t k3]",
        paper="arXiv 2509.04501, GRPO; DeepSeekMath, arXiv 2402.03300 (there kl = 0.04, k3 without the weight ρ)",
        source=Responses(group_relative, unweighted, smallest_group=2),
        terms=(LossTerm(clipped), *PENALTIES),
        reduction="sequence",
    ),
    Method(
        name="grape",
        summary="GRPO on a rubric reward that weights each item by the critic's confidence in it.",
        equation="R_i = Σ_k w_k c_k s_ik / Σ_k |w_k| c_k;  A_i = (R_i − mean R)/(std R + ε);  L is PPO's clipped loss",
        paper="arXiv 2509.04501, GRAPE",
        source=Responses(group_relative, confidence_weighted, smallest_group=2, running=running_confidence),
        terms=(LossTerm(clipped), *PENALTIES),
        reduction="token",
    ),
    Method(
        name="gdpo",
        summary="GRPO that normalizes each rubric item within its group before it sums the items.",
        equation="z_ik = (s_ik − mean s_k)/(std s_k + ε);  S_i = Σ_k w_k z_ik;  A_i = (S_i − mean S)/(std_batch S + ε)",
        paper="GDPO, arXiv 2601.05242 (our reading: the loss is GRPO's; missing verdicts are treated as in GRAPE)",
        source=Responses(batch_normalized, unweighted, smallest_group=2, compared=normalize_then_sum),
        terms=(LossTerm(clipped), *PENALTIES),
        reduction="sequence",
    ),
    Method(
        name="dr_grpo",
        summary="GRPO without division by the group's standard deviation or by the response's length.",
        equation="A_i = R_i − mean R;  L = Σ_i Σ_t PPO's clipped loss / (responses · max_tokens)",
        paper="Dr. GRPO, arXiv 2503.20783",
        source=Responses(group_relative, unweighted, smallest_group=2),
        terms=(LossTerm(clipped), *PENALTIES),
        reduction="fixed_length",
        defaults={"scale": "none"},
    ),
    Method(
        name="dapo",
        summary="GRPO with a higher upper clip bound, a mean over all tokens, and dynamic sampling.",
        equation="A_i = (R_i − mean R)/(std R + ε);  L = −mean_t min(ρ_t A, clip(ρ_t, 1−ε_low, 1+ε_high) A)",
        paper="DAPO, arXiv 2503.14476, without a KL term; overlong_buffer is its soft overlong punishment",
        source=Responses(length_penalized, unweighted, dynamic_sampling, smallest_group=2),
        terms=(LossTerm(clipped), *PENALTIES),
        reduction="token",
        defaults={"clip_high": 0.28},
    ),
    Method(
        name="gspo",
        summary="GRPO with one importance ratio per response: the geometric mean over its tokens.",
        equation="s_i = exp(mean_t log ρ_t);  L = −mean_i min(s_i A_i, clip(s_i, 1−ε_low, 1+ε_high) A_i)",
        paper="GSPO, arXiv 2507.18071",
        source=Responses(group_relative, unweighted, smallest_group=2),
        terms=(LossTerm(sequence_clipped), *PENALTIES),
        reduction="sequence",
    ),
    Method(
        name="cispo",
        summary="GRPO that clips the importance weight of each token and keeps its gradient.",
        equation="L = −mean_t sg(clip(ρ_t, 1−ε_low, 1+ε_high)) A log π_θ(y_t | x, y_<t)",
        paper="MiniMax-M1 (CISPO), arXiv 2506.13585 (the bound is 1 + ε_high; elsewhere it is ε_high itself)",
        source=Responses(group_relative, unweighted, smallest_group=2),
        terms=(LossTerm(cispo), *PENALTIES),
        reduction="token",
    ),
    Method(
        name="lite_ppo",
        summary="GRPO with the batch's standard deviation and a mean over all tokens.",
        equation="A_i = (R_i − mean_group R)/(std_batch R + ε);  L is PPO's clipped loss, mean over tokens",
        paper="Lite PPO, arXiv 2508.08221 (our reading: std_batch is over the raw rewards)",
        source=Responses(group_relative, unweighted, smallest_group=2),
        terms=(LossTerm(clipped), *PENALTIES),
        reduction="token",
        defaults={"scale": "batch"},
    ),
)
