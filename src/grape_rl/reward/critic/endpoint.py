"""A critic behind any server that speaks OpenAI's chat completions: vLLM, SGLang, llama.cpp, hosted ones."""

import asyncio
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import openai
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_delay, wait_random_exponential

from grape_rl.reward.critic.limiter import CostCap, Limiter
from grape_rl.reward.critic.reply import Reply
from grape_rl.reward.critic.where import Endpoint
from grape_rl.types import Status


class Client:
    """Calls an endpoint, within its limits. It belongs to one event loop."""

    def __init__(self, endpoint: Endpoint, limiter: Limiter) -> None:
        self.endpoint, self.limiter = endpoint, limiter
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
        self, messages: Sequence[Mapping[str, str]], schema: Mapping[str, Any], labels: Sequence[str], seed: int
    ) -> Reply:
        """The critic's answer; with ``labels``, their log-probs as the whole answer instead of reasoning.

        Time-outs, 408, 429 and 5xx are tried again, with growing pauses (and those that the server asks for), until
        ``total_timeout_s``. What stays without an answer is a typed failure, never an exception; only the cost cap is.

        Raises:
            CostCap: the calls so far have cost the cap.
        """
        of = self.endpoint
        tries = 0
        try:
            async with asyncio.timeout(of.total_timeout_s):
                async for attempt in AsyncRetrying(
                    retry=retry_if_exception(_passing),
                    wait=_pause,
                    stop=stop_after_delay(of.total_timeout_s),
                    reraise=True,
                ):
                    with attempt:
                        tries += 1
                        return await self._tried(messages, schema, labels, seed, tries)
        except CostCap:
            raise
        except (TimeoutError, openai.APITimeoutError):
            return Reply(f"no answer within {of.total_timeout_s:g} s", status="timeout", tries=tries)
        except (openai.OpenAIError, ValueError) as error:  # a server may send what is no JSON at all
            return Reply(_said(error), status=_status(error), tries=tries)
        raise AssertionError("a try ends in an answer or an error")

    async def _tried(
        self,
        messages: Sequence[Mapping[str, str]],
        schema: Mapping[str, Any],
        labels: Sequence[str],
        seed: int,
        tries: int,
    ) -> Reply:
        of = self.endpoint
        async with self.limiter.turn() as ended:
            try:
                found = await self._asked(messages, schema, labels, seed)
            except openai.BadRequestError as error:
                if self._structured == "prompted" or labels or "response_format" not in str(error):
                    raise
                self._structured = "prompted"  # the server knows no schemas
                found = await self._asked(messages, schema, labels, seed)
            used = found.usage
            prompt, completion = (used.prompt_tokens, used.completion_tokens) if used else (0, 0)
            cost = (prompt * of.prompt_price + completion * of.completion_price) / 1e6
            ended(prompt + completion, cost)
        if not found.choices:
            return Reply("no choice in the answer", status="infrastructure", tries=tries, cost=cost)
        choice = found.choices[0]
        refusal = getattr(choice.message, "refusal", None)
        return Reply(
            refusal or choice.message.content or "",
            choice.finish_reason or "stop",
            "refused" if refusal else "ok",
            _label_logp(choice, labels),
            prompt,
            completion,
            cost,
            tries,
        )

    async def _asked(
        self, messages: Sequence[Mapping[str, str]], schema: Mapping[str, Any], labels: Sequence[str], seed: int
    ) -> ChatCompletion:
        of = self.endpoint
        asked: dict[str, Any] = {"model": of.model, "messages": list(messages), "seed": seed, **of.extra}
        if labels:
            asked |= {"max_tokens": 1, "temperature": 0.0, "logprobs": True, "top_logprobs": 20}
        else:
            asked |= {"max_tokens": of.max_tokens, "temperature": of.temperature}
            if self._structured == "json_schema":
                form = {"name": "verdict", "schema": dict(schema), "strict": True}
                asked["response_format"] = {"type": "json_schema", "json_schema": form}
        return await self._client.chat.completions.create(**asked)


def _label_logp(choice: Any, labels: Sequence[str]) -> dict[str, float]:
    """The log-probability of each label's first token as the answer's first token.

    A label that is not among the tokens told has at most the probability of the least likely one: that is taken.

    No label is told where two of them begin with the same token, or none is among those told.
    """
    content = choice.logprobs.content if labels and choice.logprobs else None
    if not content:
        return {}
    told: dict[str, float] = {}
    for each in content[0].top_logprobs:
        word = each.token.strip().strip('"').casefold()
        begins = [label for label in labels if word and label.casefold().startswith(word)]
        if len(begins) > 1:
            return {}
        for label in begins:  # " yes" and "Yes" are the same label
            told[label] = math.log(math.exp(told.get(label, -math.inf)) + math.exp(each.logprob))
    least: float = min(each.logprob for each in content[0].top_logprobs)
    return dict.fromkeys(labels, least) | told if told else {}


def _passing(error: BaseException) -> bool:
    """Whether a failure may pass by itself."""
    if isinstance(error, openai.APIStatusError):
        return error.status_code in (408, 429) or error.status_code >= 500
    return isinstance(error, openai.APIConnectionError)  # time-outs among them


def _pause(state: RetryCallState) -> float:
    """Seconds until the next try: what the server asks for, or a random one up to a growing bound."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.response.headers.get("retry-after", "") if isinstance(error, openai.APIStatusError) else ""
    try:
        return max(0.0, float(asked))
    except ValueError:
        return wait_random_exponential(multiplier=0.25, max=30)(state)


def _status(error: Exception) -> Status:
    if isinstance(error, openai.APIStatusError) and error.status_code == 400 and "content" in str(error).lower():
        refused = any(word in str(error).lower() for word in ("content_filter", "content policy", "content management"))
        return "refused" if refused else "infrastructure"
    return "infrastructure"


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
