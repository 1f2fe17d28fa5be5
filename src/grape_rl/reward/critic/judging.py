"""Judging by critics: all questions of a batch, within the critics' limits, and the answers as verdicts."""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import MappingProxyType

from grape_rl.reward.critic.judging_batch import Critic, JudgingBatch
from grape_rl.reward.critic.questions import CriticJob
from grape_rl.reward.critic.usage import CriticUsage
from grape_rl.types import Verdict

__all__ = ["Critic", "CriticJob", "CriticUsage", "Judging"]


LocalJudge = Callable[[Sequence[CriticJob]], list[Verdict]]
"""A critic in this process: the jobs of a batch → their verdicts."""


class Judging:
    """Critics by name, which judge batches of jobs.

    Each batch has its own thread, event loop and connections, which end with it. ``usage`` is the total of all batches
    so far; the usage of one step is a difference of totals.

    Args:
        critics: for each served critic, a function that creates it for one batch.
        cache: a file that caches the served critics' answers.
        local: the critics in this process. They run in the caller's thread, like all other work on the device, and do
            not use the cache.
    """

    def __init__(
        self,
        critics: Mapping[str, Callable[[], Critic]],
        cache: Path | None = None,
        local: Mapping[str, LocalJudge] = MappingProxyType({}),
    ) -> None:
        self.usage = CriticUsage()
        self._critics, self._cache, self._local = critics, cache, local
        self._lock, self._usage_lock = threading.Lock(), threading.Lock()
        self._open: JudgingBatch | None = None
        self._submitted: list[JudgingBatch] = []

    def prefetch(self, jobs: Sequence[CriticJob]) -> None:
        """Start to judge some of the jobs of the next ``submit``, before the rest of the batch is available.

        Verdicts do not depend on it. Items that share a call (``calls: batched``) must be prefetched together, or the
        call is wasted. Errors are raised by the result of ``submit``.
        """
        if served := self._served(jobs):
            with self._lock:
                self._batch().add(served)

    def submit(self, jobs: Sequence[CriticJob]) -> "Future[list[Verdict]]":
        """Start to judge a batch; the future's result is the verdict of each job, in order.

        The local critics have finished when this returns; served critics answer in the meantime and afterwards. The
        result raises ``CostCapReached`` if the calls to a critic reach its cost cap.
        """
        with self._lock:
            batch, self._open = self._batch(), None
            self._submitted = [earlier for earlier in self._submitted if not earlier.result.done()] + [batch]
            pending = batch.finish(self._served(jobs))
        local_jobs = {name: [job for job in jobs if job.judge.critic == name] for name in self._local}
        local_verdicts = {name: iter(self._local[name](jobs)) for name, jobs in local_jobs.items()}
        verdicts: Future[list[Verdict]] = Future()

        def merge(served: "Future[list[Verdict]]") -> None:
            if error := served.exception():
                verdicts.set_exception(error)
            else:
                served_verdicts = iter(served.result())
                verdicts.set_result([next(local_verdicts.get(job.judge.critic, served_verdicts)) for job in jobs])

        pending.add_done_callback(merge)
        return verdicts

    def verdicts(self, jobs: Sequence[CriticJob]) -> list[Verdict]:
        """The verdicts of the jobs, in order.

        Raises:
            CostCapReached: the calls to a critic have reached its cost cap.
        """
        return self.submit(jobs).result()

    def close(self) -> None:
        """Stop all unfinished judging, such as prefetched jobs of a batch that was never submitted.

        Answers received so far stay in the cache.
        """
        with self._lock:
            unfinished, self._open, self._submitted = [*self._submitted, self._open], None, []
        for batch in unfinished:
            if batch:
                batch.stop()

    def _served(self, jobs: Sequence[CriticJob]) -> list[CriticJob]:
        return [job for job in jobs if job.judge.critic not in self._local]

    def _batch(self) -> JudgingBatch:
        self._open = self._open or JudgingBatch(self._critics, self._cache, self._count)
        return self._open

    def _count(self, usage: CriticUsage) -> None:
        with self._usage_lock:
            self.usage += usage
