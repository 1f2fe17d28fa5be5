"""Policy-gradient methods that differ in their baseline or in their step."""

import math

from grape_rl.maths.advantage import baseline_advantage, batch_normalized, leave_one_out
from grape_rl.maths.grape import unweighted
from grape_rl.maths.reward import kl_penalized, moving_average
from grape_rl.maths.reweighting import gpg_advantage
from grape_rl.maths.surrogate import clipped, policy_gradient, ratio
from grape_rl.methods import LossTerm, Method
from grape_rl.sources.responses import Memory, Responses
from grape_rl.table.penalties import PENALTIES
from grape_rl.training.trust_region import trust_region

_BASELINED = Responses(
    baseline_advantage, unweighted, token_reward=kl_penalized, memory=(Memory(moving_average, math.nan),)
)

REINFORCE_METHODS = (
    Method(
        name="reinforce",
        summary="The plain policy gradient: the reward less a baseline, times the gradient of the log-probability.",
        equation="∇J = E[(R − b) Σ_t ∇ log π_θ(y_t | x, y_<t)]",
        paper="arXiv 2509.04501, REINFORCE; Williams 1992",
        source=_BASELINED,
        terms=(LossTerm(policy_gradient), *PENALTIES),
        reduction="fixed_length",
    ),
    Method(
        name="trpo",
        summary="A natural-gradient step with a bound on the KL, accepted only if it improves the surrogate.",
        equation="maximize E[ρ_t A] subject to E[KL(π_old‖π_θ)] ≤ δ;  θ += √(2δ / gᵀF⁻¹g) F⁻¹g, "
        "shrunk until KL ≤ δ and E[ρ_t A] improves",
        paper="arXiv 2509.04501, TRPO; Schulman et al., arXiv 1502.05477",
        source=_BASELINED,
        terms=(LossTerm(ratio), *PENALTIES),
        # The mean over tokens matches the KL's: the expectation over states of TRPO's eq. 14. The step does not depend
        # on the norm of the gradient, so REINFORCE's "fixed_length" would give the same step.
        reduction="token",
        update=trust_region,
    ),
    Method(
        name="rloo",
        summary="REINFORCE with the mean reward of the other responses to the prompt as an unbiased baseline.",
        equation="A_i = R_i − mean_{j≠i} R_j;  ∇J = E[A Σ_t ∇ log π_θ(y_t | x, y_<t)]",
        paper="Back to Basics (RLOO), arXiv 2402.14740 (kl_in_reward as in the paper; kl adds a term to the loss)",
        source=Responses(leave_one_out, unweighted, smallest_group=2, token_reward=kl_penalized),
        terms=(LossTerm(policy_gradient), *PENALTIES),
        reduction="fixed_length",
    ),
    Method(
        name="reinforce_plus_plus",
        summary="PPO's clipped loss with rewards centered and scaled over the whole batch.",
        equation="A_i = (R_i − mean_batch R)/(std_batch R + ε);  L is PPO's clipped loss + kl · KL",
        paper="REINFORCE++, arXiv 2501.03262 (kl_in_reward as in the paper; kl adds a term to the loss); "
        "center=group is its REINFORCE++-baseline",
        source=Responses(batch_normalized, unweighted, token_reward=kl_penalized),
        terms=(LossTerm(clipped), *PENALTIES),
        reduction="token",
    ),
    Method(
        name="gpg",
        summary="REINFORCE with the group's mean as baseline, scaled up to compensate for groups of equal rewards.",
        equation="A_i = B/(B−M) · (R_i − mean R), M of B in groups of equal rewards;  L = −mean_t A log π_θ",
        paper="GPG, arXiv 2504.02546 (our reading)",
        source=Responses(gpg_advantage, unweighted, smallest_group=2),
        terms=(LossTerm(policy_gradient), *PENALTIES),
        reduction="token",
    ),
)
