"""The policy gradient with one baseline or another."""

from grape_rl.maths.advantage import baselined, leave_one_out, normalized
from grape_rl.maths.grape import unweighted
from grape_rl.maths.reweighting import undiluted
from grape_rl.maths.surrogate import clipped, policy_gradient
from grape_rl.methods import Algorithm, Responses, RowTerm
from grape_rl.table.penalties import PENALTIES

REINFORCE = (
    Algorithm(
        name="reinforce",
        summary="The policy gradient itself: a response's reward, less a baseline, times its score.",
        equation="∇J = E[(R − b) Σ_t ∇ log π_θ(y_t | x, y_<t)]",
        paper="arXiv 2509.04501, REINFORCE; Williams 1992",
        source=Responses(baselined, unweighted),
        terms=(RowTerm(policy_gradient), *PENALTIES),
        reduction="fixed_length",
    ),
    Algorithm(
        name="rloo",
        summary="REINFORCE whose baseline is the mean reward of the other responses to the same prompt: unbiased.",
        equation="A_i = R_i − mean_{j≠i} R_j;  ∇J = E[A Σ_t ∇ log π_θ(y_t | x, y_<t)]",
        paper="Back to Basics (RLOO), arXiv 2402.14740",
        source=Responses(leave_one_out, unweighted, smallest_group=2),
        terms=(RowTerm(policy_gradient), *PENALTIES),
        reduction="fixed_length",
    ),
    Algorithm(
        name="reinforce_plus_plus",
        summary="Rewards centered and scaled over the whole batch, not group by group, with PPO's clip.",
        equation="A_i = (R_i − mean_batch R)/(std_batch R + ε);  L as in PPO's clip + kl · KL",
        paper="REINFORCE++, arXiv 2501.03262; center=group is its REINFORCE++-baseline",
        source=Responses(normalized, unweighted),
        terms=(RowTerm(clipped), *PENALTIES),
        reduction="token",
    ),
    Algorithm(
        name="gpg",
        summary="The policy gradient relative to the group, scaled up for the groups that say nothing.",
        equation="A_i = B/(B−M) · (R_i − mean R), M of all B being in groups of equal rewards;  L = −mean_t A log π_θ",
        paper="GPG, arXiv 2504.02546 (our reading)",
        source=Responses(undiluted, unweighted, smallest_group=2),
        terms=(RowTerm(policy_gradient), *PENALTIES),
        reduction="token",
    ),
)
