"""The policy gradient with one baseline or another."""

import math

from grape_rl.maths.advantage import baselined, leave_one_out, normalized
from grape_rl.maths.grape import unweighted
from grape_rl.maths.reward import kl_penalized, moving_average
from grape_rl.maths.reweighting import undiluted
from grape_rl.maths.surrogate import clipped, policy_gradient, ratio
from grape_rl.methods import LossTerm, Method
from grape_rl.sources.responses import Memory, Responses
from grape_rl.table.penalties import PENALTIES
from grape_rl.training.trust_region import trust_region

_BASELINED = Responses(baselined, unweighted, token_reward=kl_penalized, memory=(Memory(moving_average, math.nan),))

REINFORCE = (
    Method(
        name="reinforce",
        summary="The policy gradient itself: a response's reward, less a baseline, times its score.",
        equation="∇J = E[(R − b) Σ_t ∇ log π_θ(y_t | x, y_<t)]",
        paper="arXiv 2509.04501, REINFORCE; Williams 1992",
        source=_BASELINED,
        terms=(LossTerm(policy_gradient), *PENALTIES),
        reduction="fixed_length",
    ),
    Method(
        name="trpo",
        summary="The policy gradient's step measured in KL: as far as the policy may change, and not in vain.",
        equation="maximize E[ρ_t A] subject to E[KL(π_old‖π_θ)] ≤ δ;  θ += √(2δ / gᵀF⁻¹g) F⁻¹g, shrunk until both hold",
        paper="arXiv 2509.04501, TRPO; Schulman et al., arXiv 1502.05477",
        source=_BASELINED,
        terms=(LossTerm(ratio), *PENALTIES),
        # A mean over the tokens, as the KL is one: the expectation over states of TRPO's eq. 14. The step does not
        # depend on the gradient's length, so "fixed_length", REINFORCE's own, would give the same one.
        reduction="token",
        update=trust_region,
    ),
    Method(
        name="rloo",
        summary="REINFORCE whose baseline is the mean reward of the other responses to the same prompt: unbiased.",
        equation="A_i = R_i − mean_{j≠i} R_j;  ∇J = E[A Σ_t ∇ log π_θ(y_t | x, y_<t)]",
        paper="Back to Basics (RLOO), arXiv 2402.14740 (with kl_in_reward, as there; kl adds one to the loss)",
        source=Responses(leave_one_out, unweighted, smallest_group=2, token_reward=kl_penalized),
        terms=(LossTerm(policy_gradient), *PENALTIES),
        reduction="fixed_length",
    ),
    Method(
        name="reinforce_plus_plus",
        summary="Rewards centered and scaled over the whole batch, not group by group, with PPO's clip.",
        equation="A_i = (R_i − mean_batch R)/(std_batch R + ε);  L as in PPO's clip + kl · KL",
        paper="REINFORCE++, arXiv 2501.03262 (with kl_in_reward, as there; kl adds one to the loss); "
        "center=group is its REINFORCE++-baseline",
        source=Responses(normalized, unweighted, token_reward=kl_penalized),
        terms=(LossTerm(clipped), *PENALTIES),
        reduction="token",
    ),
    Method(
        name="gpg",
        summary="The policy gradient relative to the group, scaled up for the groups that say nothing.",
        equation="A_i = B/(B−M) · (R_i − mean R), M of all B being in groups of equal rewards;  L = −mean_t A log π_θ",
        paper="GPG, arXiv 2504.02546 (our reading)",
        source=Responses(undiluted, unweighted, smallest_group=2),
        terms=(LossTerm(policy_gradient), *PENALTIES),
        reduction="token",
    ),
)
