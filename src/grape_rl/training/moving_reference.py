"""A reference policy that follows the trained one: TR-DPO's update."""

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
    """``pair_gradient``, and after every ``reference_every`` steps a reference that follows the policy.

    ``π_ref ← reference_mix π_θ + (1 − reference_mix) π_ref``, weight by weight: TR-DPO (arXiv 2404.09656). The
    reference that the experience comes with is moved in place: what its source asks of it next is asked of the moved
    one.

    Raises:
        RuntimeError: a gradient that is not finite, before it moves the weights.
    """
    told = pair_gradient(model, optimizer, experience, objective, settings)
    if (step + 1) % reference_every == 0:
        assert experience.reference is not None
        with torch.no_grad():
            for theirs, ours in zip(experience.reference.parameters(), model.parameters(), strict=True):
                theirs.lerp_(ours, reference_mix)
    return told
