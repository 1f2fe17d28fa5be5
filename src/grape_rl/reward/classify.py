"""Which category a prompt is of, where a function or a critic says so and not the columns of its row."""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import PrivateAttr, model_validator

from grape_rl.reward.check.callables import python_callable
from grape_rl.reward.critic.judge import Judge
from grape_rl.reward.critic.judging import CriticJob, Judging
from grape_rl.schema import Strict, nearest
from grape_rl.types import Response, Verdict

UNCLASSIFIED = "unclassified"
"""The category, in name only, of a response to a prompt that the critic could not classify."""

ITEM = "category"
"""What the verdict of a classification is called."""


class Classify(Strict):
    """Who says which category a prompt is of: a function ``f(row) -> name``, or a ``critic``.

    The function is ``"file.py:name"`` or ``"module:name"``, under the rule of ``allow``. The critic is shown the prompt
    and what each category says it is ``about``. Each row, or for a critic each prompt, is classified once.
    """

    call: str | None = None
    critic: str | None = None

    _function: Callable[[Mapping[str, Any]], Any] = PrivateAttr()
    _known: dict[str, str] = PrivateAttr(default_factory=dict[str, str])

    @model_validator(mode="after")
    def _loaded(self, info: Any) -> "Classify":  # a pydantic.ValidationInfo, which beartype cannot check
        if (self.call is None) == (self.critic is None):
            raise ValueError("needs exactly one of call and critic")
        if self.call is not None:
            self._function = python_callable(self.call, info.context["folder"], info.context["allow"])
        return self

    def called(self, row: Mapping[str, Any], names: Iterable[str]) -> str:
        """The category of a row, as the function says.

        Raises:
            ValueError: it raised, or what it returned is the name of no category.
        """
        key = json.dumps(row, default=repr)
        if key not in self._known:
            try:
                found = self._function(row)
            except Exception as error:
                raise ValueError(f"classify {self.call!r} failed: {type(error).__name__}: {error}") from error
            if found not in (known := list(names)):
                raise ValueError(f"classify {self.call!r} returned {found!r:.80}{nearest(str(found), known)}")
            self._known[key] = found
        return self._known[key]

    def judge(self, about: Mapping[str, str]) -> Judge | None:
        """What a critic is asked of a prompt, where one classifies."""
        if self.critic is None:
            return None
        return Judge(
            criterion="Which category the prompt belongs to. There is no response to grade.",
            labels={name: n / (len(about) - 1) for n, name in enumerate(about)},  # any scores: the label is what counts
            anchors=dict(about),
            show=("prompt",),
            critic=self.critic,
        )

    def judged(
        self, responses: Iterable[Response], about: Mapping[str, str], critics: Judging
    ) -> dict[str, str | Verdict]:
        """The category of each prompt, as the critic says, or the missing verdict of one that it could not classify.

        ``about`` says what each category is about. A prompt that failed is asked again the next time.
        """
        judge = self.judge(about)
        assert judge is not None
        prompts = {each.prompt: Response(each.prompt, "", each.row, 0, "stop") for each in responses}
        asked = [CriticJob(ITEM, judge, prompts[prompt]) for prompt in prompts if prompt not in self._known]
        told = {job.response.prompt: each for job, each in zip(asked, critics.verdicts(asked), strict=True)}
        self._known |= {prompt: each.label for prompt, each in told.items() if not each.missing}
        return {prompt: self._known.get(prompt) or told[prompt] for prompt in prompts}
