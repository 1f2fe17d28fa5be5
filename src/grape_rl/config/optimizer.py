"""Settings of the optimizer and its learning-rate schedule."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat

from grape_rl.config.section import Section
from grape_rl.maths.bounds import NonNegativeInt, UnitInterval


class OptimizerConfig(Section):
    """AdamW and its learning-rate schedule."""

    learning_rate: PositiveFloat = 1e-6
    """Peak learning rate."""
    warmup: NonNegativeInt = 0
    """Steps of linear learning-rate warmup."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning-rate schedule after the warmup."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's weight decay."""
    betas: tuple[UnitInterval, UnitInterval] = (0.9, 0.95)
    """AdamW's decay rates of the first and second moment."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients with a larger norm are scaled down to this norm."""
