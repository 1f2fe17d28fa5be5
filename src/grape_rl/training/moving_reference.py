"""A reference policy that follows the trained policy: TR-DPO's update."""

from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import nn

from grape_rl.training.objective import Objective
from grape_rl.training.pairs import PairExperience, pair_gradient
from grape_rl.training.update import UpdateSettings


def moving_reference(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    experience: PairExperience,
    objective: Objective,
    settings: UpdateSettings,
    step: int,
    reference_mix: Annotated[float, Field(gt=0, le=1)] = 0.6,
    reference_every: PositiveInt = 512,
) -> dict[str, float]:
    """``pair_gradient``, and after every ``reference_every`` steps an update of the reference toward the policy.

    ``π_ref ← reference_mix π_θ + (1 − reference_mix) π_ref`` for each weight: TR-DPO (arXiv 2404.09656), soft update.
    The weights of ``experience.reference`` change in place, so its source uses the updated reference from then on.

    Raises:
        RuntimeError: the gradient is not finite. The weights are unchanged.
    """
    metrics = pair_gradient(model, optimizer, experience, objective, settings)
    if (step + 1) % reference_every == 0:
        assert experience.reference is not None
        with torch.no_grad():
            for reference, policy in zip(experience.reference.parameters(), model.parameters(), strict=True):
                reference.lerp_(policy, reference_mix)
    return metrics
