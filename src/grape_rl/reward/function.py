"""A reward function of one's own, in the form that TRL's have, as a scorer."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxtyping import Int
from torch import Tensor

from grape_rl.reward.check.callables import run_coroutine
from grape_rl.reward.check.checks import returned_number
from grape_rl.reward.scores import Scorer, new_responses, single_scores
from grape_rl.types import Response, Scores, Verdict, failed

NOT_HERE = {
    "completion_ids": "graders see text",
    "prompt_ids": "graders see text",
    "trainer_state": "there is no Trainer",
    "log_extra": "every verdict is in rollouts/ as it is",
    "log_metric": "the rewards are in metrics.jsonl as they are",
    "environments": "there is one turn and no environment",
}
"""What TRL hands to a function beside the batch, and why it is not here."""


def function_scorer(function: Callable[..., Any], name: str) -> Scorer:
    """A scorer by a reward function of one's own: ``function(prompts, completions, **columns) -> list``.

    The form that TRL's reward functions have, ``async`` ones too: they run without a change. The function is called
    once a batch, with those of the prompts, the completions and the columns of the data (each a list, in the batch's
    order; None where a row lacks the column) that it has parameters for: all of them if it takes ``**kwargs``. Where a
    row's prompt is messages, so is its entry in ``prompts``, and its completion is one message of the assistant, a
    list of ``{"role": "assistant", "content": text}``; otherwise both are text. The reward is the number it returns, of
    any scale; None means that it does not apply to the response. What is no finite number is a missing verdict, and if
    the function raises, so is every verdict of the batch.

    Raises (the scorer):
        ValueError: a parameter that no column fills, or a result that is not one value for each response.
    """
    parameters = inspect.signature(function).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    accepts_all = any(p.kind is p.VAR_KEYWORD for p in parameters)

    def scores(responses: Sequence[Response], group: Int[Tensor, " b"], known: Scores | None = None) -> Scores:
        asked = new_responses(responses, known)
        columns = _columns(asked)
        unfilled = [p.name for p in named if p.default is p.empty and p.name not in columns]
        if unfilled:
            why = "".join(f"; {each}: {NOT_HERE[each]}" for each in unfilled if each in NOT_HERE)
            raise ValueError(f"{name}: no column for the parameters {unfilled}; there are {', '.join(columns)}{why}")
        accepted = columns if accepts_all else {p.name: columns[p.name] for p in named if p.name in columns}
        return single_scores(_returned(function, accepted, name, len(asked)), known)

    return scores


def _columns(responses: Sequence[Response]) -> dict[str, list[Any]]:
    keys = dict.fromkeys(key for each in responses for key in each.row)
    columns = {key: [each.row.get(key) for each in responses] for key in keys}
    chats = [isinstance(each.row.get("prompt"), list) for each in responses]
    columns["prompts"] = [r.row["prompt"] if chat else r.prompt for r, chat in zip(responses, chats, strict=True)]
    columns["completions"] = [
        [{"role": "assistant", "content": each.text}] if chat else each.text
        for each, chat in zip(responses, chats, strict=True)
    ]
    return columns


def _returned(function: Callable[..., Any], columns: Mapping[str, Any], name: str, count: int) -> list[Verdict]:
    """The verdicts of what a reward function returns."""
    try:
        result = function(**columns)
        if inspect.iscoroutine(result):
            result = run_coroutine(result)
    except (Exception, SystemExit) as error:
        return [failed(name, "infrastructure", f"{type(error).__name__}: {error}", "function")] * count
    try:
        values = list(result)
    except TypeError:
        raise ValueError(f"{name}: should return a list, one value a response, but returned {result!r:.80}") from None
    if len(values) != count:
        raise ValueError(f"{name}: returned {len(values)} values for {count} responses")
    return [_valued(name, value) for value in values]


def _valued(name: str, value: Any) -> Verdict:
    if value is None:
        return failed(name, "refused", "returned None: it does not apply to this response", "function")
    try:
        return Verdict(name, returned_number(value), provenance="function")
    except Exception as error:
        return failed(name, "infrastructure", f"{type(error).__name__}: {error}", "function")
