"""One item of a rubric: what it is called, what it counts, and who grades it."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from grape_rl.reward.check.checks import Check, check_lookups
from grape_rl.reward.critic.judge import Judge
from grape_rl.reward.defaults import completed
from grape_rl.reward.human import Human
from grape_rl.reward.lookup import lookups
from grape_rl.reward.model_item import RewardModelItem
from grape_rl.schema import Strict

Name = Annotated[str, Field(min_length=1)]


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"should be a number but is the boolean {value}")
    return value


class Item(Strict):
    """One thing to grade, in [0, 1]: by a program (``check``), a critic (``judge``), a reward model, or people.

    A negative ``weight`` makes it a pitfall. Where a ``gate`` scores 0, the other items of positive weight count 0. A
    ``monitor`` is graded and reported, and no part of the reward.
    """

    id: Name
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
            return {**data, "judge": completed(data["judge"], defaults)}
        return data

    @model_validator(mode="after")
    def _sensible(self) -> "Item":
        if sum(map(bool, (self.check, self.judge, self.reward_model, self.human))) != 1:
            raise ValueError("needs exactly one of check, judge, reward_model and human")
        if self.judge and "response" not in self.judge.show:
            raise ValueError("judge.show has no response: there would be nothing to judge")
        if self.weight == 0:
            raise ValueError("weight 0 has no effect: use 'role: monitor' to grade an item without rewarding it")
        if self.gate and (self.weight < 0 or self.role == "monitor"):
            raise ValueError("a gate needs a positive weight and the role 'reward'")
        return self

    @property
    def grader(self) -> str:
        """Who grades it, in a word."""
        return self.check.type if self.check else "judge" if self.judge else "human" if self.human else "reward_model"

    @property
    def lookups(self) -> tuple[str, ...]:
        """The look-ups in its texts, as written."""
        if self.human:
            return lookups(self.human.score or "")
        return check_lookups(self.check) if self.check else self.judge.lookups if self.judge else ()

    @property
    def worst(self) -> float:
        """The score that hurts a response most: 0, or 1 on a pitfall."""
        return float(self.weight < 0)
