"""Judging a batch: every call of every item at once, within the critic's limits, and their answers as verdicts."""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from grape_rl.reward.critic.cache import Cache, key
from grape_rl.reward.critic.item import Judge
from grape_rl.reward.critic.limiter import CostCap
from grape_rl.reward.critic.prompt import mark_of, messages, schema
from grape_rl.reward.critic.reply import Reply, judged, reading
from grape_rl.types import Response, Verdict


class Job(NamedTuple):
    """A verdict to give: on which item, by what criterion (its look-ups filled in), and of which response.

    ``worst`` is the score that hurts the response most: 0, or 1 on a pitfall.
    """

    item: str
    judge: Judge
    response: Response
    worst: float = 0.0


class Critic(Protocol):
    """Whatever answers a conversation: a server's ``Client``."""

    name: str
    """Which model it is and how it is asked: a part of the key of its answers."""

    async def reply(
        self, messages: Sequence[Mapping[str, str]], schema: Mapping[str, Any], labels: Sequence[str], seed: int
    ) -> Reply:
        """The answer, or a typed failure."""
        ...

    async def close(self) -> None:
        """Give back what it holds."""
        ...


@dataclass
class Usage:
    """What judging has used: calls, those of them that the cache answered, tries, tokens and cost."""

    calls: int = 0
    cached: int = 0
    tries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0


Computed = Callable[[Sequence[Job]], list[Verdict]]
"""A critic that computes here: a batch's jobs → their verdicts."""


class Judging:
    """Asks critics, by name. Each batch has a thread, an event loop and connections of its own, which end with it.

    ``critics`` makes each critic of a batch. ``cache`` is a file that keeps the answers. ``computed`` are the critics
    that compute here, by name: in the caller's thread, where the device's other work is, and without the cache.
    """

    def __init__(
        self,
        critics: Mapping[str, Callable[[], Critic]],
        cache: Path | None = None,
        computed: Mapping[str, Computed] = MappingProxyType({}),
    ) -> None:
        self.usage = Usage()
        self._critics, self._cache, self._computed = critics, cache, computed

    def begin(self, jobs: Sequence[Job]) -> "Future[list[Verdict]]":
        """Start judging, while others compute; the result is each job's verdict, in their order.

        The critics that compute here have done so when this returns: meanwhile the others are waited for.
        """
        pool = ThreadPoolExecutor(1, thread_name_prefix="critic")
        by_critic = {name: [job for job in jobs if job.judge.critic == name] for name in self._computed}
        asked = pool.submit(lambda: asyncio.run(self._judged([j for j in jobs if j.judge.critic not in by_critic])))
        here = {name: iter(self._computed[name](part)) for name, part in by_critic.items() if part}

        def in_order() -> list[Verdict]:
            served = iter(asked.result())
            return [next(here.get(job.judge.critic, served)) for job in jobs]

        found = pool.submit(in_order)
        pool.shutdown(wait=False)
        return found

    def verdicts(self, jobs: Sequence[Job]) -> list[Verdict]:
        """The verdicts of the jobs, in their order.

        Raises:
            CostCap: a critic's calls have cost its cap.
        """
        return self.begin(jobs).result()

    async def _judged(self, jobs: Sequence[Job]) -> list[Verdict]:
        # One mark for the batch, made of all that its judges read: no text can know it, and prompts begin alike.
        mark = mark_of(*(text for _, judge, of, _ in jobs for text in (of.prompt, of.text, judge.reference)))
        critics = {name: self._critics[name]() for name in {judge.critic for _, judge, _, _ in jobs}}
        cache = Cache(self._cache) if self._cache else None
        try:
            async with asyncio.TaskGroup() as tasks:
                waiting = [
                    [
                        tasks.create_task(self._reply(critics[judge.critic], cache, judge, response, mark, n))
                        for n in range(judge.confidence.k)
                    ]
                    for _, judge, response, _ in jobs
                ]
        except* CostCap as caps:
            raise caps.exceptions[0] from None
        finally:
            for critic in critics.values():
                await critic.close()
            if cache:
                cache.close()
        return [
            judged(item, judge, [reading(each.result(), judge) for each in calls], f"critic {judge.critic}")
            for (item, judge, _, _), calls in zip(jobs, waiting, strict=True)
        ]

    async def _reply(
        self, critic: Critic, cache: Cache | None, judge: Judge, response: Response, mark: str, sample: int
    ) -> Reply:
        asked, form = messages(judge, response, mark), schema(judge)
        labels = tuple(judge.labels) if judge.confidence.mode == "logprob" else ()
        told = json.loads(json.dumps(asked).replace(json.dumps(mark)[1:-1], "[mark]"))
        called = key({"critic": critic.name, "messages": told, "schema": form, "labels": labels, "sample": sample})
        self.usage.calls += 1
        if cache and (found := cache.get(called)):
            self.usage.cached += 1
            return found
        reply = await critic.reply(asked, form, labels, sample)
        self.usage.tries += reply.tries
        self.usage.prompt_tokens += reply.prompt_tokens
        self.usage.completion_tokens += reply.completion_tokens
        self.usage.cost += reply.cost
        if cache:
            cache.put(called, reply)
        return reply
