"""Rubric items that a reward model grades: what the file says of them."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, model_validator

from grape_rl.maths.reward_model import StepAggregation
from grape_rl.schema import Strict, entrusted


class RewardModelItem(Strict):
    """``score = σ((r − center) / scale)`` of a reward model's r; ``confidence`` 1, or by "certainty" ``|2 score − 1|``.

    ``model`` is a folder, beside the rubric file or from where the command runs, or a model of the Hub. A process
    reward model's steps become one probability by ``aggregate`` (min unless told), which is the score as it is.
    """

    model: Annotated[str, Field(min_length=1)]
    center: float = 0.0
    scale: PositiveFloat = 1.0
    confidence: Literal["full", "certainty"] = "full"
    aggregate: StepAggregation | None = None

    @model_validator(mode="before")
    @classmethod
    def _beside(cls, data: Any, info: Any) -> Any:  # a pydantic.ValidationInfo, which beartype cannot check
        name = data.get("model") if isinstance(data, dict) else None
        folder: Path | None = (info.context or {}).get("folder")
        if isinstance(name, str):
            entrusted(name, info.context)
        if isinstance(name, str) and name and folder and (folder / name).is_dir():
            return {**data, "model": str(folder / name)}
        return data

    def graded(self, reward: float, of_steps: bool) -> tuple[float, float]:
        """The item's score and confidence by a model's reward, which ``of_steps`` is a probability already.

        >>> RewardModelItem(model="m", center=1.0, confidence="certainty").graded(1.0, of_steps=False)
        (0.5, 0.0)
        """
        score = reward if of_steps else 0.5 * (1 + math.tanh((reward - self.center) / (2 * self.scale)))
        return score, 1.0 if self.confidence == "full" else abs(2 * score - 1)
