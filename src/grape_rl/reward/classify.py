"""Classification of prompts into categories by a function or a critic, for data without a category column."""

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
"""The category name of responses to a prompt that the critic could not classify. No rubric category may have it."""

CLASSIFICATION = "category"
"""The item name of a classification's verdict."""


class Classify(Strict):
    """The classifier of prompts: a function ``call``, ``f(row) -> name``, or a ``critic``.

    The function is ``"file.py:name"`` or ``"module:name"``; ``allow`` must list its file or module. The critic sees the
    prompt and each category's ``about``. Each row (for a critic: each prompt) is classified once.
    """

    call: str | None = None
    critic: str | None = None

    _function: Callable[[Mapping[str, Any]], Any] = PrivateAttr()
    _known: dict[str, str] = PrivateAttr(default_factory=dict[str, str])

    @model_validator(mode="after")
    def _load_function(self, info: Any) -> "Classify":  # a pydantic.ValidationInfo, which beartype cannot check
        if (self.call is None) == (self.critic is None):
            raise ValueError("needs exactly one of call and critic")
        if self.call is not None:
            self._function = python_callable(self.call, info.context["folder"], info.context["allow"])
        return self

    def by_function(self, row: Mapping[str, Any], names: Iterable[str]) -> str:
        """The category of a row that the function returns.

        Raises:
            ValueError: the function raised, or returned a value that is not the name of a category.
        """
        key = json.dumps(row, default=repr)
        if key not in self._known:
            try:
                name = self._function(row)
            except Exception as error:
                raise ValueError(f"classify {self.call!r} failed: {type(error).__name__}: {error}") from error
            if name not in (known := list(names)):
                raise ValueError(f"classify {self.call!r} returned {name!r:.80}{nearest(str(name), known)}")
            self._known[key] = name
        return self._known[key]

    def judge(self, about: Mapping[str, str]) -> Judge | None:
        """The judge that classifies a prompt, with a label for each category of ``about``; None without a critic."""
        if self.critic is None:
            return None
        return Judge(
            criterion="Which category the prompt belongs to. There is no response to grade.",
            labels={name: n / (len(about) - 1) for n, name in enumerate(about)},  # any scores: only the label is used
            anchors=dict(about),
            show=("prompt",),
            critic=self.critic,
        )

    def by_critic(
        self, responses: Iterable[Response], about: Mapping[str, str], critics: Judging
    ) -> dict[str, str | Verdict]:
        """The category of each prompt as the critic decides, or the missing verdict of a failed classification.

        ``about`` describes each category. A prompt whose classification failed is tried again in the next call.
        """
        judge = self.judge(about)
        assert judge is not None
        prompts = {response.prompt: Response(response.prompt, "", response.row, 0, "stop") for response in responses}
        jobs = [CriticJob(CLASSIFICATION, judge, prompts[prompt]) for prompt in prompts if prompt not in self._known]
        verdicts = {job.response.prompt: verdict for job, verdict in zip(jobs, critics.verdicts(jobs), strict=True)}
        self._known |= {prompt: verdict.label for prompt, verdict in verdicts.items() if not verdict.missing}
        return {prompt: self._known.get(prompt) or verdicts[prompt] for prompt in prompts}
