"""A critic behind a server with OpenAI's chat completions API: vLLM, SGLang, llama.cpp, or a hosted service."""

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
    """A client of one endpoint, within its limits. It belongs to one event loop."""

    def __init__(self, endpoint: Endpoint, limiter: Limiter) -> None:
        self.endpoint, self.limiter = endpoint, limiter
        self.concurrency, self.deadline_s = endpoint.concurrency, endpoint.deadline_s
        self._structured = endpoint.structured
        # The settings that affect answers.
        settings = {"base_url", "model", "temperature", "max_tokens", "structured", "extra"}
        self.name = json.dumps(endpoint.model_dump(include=settings), sort_keys=True)
        self._client = AsyncOpenAI(
            base_url=endpoint.base_url,
            api_key=os.environ.get(endpoint.api_key) or "none",
            timeout=endpoint.call_timeout_s,
            max_retries=0,  # tries are counted and timed in this class
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
        """The critic's answer about ``items`` items; with ``labels``, their log-probs as the whole answer.

        Time-outs, broken connections and the statuses 408, 429 and 5xx are retried with exponential backoff, and no
        earlier than the server's Retry-After, while ``total_timeout_s`` allows. A truncated answer is requested once
        more, with twice the token limit. A call without an answer is a typed failure.

        Raises:
            CostCapReached: the calls so far have reached the cost cap.
        """
        record = await self.limiter.acquire()  # the wait is not the server's fault: the time limit starts after it
        deadline = time.monotonic() + self.endpoint.total_timeout_s
        max_tokens = self.endpoint.max_tokens * items
        first = await self._reply(self._request(messages, labels, seed, max_tokens), schema, labels, deadline, record)
        if labels or first.status != "ok" or first.finish != "length":
            return first
        second = await self._reply(self._request(messages, labels, seed, 2 * max_tokens), schema, labels, deadline)
        return replace(
            second if second.status == "ok" else first,
            prompt_tokens=first.prompt_tokens + second.prompt_tokens,
            completion_tokens=first.completion_tokens + second.completion_tokens,
            cost=first.cost + second.cost,
            tries=first.tries + second.tries,
        )

    async def _reply(
        self,
        request: Mapping[str, Any],
        schema: Mapping[str, Any],
        labels: Sequence[str],
        deadline: float,
        record: Callable[[int, float], None] | None = None,
    ) -> Reply:
        """The answer to a request, retried until ``deadline`` on the monotonic clock.

        ``record`` belongs to a turn of the limiter that the first try uses; without it the first try waits for one.
        """
        tries = 0
        remaining = deadline - time.monotonic()
        try:
            async with asyncio.timeout(remaining):
                async for attempt in AsyncRetrying(
                    retry=retry_if_exception(_transient), wait=_pause, stop=stop_before_delay(remaining), reraise=True
                ):
                    with attempt:
                        record = record or await self.limiter.acquire()
                        record_try, record = record, None
                        tries += 1
                        completion = await self._completion(request, schema, labels)
                        return self._read(completion, labels, tries, record_try)
        except (TimeoutError, openai.APITimeoutError):
            reason = f"no answer within {self.endpoint.total_timeout_s:g} s"
            return Reply(reason, status="timeout", tries=tries)
        except openai.OpenAIError as error:
            return Reply(self._error_text(error), status=_status(error), tries=tries)
        except _MALFORMED as error:  # the body may be anything, even not JSON
            reason = f"the answer is not a chat completion: {type(error).__name__}: {error}"
            return Reply(" ".join(reason.split())[:300], status="infrastructure", tries=tries)
        raise AssertionError("every try ends in an answer or an error")

    def _request(
        self, messages: Sequence[Mapping[str, str]], labels: Sequence[str], seed: int, max_tokens: int
    ) -> Mapping[str, Any]:
        endpoint = self.endpoint
        if labels:
            sampling = {"max_tokens": 1, "temperature": 0.0, "logprobs": True, "top_logprobs": 20}
        else:
            sampling = {"max_tokens": max_tokens, "temperature": endpoint.temperature}
        return {**endpoint.extra, "model": endpoint.model, "messages": list(messages), "seed": seed, **sampling}

    async def _completion(self, request: Mapping[str, Any], schema: Mapping[str, Any], labels: Sequence[str]) -> Any:
        """The server's answer as plain data.

        If the server rejects ``response_format``, this and all later requests rely on the prompt to ask for JSON.
        """
        if self._structured == "prompted" or labels:
            return await self._client.post("/chat/completions", cast_to=object, body=request)
        form = {"name": "verdict", "schema": dict(schema), "strict": True}
        response_format = {"response_format": {"type": "json_schema", "json_schema": form}}
        try:
            return await self._client.post("/chat/completions", cast_to=object, body={**request, **response_format})
        except openai.BadRequestError as error:
            if "response_format" not in str(error):
                raise
        self._structured = "prompted"
        return await self._client.post("/chat/completions", cast_to=object, body=request)

    def _read(self, completion: Any, labels: Sequence[str], tries: int, record: Callable[[int, float], None]) -> Reply:
        """The reply in a chat completion, and its tokens and cost to the limiter."""
        usage = completion.get("usage") or {}
        prompt, generated = (int(usage.get(f"{name}_tokens") or 0) for name in ("prompt", "completion"))
        cost = (prompt * self.endpoint.prompt_price + generated * self.endpoint.completion_price) / 1e6
        record(prompt + generated, cost)
        try:
            choice = completion["choices"][0]
            refusal, text = choice["message"].get("refusal"), choice["message"].get("content")
            logp = _label_logp(choice, labels)
        except _MALFORMED:
            shown = json.dumps(completion.get("error") or list(completion))[:200]
            reason = f"the answer has no choice: {shown}"
            return Reply(reason, "stop", "infrastructure", {}, prompt, generated, cost, tries)
        finish = choice.get("finish_reason") or "stop"
        status = "refused" if refusal else "ok"
        return Reply(refusal or text or "", finish, status, logp, prompt, generated, cost, tries)

    def _error_text(self, error: Exception) -> str:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        if not isinstance(error, openai.AuthenticationError):
            return text
        name = self.endpoint.api_key
        problem = "contains a key that the server refuses" if os.environ.get(name) else "is not set: put the key there"
        return f"{text}; the environment variable {name} {problem}, or name another one in the critic's api_key"


def _label_logp(choice: Mapping[str, Any], labels: Sequence[str]) -> dict[str, float]:
    """The log-probability that the answer's first token is the first token of each label.

    The server returns the likeliest tokens only. A label that is not among them is at most as probable as the least
    likely of them, and that bound is used. Empty if two labels start with the same token, or if no label is returned.
    """
    content = (choice.get("logprobs") or {}).get("content") if labels else None
    if not content:
        return {}
    logp: dict[str, float] = {}
    top = content[0]["top_logprobs"]
    for token in top:
        word = token["token"].strip().strip('"').casefold()
        matches = [label for label in labels if word and label.casefold().startswith(word)]
        if len(matches) > 1:
            return {}
        for label in matches:  # " yes" and "Yes" are the same label
            logp[label] = math.log(math.exp(logp.get(label, -math.inf)) + math.exp(token["logprob"]))
    least: float = min(token["logprob"] for token in top)
    return dict.fromkeys(labels, least) | logp if logp else {}


def _transient(error: BaseException) -> bool:
    """True if a retry may succeed."""
    if isinstance(error, openai.APIStatusError):
        return error.status_code in (408, 429) or error.status_code >= 500
    return isinstance(error, openai.APIConnectionError)  # includes time-outs


def _pause(state: RetryCallState) -> float:
    """Seconds until the next try: exponential backoff with jitter, and no less than the server's Retry-After."""
    error = state.outcome.exception() if state.outcome else None
    header = error.response.headers.get("retry-after", "") if isinstance(error, openai.APIStatusError) else ""
    return max(_retry_after_seconds(header), wait_random_exponential(multiplier=0.25, max=30)(state))


def _retry_after_seconds(header: str) -> float:
    """The seconds from now that a Retry-After header specifies, as a number or a date; 0 if it is neither."""
    try:
        seconds = float(header)
        return seconds if math.isfinite(seconds) else 0.0
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(header)
    except ValueError:
        return 0.0
    return (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()


def _status(error: Exception) -> Status:
    text = str(error).lower()
    if isinstance(error, openai.APIStatusError) and error.status_code in (400, 413, 422):
        if any(phrase in text for phrase in _REFUSED):
            return "refused"
        if any(phrase in text for phrase in _TOO_LONG):
            return "truncated"
    return "infrastructure"
