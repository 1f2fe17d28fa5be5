"""One item of a rubric: its id, its weight, and its grader."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from grape_rl.reward.check.checks import Check, check_lookups
from grape_rl.reward.check.lookup import lookups
from grape_rl.reward.critic.judge import Judge
from grape_rl.reward.human_item import Human
from grape_rl.reward.judge_defaults import with_defaults
from grape_rl.reward.reward_model_item import RewardModelItem
from grape_rl.schema import Strict

NonEmptyText = Annotated[str, Field(min_length=1)]


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"should be a number but is the boolean {value}")
    return value


class Item(Strict):
    """One criterion, scored in [0, 1] by a program (``check``), a critic (``judge``), a reward model, or people.

    Attributes:
        weight: share in the reward; negative for a pitfall, whose score counts against the response.
        gate: if this item scores 0, the other items of positive weight count 0.
        role: "monitor" for an item that is graded and reported but not rewarded.
    """

    id: NonEmptyText
    weight: Annotated[float, BeforeValidator(_number)] = 1.0
    gate: Annotated[bool, Field(strict=True)] = False
    role: Literal["reward", "monitor"] = "reward"
    check: Check | None = None
    judge: Judge | None = None
    reward_model: RewardModelItem | None = None
    human: Human | None = None

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, data: Any, info: Any) -> Any:  # a pydantic.ValidationInfo, which beartype cannot check
        defaults = (info.context or {}).get("judge_defaults")
        if defaults and isinstance(data, Mapping) and isinstance(data.get("judge"), Mapping):
            return {**data, "judge": with_defaults(data["judge"], defaults)}
        return data

    @model_validator(mode="after")
    def _sensible(self) -> "Item":
        if sum(map(bool, (self.check, self.judge, self.reward_model, self.human))) != 1:
            raise ValueError("needs exactly one of check, judge, reward_model and human")
        if self.judge and "response" not in self.judge.show:
            raise ValueError("judge.show does not include 'response': the critic would have nothing to judge")
        if self.weight == 0:
            raise ValueError("weight 0 has no effect: use 'role: monitor' to grade an item without rewarding it")
        if self.gate and (self.weight < 0 or self.role == "monitor"):
            raise ValueError("a gate needs a positive weight and the role 'reward'")
        return self

    @property
    def grader(self) -> str:
        """The name of its grader: the type of its check, "judge", "human" or "reward_model"."""
        return self.check.type if self.check else "judge" if self.judge else "human" if self.human else "reward_model"

    @property
    def lookups(self) -> tuple[str, ...]:
        """The lookups in its texts, as written."""
        if self.human:
            return lookups(self.human.score or "")
        return check_lookups(self.check) if self.check else self.judge.lookups if self.judge else ()

    @property
    def worst(self) -> float:
        """The score that lowers the reward most: 0, or 1 for a pitfall."""
        return float(self.weight < 0)
