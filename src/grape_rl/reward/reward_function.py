"""A user's reward function, in the form of TRL's reward functions, as a scorer."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxtyping import Int
from torch import Tensor

from grape_rl.reward.check.callables import run_coroutine
from grape_rl.reward.check.checks import returned_number
from grape_rl.reward.scores import Scorer, new_responses, single_scores
from grape_rl.types import Response, Scores, Verdict, failed

UNSUPPORTED_ARGUMENTS = {
    "completion_ids": "reward functions get text, not tokens",
    "prompt_ids": "reward functions get text, not tokens",
    "trainer_state": "there is no Trainer",
    "log_extra": "rollouts/ already holds every verdict",
    "log_metric": "metrics.jsonl already holds the rewards",
    "environments": "responses are single-turn, without an environment",
}
"""Arguments that TRL passes to reward functions and grape-rl does not, with the reason."""


def function_scorer(function: Callable[..., Any], name: str) -> Scorer:
    """A scorer by a user's reward function: ``function(prompts, completions, **columns) -> list``.

    TRL's reward functions, ``async`` ones included, run unchanged. The function is called once per batch with
    ``prompts``, ``completions`` and the columns of the data, as far as it has parameters for them; all of them if it
    takes ``**kwargs``. Each is a list in the batch's order, with None where a row lacks the column. If a row's prompt
    is messages, so is its entry in ``prompts``, and its completion is a list of one assistant message,
    ``{"role": "assistant", "content": text}``. Otherwise both are text.

    The returned number is the reward, of any scale. None means that the function does not apply to the response. A
    value that is not a finite number is a missing verdict; if the function raises, all verdicts of the batch are.

    Raises (the scorer):
        ValueError: a parameter has no column, or the result does not have one value per response.
    """
    parameters = inspect.signature(function).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    accepts_all = any(p.kind is p.VAR_KEYWORD for p in parameters)

    def scores(responses: Sequence[Response], group: Int[Tensor, " b"], known: Scores | None = None) -> Scores:
        new = new_responses(responses, known)
        columns = _columns(new)
        unfilled = [p.name for p in named if p.default is p.empty and p.name not in columns]
        if unfilled:
            reasons = [f"; {p}: {UNSUPPORTED_ARGUMENTS[p]}" for p in unfilled if p in UNSUPPORTED_ARGUMENTS]
            known_columns = ", ".join(columns)
            raise ValueError(
                f"{name}: no column for the parameters {unfilled}; columns: {known_columns}{''.join(reasons)}"
            )
        accepted = columns if accepts_all else {p.name: columns[p.name] for p in named if p.name in columns}
        return single_scores(_call(function, accepted, name, len(new)), known)

    return scores


def _columns(responses: Sequence[Response]) -> dict[str, list[Any]]:
    keys = dict.fromkeys(key for response in responses for key in response.row)
    columns = {key: [response.row.get(key) for response in responses] for key in keys}
    chats = [isinstance(response.row.get("prompt"), list) for response in responses]
    columns["prompts"] = [r.row["prompt"] if chat else r.prompt for r, chat in zip(responses, chats, strict=True)]
    columns["completions"] = [
        [{"role": "assistant", "content": response.text}] if chat else response.text
        for response, chat in zip(responses, chats, strict=True)
    ]
    return columns


def _call(function: Callable[..., Any], columns: Mapping[str, Any], name: str, count: int) -> list[Verdict]:
    """Call a reward function and convert its result to verdicts."""
    try:
        result = function(**columns)
        if inspect.iscoroutine(result):
            result = run_coroutine(result)
    except (Exception, SystemExit) as error:
        return [failed(name, "infrastructure", f"{type(error).__name__}: {error}", "function")] * count
    try:
        values = list(result)
    except TypeError:
        raise ValueError(
            f"{name}: should return a list with one value per response but returned {result!r:.80}"
        ) from None
    if len(values) != count:
        raise ValueError(f"{name}: returned {len(values)} values for {count} responses")
    return [_verdict(name, value) for value in values]


def _verdict(name: str, value: Any) -> Verdict:
    if value is None:
        return failed(name, "refused", "returned None: it does not apply to this response", "function")
    try:
        return Verdict(name, returned_number(value), provenance="function")
    except Exception as error:
        return failed(name, "infrastructure", f"{type(error).__name__}: {error}", "function")
