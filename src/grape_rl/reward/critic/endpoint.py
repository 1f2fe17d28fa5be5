"""A critic behind any server that speaks OpenAI's chat completions: vLLM, SGLang, llama.cpp, hosted ones."""

import asyncio
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import openai
from openai import AsyncOpenAI
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_before_delay, wait_random_exponential

from grape_rl.reward.critic.limiter import Limiter
from grape_rl.reward.critic.reply import Reply
from grape_rl.reward.critic.settings import Endpoint
from grape_rl.types import Status

_TOO_LONG = ("context length", "context_length", "context window", "context size", "maximum context", "too long")
_REFUSED = ("content_filter", "content policy", "content management")
_MALFORMED = (AttributeError, IndexError, KeyError, TypeError, ValueError)


class Client:
    """Calls an endpoint, within its limits. It belongs to one event loop."""

    def __init__(self, endpoint: Endpoint, limiter: Limiter) -> None:
        self.endpoint, self.limiter = endpoint, limiter
        self.concurrency, self.deadline_s = endpoint.concurrency, endpoint.deadline_s
        self._structured = endpoint.structured
        answer = endpoint.model_dump(include={"base_url", "model", "temperature", "max_tokens", "structured", "extra"})
        self.name = json.dumps(answer, sort_keys=True)
        self._client = AsyncOpenAI(
            base_url=endpoint.base_url,
            api_key=os.environ.get(endpoint.api_key) or "none",
            timeout=endpoint.call_timeout_s,
            max_retries=0,  # the tries are counted and timed here
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def reply(
        self,
        messages: Sequence[Mapping[str, str]],
        schema: Mapping[str, Any],
        labels: Sequence[str],
        seed: int,
        items: int = 1,
    ) -> Reply:
        """The critic's answer on so many items; with ``labels``, their log-probs as the whole answer.

        Time-outs, broken connections, 408, 429 and 5xx are tried again, with growing pauses (and no shorter ones than
        the server asks for), while ``total_timeout_s`` leaves room for it. An answer that is cut off is asked for once
        more, with room for twice as many tokens. What stays without an answer is a typed failure.

        Raises:
            CostCap: the calls so far have cost the cap.
        """
        ended = await self.limiter.turn()  # waiting for room is no fault of the server's: the time starts after it
        until = time.monotonic() + self.endpoint.total_timeout_s
        room = self.endpoint.max_tokens * items
        first = await self._reply(self._asked(messages, labels, seed, room), schema, labels, until, ended)
        if labels or first.status != "ok" or first.finish != "length":
            return first
        second = await self._reply(self._asked(messages, labels, seed, 2 * room), schema, labels, until)
        return replace(
            second if second.status == "ok" else first,
            prompt_tokens=first.prompt_tokens + second.prompt_tokens,
            completion_tokens=first.completion_tokens + second.completion_tokens,
            cost=first.cost + second.cost,
            tries=first.tries + second.tries,
        )

    async def _reply(
        self,
        asked: Mapping[str, Any],
        schema: Mapping[str, Any],
        labels: Sequence[str],
        until: float,
        ended: Callable[[int, float], None] | None = None,
    ) -> Reply:
        """The answer to a request, tried until a moment on the clock; ``ended`` is the turn it has got, if any."""
        tries = 0
        left = until - time.monotonic()
        try:
            async with asyncio.timeout(left):
                async for attempt in AsyncRetrying(
                    retry=retry_if_exception(_passing), wait=_pause, stop=stop_before_delay(left), reraise=True
                ):
                    with attempt:
                        ended = ended or await self.limiter.turn()
                        told, ended = ended, None
                        tries += 1
                        return self._read(await self._answer(asked, schema, labels), labels, tries, told)
        except (TimeoutError, openai.APITimeoutError):
            return Reply(f"no answer within {self.endpoint.total_timeout_s:g} s", status="timeout", tries=tries)
        except openai.OpenAIError as error:
            return Reply(self._said(error), status=_status(error), tries=tries)
        except _MALFORMED as error:  # a server may send what is no JSON at all
            said = f"the answer is no chat completion: {type(error).__name__}: {error}"
            return Reply(" ".join(said.split())[:300], status="infrastructure", tries=tries)
        raise AssertionError("a try ends in an answer or an error")

    def _asked(self, messages: Sequence[Mapping[str, str]], labels: Sequence[str], seed: int, room: int) -> Any:
        of = self.endpoint
        if labels:
            how = {"max_tokens": 1, "temperature": 0.0, "logprobs": True, "top_logprobs": 20}
        else:
            how = {"max_tokens": room, "temperature": of.temperature}
        return {**of.extra, "model": of.model, "messages": list(messages), "seed": seed, **how}

    async def _answer(self, asked: Mapping[str, Any], schema: Mapping[str, Any], labels: Sequence[str]) -> Any:
        """The server's answer as plain data; a server that knows no schemas is asked in words from then on."""
        if self._structured == "prompted" or labels:
            return await self._client.post("/chat/completions", cast_to=object, body=asked)
        form = {"name": "verdict", "schema": dict(schema), "strict": True}
        more = {"response_format": {"type": "json_schema", "json_schema": form}}
        try:
            return await self._client.post("/chat/completions", cast_to=object, body={**asked, **more})
        except openai.BadRequestError as error:
            if "response_format" not in str(error):
                raise
        self._structured = "prompted"
        return await self._client.post("/chat/completions", cast_to=object, body=asked)

    def _read(self, found: Any, labels: Sequence[str], tries: int, ended: Callable[[int, float], None]) -> Reply:
        of = self.endpoint
        used = found.get("usage") or {}
        prompt, completion = (int(used.get(f"{name}_tokens") or 0) for name in ("prompt", "completion"))
        cost = (prompt * of.prompt_price + completion * of.completion_price) / 1e6
        ended(prompt + completion, cost)
        try:
            choice = found["choices"][0]
            refusal, said = choice["message"].get("refusal"), choice["message"].get("content")
            logp = _label_logp(choice, labels)
        except _MALFORMED:
            why = f"no choice in the answer: {json.dumps(found.get('error') or list(found))[:200]}"
            return Reply(why, "stop", "infrastructure", {}, prompt, completion, cost, tries)
        finish = choice.get("finish_reason") or "stop"
        status = "refused" if refusal else "ok"
        return Reply(refusal or said or "", finish, status, logp, prompt, completion, cost, tries)

    def _said(self, error: Exception) -> str:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        if not isinstance(error, openai.AuthenticationError):
            return said
        name = self.endpoint.api_key
        why = "holds a key that the server refuses" if os.environ.get(name) else "is not set: put the key there"
        return f"{said}; the environment variable {name} {why}, or name another one in the critic's api_key"


def _label_logp(choice: Mapping[str, Any], labels: Sequence[str]) -> dict[str, float]:
    """The log-probability of each label's first token as the answer's first token.

    A label that is not among the tokens told has at most the probability of the least likely one: that is taken.

    No label is told where two of them begin with the same token, or none is among those told.
    """
    content = (choice.get("logprobs") or {}).get("content") if labels else None
    if not content:
        return {}
    told: dict[str, float] = {}
    top = content[0]["top_logprobs"]
    for each in top:
        word = each["token"].strip().strip('"').casefold()
        begins = [label for label in labels if word and label.casefold().startswith(word)]
        if len(begins) > 1:
            return {}
        for label in begins:  # " yes" and "Yes" are the same label
            told[label] = math.log(math.exp(told.get(label, -math.inf)) + math.exp(each["logprob"]))
    least: float = min(each["logprob"] for each in top)
    return dict.fromkeys(labels, least) | told if told else {}


def _passing(error: BaseException) -> bool:
    """Whether a failure may pass by itself."""
    if isinstance(error, openai.APIStatusError):
        return error.status_code in (408, 429) or error.status_code >= 500
    return isinstance(error, openai.APIConnectionError)  # time-outs among them


def _pause(state: RetryCallState) -> float:
    """Seconds until the next try: a random time up to a growing bound, and no less than the server asks for."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.response.headers.get("retry-after", "") if isinstance(error, openai.APIStatusError) else ""
    return max(_seconds(asked), wait_random_exponential(multiplier=0.25, max=30)(state))


def _seconds(asked: str) -> float:
    """What a Retry-After says, in seconds or as a date, from now on; 0 if nothing that can be read."""
    try:
        found = float(asked)
        return found if math.isfinite(found) else 0.0
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(asked)
    except ValueError:
        return 0.0
    return (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds()


def _status(error: Exception) -> Status:
    said = str(error).lower()
    if isinstance(error, openai.APIStatusError) and error.status_code in (400, 413, 422):
        if any(word in said for word in _REFUSED):
            return "refused"
        if any(word in said for word in _TOO_LONG):
            return "truncated"
    return "infrastructure"
