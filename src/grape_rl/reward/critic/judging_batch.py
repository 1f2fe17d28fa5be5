"""One batch of judging: a thread with an event loop and connections of its own, in which workers call the critics."""

import asyncio
import atexit
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

from grape_rl.reward.critic.prompt import answer_schema, fence_mark, judge_messages
from grape_rl.reward.critic.questions import AnswerPlace, CriticJob, PolicyFault, Question, plan_questions
from grape_rl.reward.critic.reply import ItemAnswer, Reply, combine_answers, parse_reply
from grape_rl.reward.critic.reply_cache import ReplyCache, reply_key
from grape_rl.reward.critic.usage import CriticUsage
from grape_rl.types import Verdict


@runtime_checkable
class Critic(Protocol):
    """Anything that answers a conversation, such as a server's ``Client``."""

    name: str
    """The model and its settings: a part of the cache key."""
    concurrency: int
    """The largest number of calls at a time."""
    deadline_s: float | None
    """Seconds for answers after the last question of a batch; None for no deadline."""

    async def reply(
        self,
        messages: Sequence[Mapping[str, str]],
        schema: Mapping[str, object],
        labels: Sequence[str],
        seed: int,
        items: int = 1,
    ) -> Reply:
        """The answer about ``items`` items, or a typed failure."""
        ...

    async def close(self) -> None:
        """Close connections and release resources."""
        ...


_Queue: TypeAlias = "asyncio.Queue[tuple[Question, int] | None]"


@dataclass(eq=False)
class _Line:
    """A critic, its queue of questions (each with the number of a sample), and the workers that call it."""

    critic: Critic
    queue: _Queue = field(default_factory=asyncio.Queue)
    workers: list["asyncio.Task[None]"] = field(default_factory=list)


