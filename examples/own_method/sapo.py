"""SAPO: GRPO with a smooth gate on the importance ratio in place of PPO's clip."""

import torch
from jaxtyping import Float
from torch import Tensor

from grape_rl.maths.advantage import group_relative
from grape_rl.maths.bounds import Positive
from grape_rl.maths.grape import unweighted
from grape_rl.methods import LossTerm, Method
from grape_rl.sources.responses import Responses


def soft_gated(
    logp: Float[Tensor, "b t"],
    behavior_logp: Float[Tensor, "b t"],
    advantage: Float[Tensor, "b t"],
    tau_positive: Positive = 1.0,
    tau_negative: Positive = 1.05,
) -> Float[Tensor, "b t"]:
    """SAPO's loss per token: ``−4/τ σ(τ (ρ − 1)) advantage``, ρ = exp(logp − behavior_logp).

    The gate multiplies a token's gradient, −ρ advantage ∇logp, by sech²(τ (ρ − 1) / 2): 1 at ρ = 1, less elsewhere.

    ``tau_positive`` is τ where the advantage is positive, ``tau_negative`` where it is not: a larger τ is a narrower
    gate.
    """
    ratio = (logp - behavior_logp).exp()
    tau = torch.full_like(advantage, tau_negative).masked_fill(advantage > 0, tau_positive)
    return -4 / tau * torch.sigmoid(tau * (ratio - 1)) * advantage


SAPO = Method(
    name="sapo",
    summary="GRPO with a smooth gate on the ratio in place of a clip.",
    equation="A_i = (R_i − mean R)/(std R + ε);  L = −mean_t 4/τ σ(τ(ρ_t − 1)) A,  τ = τ_pos if A > 0, else τ_neg",
    paper="SAPO, arXiv 2511.20347",
    source=Responses(group_relative, unweighted, smallest_group=2),
    terms=(LossTerm(soft_gated),),
    reduction="sequence",
)
