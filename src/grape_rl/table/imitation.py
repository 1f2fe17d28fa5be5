"""Methods that imitate responses: demonstrations, or the best of the model's own samples."""

from grape_rl.maths.grape import unweighted
from grape_rl.maths.rejection import accepted
from grape_rl.maths.surrogate import dft, policy_gradient
from grape_rl.methods import LossTerm, Method
from grape_rl.sources.demonstrations import Demonstrations
from grape_rl.sources.responses import Responses
from grape_rl.training.update import noisy_gradient

IMITATION_METHODS = (
    Method(
        name="sft",
        summary="Supervised fine-tuning maximizes the likelihood of demonstrations.",
        equation="L = −mean_t log π_θ(y_t | x, y_<t), over the completion's tokens",
        paper="arXiv 2509.04501, SFT",
        source=Demonstrations(),
        terms=(LossTerm(policy_gradient),),
        reduction="token",
        update=noisy_gradient,
    ),
    Method(
        name="dft",
        summary="SFT that weights each token by its probability, so that unlikely tokens have little effect.",
        equation="L = −mean_t sg(π_θ(y_t | x, y_<t)) log π_θ(y_t | x, y_<t), over the completion's tokens",
        paper="DFT, arXiv 2508.05629",
        source=Demonstrations(),
        terms=(LossTerm(dft),),
        reduction="token",
        update=noisy_gradient,
    ),
    Method(
        name="rejection_sampling",
        summary="Each step samples several responses per prompt, keeps the best and imitates them.",
        equation="y_1 … y_G ~ π_old;  y*: the best k with R ≥ threshold;  L = −mean_t log π_θ(y*_t | x, y*_<t)",
        paper="arXiv 2509.04501, rejection sampling; RAFT, arXiv 2304.06767",
        source=Responses(accepted, unweighted, off_policy_ok=True),
        terms=(LossTerm(policy_gradient),),
        reduction="token",
    ),
)