class JudgingBatch:
    """Questions in progress.

    ``add`` adds questions; ``finish`` adds the last ones and fixes the jobs whose verdicts are the ``result``; ``stop``
    cancels the batch. Its thread ends as soon as the result is set, to verdicts or to an exception.
    """

    def __init__(
        self, critics: Mapping[str, Callable[[], Critic]], cache: Path | None, count: Callable[[CriticUsage], None]
    ) -> None:
        self.result: Future[list[Verdict]] = Future()
        self.result.set_running_or_notify_cancel()  # not cancellable: questions that were sent cannot be taken back
        self._critics, self._path, self._count = critics, cache, count
        self._answers: dict[tuple[object, ...], list[list[ItemAnswer] | None]] = {}
        self._lines: dict[str, _Line] = {}
        self._verdicts: Callable[[], list[Verdict]] = list
        self._inbox: asyncio.Queue[list[Question] | None] = asyncio.Queue()
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(self._answer_all())
        self._thread = threading.Thread(target=self._run, name="critic", daemon=True)
        atexit.register(self.stop)  # a run that fails does not wait for critics and loses no cached answer
        self._thread.start()

    def add(self, jobs: Sequence[CriticJob]) -> list[AnswerPlace | PolicyFault]:
        """Ask the questions of these jobs that were not asked yet; returns the place of each job's answer."""
        questions, places = plan_questions(jobs)
        new = [question for question in questions if question.key not in self._answers]
        self._answers.update((question.key, [None] * question.samples) for question in new)
        self._call_in_loop(self._inbox.put_nowait, new)
        return places

    def finish(self, jobs: Sequence[CriticJob]) -> "Future[list[Verdict]]":
        """Ask the last questions; the future's result is the verdicts of these jobs, in order."""
        places = self.add(jobs)
        self._verdicts = lambda: self._verdicts_of(jobs, places)
        self._call_in_loop(self._inbox.put_nowait, None)
        return self.result

    def stop(self) -> None:
        """Cancel unfinished calls, and end the thread and its connections."""
        self._call_in_loop(self._task.cancel)
        self._thread.join()

    def _call_in_loop(self, function: Callable[..., object], *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop has ended: the result has the reason
            self._loop.call_soon_threadsafe(function, *arguments)

    def _run(self) -> None:
        """The thread's main function: run the loop to its end, then set the result."""
        try:
            try:
                self._loop.run_until_complete(self._task)
            finally:
                self._loop.run_until_complete(self._loop.shutdown_asyncgens())
                self._loop.run_until_complete(self._loop.shutdown_default_executor())
                self._loop.close()
            self.result.set_result(self._verdicts())
        except asyncio.CancelledError:
            self.result.set_exception(RuntimeError("judging was stopped before all verdicts had arrived"))
        except BaseException as error:
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            self.result.set_exception(error)
        finally:
            atexit.unregister(self.stop)

    async def _answer_all(self) -> None:
        cache = ReplyCache(self._path) if self._path else None
        try:
            async with asyncio.TaskGroup() as tasks:
                while (questions := await self._inbox.get()) is not None:
                    for question in questions:
                        self._enqueue(question, tasks, cache)
                # No question follows: let the workers end with their queue, or at the deadline.
                for line in self._lines.values():
                    for worker in line.workers:
                        line.queue.put_nowait(None)
                        if line.critic.deadline_s is not None:
                            self._loop.call_later(line.critic.deadline_s, worker.cancel)
        finally:
            for line in self._lines.values():
                await line.critic.close()
            if cache:
                cache.close()

    def _enqueue(self, question: Question, tasks: asyncio.TaskGroup, cache: ReplyCache | None) -> None:
        line = self._lines.get(question.critic)
        if line is None:
            line = self._lines[question.critic] = _Line(self._critics[question.critic]())
        for sample in range(question.samples):
            line.queue.put_nowait((question, sample))
            if len(line.workers) < line.critic.concurrency:
                line.workers.append(tasks.create_task(self._work(line, cache)))

    async def _work(self, line: _Line, cache: ReplyCache | None) -> None:
        while (entry := await line.queue.get()) is not None:
            question, sample = entry
            self._answers[question.key][sample] = await self._ask(line.critic, cache, question, sample)

    async def _ask(self, critic: Critic, cache: ReplyCache | None, question: Question, sample: int) -> list[ItemAnswer]:
        """The critic's answer for each of the question's judges, in their order, from the cache if it is there."""
        order = question.order(sample)
        judges = [question.judges[i] for i in order]
        messages = judge_messages(judges, question.response, fence_mark(question.response.prompt))
        schema = answer_schema(judges)
        labels = tuple(judges[0].labels) if judges[0].confidence.mode == "logprob" else ()
        call = {"critic": critic.name, "messages": messages, "schema": schema, "labels": labels, "sample": sample}
        key = reply_key(call) if cache else ""
        cached = cache.get(key) if cache else None
        reply = cached or await critic.reply(messages, schema, labels, sample, len(judges))
        self._count(
            CriticUsage(
                1, int(cached is not None), reply.tries, reply.prompt_tokens, reply.completion_tokens, reply.cost
            )
        )
        answers = parse_reply(reply, judges)
        if cache and not cached and all(answer.status == "ok" for answer in answers):
            cache.put(key, reply)
        return [answers[order.index(i)] for i in range(len(order))]

    def _verdicts_of(self, jobs: Sequence[CriticJob], places: Sequence[AnswerPlace | PolicyFault]) -> list[Verdict]:
        """The verdicts of the jobs. The first of several jobs that share an answer has its cost, the rest cost 0."""
        verdicts: list[Verdict] = []
        paid: set[AnswerPlace] = set()
        for (item, judge, _, worst), place in zip(jobs, places, strict=True):
            provenance = f"critic {judge.critic}"
            if isinstance(place, PolicyFault):
                verdicts.append(Verdict(item, worst, 1.0, "policy_fault", place.reason, provenance))
                continue
            late = ItemAnswer(status="timeout", reasoning="no answer within the critic's deadline_s for a batch")
            answers = [late if sample is None else sample[place.position] for sample in self._answers[place.key]]
            verdict = combine_answers(item, judge, answers, provenance)
            verdicts.append(replace(verdict, cost=0.0, tokens=0) if place in paid else verdict)
            paid.add(place)
        return verdicts
