"""The ``reward_model`` section of a rubric item."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, model_validator

from grape_rl.maths.reward_model import StepAggregation
from grape_rl.schema import Strict, require_allowed


class RewardModelItem(Strict):
    """``score = σ((r − center) / scale)`` of a reward model's r; ``confidence`` 1, or by "certainty" ``|2 score − 1|``.

    ``model`` is a folder, relative to the rubric file or to the working directory, or a model of the Hub. The step
    probabilities of a process reward model are combined by ``aggregate`` (default: min); the result is the score.
    """

    model: Annotated[str, Field(min_length=1)]
    center: float = 0.0
    scale: PositiveFloat = 1.0
    confidence: Literal["full", "certainty"] = "full"
    aggregate: StepAggregation | None = None

    @model_validator(mode="before")
    @classmethod
    def _resolve_folder(cls, data: Any, info: Any) -> Any:  # a pydantic.ValidationInfo, which beartype cannot check
        name = data.get("model") if isinstance(data, dict) else None
        folder: Path | None = (info.context or {}).get("folder")
        if isinstance(name, str):
            require_allowed(name, info.context)
        if isinstance(name, str) and name and folder and (folder / name).is_dir():
            return {**data, "model": str(folder / name)}
        return data

    def graded(self, reward: float, of_steps: bool) -> tuple[float, float]:
        """The item's score and confidence for a model's reward. With ``of_steps`` the reward is a probability.

        >>> RewardModelItem(model="m", center=1.0, confidence="certainty").graded(1.0, of_steps=False)
        (0.5, 0.0)
        """
        score = reward if of_steps else 0.5 * (1 + math.tanh((reward - self.center) / (2 * self.scale)))
        return score, 1.0 if self.confidence == "full" else abs(2 * score - 1)
