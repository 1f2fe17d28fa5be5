"""A batch of judging: a thread with an event loop and connections of its own, in which a few workers ask questions."""

import asyncio
import atexit
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

from grape_rl.reward.critic.cache import Cache, key
from grape_rl.reward.critic.plan import Fault, Job, Place, Question, planned
from grape_rl.reward.critic.prompt import mark_of, messages, schema
from grape_rl.reward.critic.reply import Reading, Reply, judged, readings
from grape_rl.reward.critic.usage import Usage
from grape_rl.types import Verdict


@runtime_checkable
class Critic(Protocol):
    """Whatever answers a conversation: a server's ``Client``."""

    name: str
    """Which model it is and how it is asked: a part of the key of its answers."""
    concurrency: int
    """How many questions it is asked at once."""
    deadline_s: float | None
    """How long after the last question of a batch it may answer; None is for ever."""

    async def reply(
        self,
        messages: Sequence[Mapping[str, str]],
        schema: Mapping[str, object],
        labels: Sequence[str],
        seed: int,
        items: int = 1,
    ) -> Reply:
        """The answer on so many items, or a typed failure."""
        ...

    async def close(self) -> None:
        """Give back what it holds."""
        ...


_Waiting: TypeAlias = "asyncio.Queue[tuple[Question, int] | None]"


@dataclass(eq=False)
class _Line:
    """A critic, the questions that wait for it, and who asks them."""

    critic: Critic
    waiting: _Waiting = field(default_factory=asyncio.Queue)
    workers: list["asyncio.Task[None]"] = field(default_factory=list)


class Batch:
    """Questions under way. ``add`` gives it more of them, ``finish`` the last, and the jobs whose verdicts are its
    ``result``; ``stop`` ends it at once. Its thread ends with the result, whatever that is."""

    def __init__(
        self, critics: Mapping[str, Callable[[], Critic]], cache: Path | None, count: Callable[[Usage], None]
    ) -> None:
        self.result: Future[list[Verdict]] = Future()
        self.result.set_running_or_notify_cancel()  # so that nobody cancels it: what is asked is asked
        self._critics, self._path, self._count = critics, cache, count
        self._readings: dict[tuple[object, ...], list[list[Reading] | None]] = {}
        self._lines: dict[str, _Line] = {}
        self._verdicts: Callable[[], list[Verdict]] = list
        self._inbox: asyncio.Queue[list[Question] | None] = asyncio.Queue()
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(self._answered())
        self._thread = threading.Thread(target=self._run, name="critic", daemon=True)
        atexit.register(self.stop)  # a run that fails does not wait for critics, and loses no answer
        self._thread.start()

    def add(self, jobs: Sequence[Job]) -> list[Place | Fault]:
        """Ask what these jobs need and was not asked yet."""
        questions, places = planned(jobs)
        new = [each for each in questions if each.key not in self._readings]
        self._readings.update((each.key, [None] * each.samples) for each in new)
        self._tell(self._inbox.put_nowait, new)
        return places

    def finish(self, jobs: Sequence[Job]) -> "Future[list[Verdict]]":
        """Ask the last questions; the result is these jobs' verdicts, in their order."""
        places = self.add(jobs)
        self._verdicts = lambda: self._of(jobs, places)
        self._tell(self._inbox.put_nowait, None)
        return self.result

    def stop(self) -> None:
        """End it, with its thread and connections, whatever is under way."""
        self._tell(self._task.cancel)
        self._thread.join()

    def _tell(self, what: Callable[..., object], *arguments: object) -> None:
        with suppress(RuntimeError):  # it has ended: its result says why
            self._loop.call_soon_threadsafe(what, *arguments)

    def _run(self) -> None:
        try:
            try:
                self._loop.run_until_complete(self._task)
            finally:
                self._loop.run_until_complete(self._loop.shutdown_asyncgens())
                self._loop.run_until_complete(self._loop.shutdown_default_executor())
                self._loop.close()
            self.result.set_result(self._verdicts())
        except asyncio.CancelledError:
            self.result.set_exception(RuntimeError("judging was stopped before all of its verdicts were there"))
        except BaseException as error:
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            self.result.set_exception(error)
        finally:
            atexit.unregister(self.stop)

    async def _answered(self) -> None:
        cache = Cache(self._path) if self._path else None
        try:
            async with asyncio.TaskGroup() as tasks:
                while (questions := await self._inbox.get()) is not None:
                    for each in questions:
                        self._ask(each, tasks, cache)
                for line in self._lines.values():
                    for worker in line.workers:
                        line.waiting.put_nowait(None)
                        if line.critic.deadline_s is not None:
                            self._loop.call_later(line.critic.deadline_s, worker.cancel)
        finally:
            for line in self._lines.values():
                await line.critic.close()
            if cache:
                cache.close()

    def _ask(self, question: Question, tasks: asyncio.TaskGroup, cache: Cache | None) -> None:
        line = self._lines.get(question.critic)
        if line is None:
            line = self._lines[question.critic] = _Line(self._critics[question.critic]())
        for sample in range(question.samples):
            line.waiting.put_nowait((question, sample))
            if len(line.workers) < line.critic.concurrency:
                line.workers.append(tasks.create_task(self._work(line, cache)))

    async def _work(self, line: _Line, cache: Cache | None) -> None:
        while (asked := await line.waiting.get()) is not None:
            question, sample = asked
            self._readings[question.key][sample] = await self._read(line.critic, cache, question, sample)

    async def _read(self, critic: Critic, cache: Cache | None, question: Question, sample: int) -> list[Reading]:
        """What the critic says of each of the question's judges, in their order there."""
        order = question.order(sample)
        judges = [question.judges[i] for i in order]
        asked, form = messages(judges, question.response, mark_of(question.response.prompt)), schema(judges)
        labels = tuple(judges[0].labels) if judges[0].confidence.mode == "logprob" else ()
        said = {"critic": critic.name, "messages": asked, "schema": form, "labels": labels, "sample": sample}
        called = key(said) if cache else ""
        kept = cache.get(called) if cache else None
        reply = kept or await critic.reply(asked, form, labels, sample, len(judges))
        self._count(
            Usage(1, int(kept is not None), reply.tries, reply.prompt_tokens, reply.completion_tokens, reply.cost)
        )
        found = readings(reply, judges)
        if cache and not kept and all(each.status == "ok" for each in found):
            cache.put(called, reply)
        return [found[order.index(i)] for i in range(len(order))]

    def _of(self, jobs: Sequence[Job], places: Sequence[Place | Fault]) -> list[Verdict]:
        """The verdicts of the jobs. What several share costs the first of them."""
        found: list[Verdict] = []
        paid: set[Place] = set()
        for (item, judge, _, worst), place in zip(jobs, places, strict=True):
            provenance = f"critic {judge.critic}"
            if isinstance(place, Fault):
                found.append(Verdict(item, worst, 1.0, "policy_fault", place.why, provenance))
                continue
            late = Reading(status="timeout", reasoning="no answer by the critic's deadline_s for a batch")
            told = [late if each is None else each[place.judge] for each in self._readings[place.key]]
            verdict = judged(item, judge, told, provenance)
            found.append(replace(verdict, cost=0.0, tokens=0) if place in paid else verdict)
            paid.add(place)
        return found
