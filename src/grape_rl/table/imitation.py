"""Methods that make given responses likely: demonstrations, or the best of the model's own."""

from grape_rl.maths.grape import unweighted
from grape_rl.maths.reweighting import accepted
from grape_rl.maths.surrogate import policy_gradient
from grape_rl.methods import Algorithm, Demonstrations, Responses, RowTerm

IMITATION = (
    Algorithm(
        name="sft",
        summary="Supervised fine-tuning: make the demonstrations likely.",
        equation="L = −mean_t log π_θ(y_t | x, y_<t), over the completion's tokens",
        paper="arXiv 2509.04501, SFT",
        source=Demonstrations(),
        terms=(RowTerm(policy_gradient),),
        reduction="token",
    ),
    Algorithm(
        name="rejection_sampling",
        summary="In rounds, one a step: sample several responses a prompt, keep the best, imitate those.",
        equation="y_1 … y_G ~ π_old;  y*: the best k with R ≥ threshold;  L = −mean_t log π_θ(y*_t | x, y*_<t)",
        paper="arXiv 2509.04501, rejection sampling; RAFT, arXiv 2304.06767",
        source=Responses(accepted, unweighted, any_sampler=True),
        terms=(RowTerm(policy_gradient),),
        reduction="token",
    ),
)
