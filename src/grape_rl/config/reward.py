"""Settings of the reward: a rubric, a function or a reward model, and the critics that judge a rubric's items."""

from typing import Any

from pydantic import Field, model_validator

from grape_rl.config.section import Section
from grape_rl.maths.bounds import NonNegativeInt, UnitInterval
from grape_rl.maths.reward_model import StepAggregation


class RewardConfig(Section):
    """The reward: exactly one of ``rubric``, ``function`` and ``model``, where responses are graded."""

    rubric: str | None = None
    """A rubric file."""
    function: str | None = None
    """A Python reward function, "file.py:name" or "package.module:name": f(prompts, completions, **columns)."""
    model: str | None = None
    """A reward model, a folder or a model on the Hub: the reward is its score of prompt and response."""
    aggregate: StepAggregation | None = None
    """Reduction of a process reward model's step probabilities to one reward. Default: ``min``."""
    allow: tuple[str, ...] = ()
    """Python files and modules that a rubric file may call."""
    critics: dict[str, dict[str, Any]] = Field({})
    """Critics that judge a rubric's items, by name: {default: {base_url: …, model: …}} for a server with an
    OpenAI-compatible chat API, or {default: {local: MODEL}} for a language model in this process."""
    critic_cache: str | None = None
    """A SQLite file that caches the critics' answers, so that no question is sent twice."""
    canary_every: NonNegativeInt = 0
    """Steps between checks of the critics on empty or meaningless responses, which must score lowest; 0 for none."""
    failure_limit: UnitInterval = 0.1
    """The run stops at a step with a larger share of missing verdicts than this."""

    @property
    def is_set(self) -> bool:
        """True if a rubric, a function or a model is set, so that responses can be graded."""
        return bool(self.rubric or self.function or self.model)

    @model_validator(mode="after")
    def _at_most_one_grader(self) -> "RewardConfig":
        if sum(map(bool, (self.rubric, self.function, self.model))) > 1:
            raise ValueError("set exactly one of rubric, function and model")
        if self.aggregate and not self.model:
            raise ValueError("aggregate applies to the steps of a process reward model: set model")
        return self
