"""Judging responses by critics: every question of a batch, within the critics' limits, and the answers as verdicts."""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import MappingProxyType

from grape_rl.reward.critic.batch import Batch, Critic
from grape_rl.reward.critic.plan import Job
from grape_rl.reward.critic.usage import Usage
from grape_rl.types import Verdict

__all__ = ["Critic", "Job", "Judging", "Usage"]


Computed = Callable[[Sequence[Job]], list[Verdict]]
"""A critic that computes here: a batch's jobs → their verdicts."""


class Judging:
    """Asks critics, by name. Each batch has a thread, an event loop and connections of its own, which end with it.

    ``critics`` makes each critic of a batch. ``cache`` is a file that keeps the answers. ``computed`` are the critics
    that compute here, by name: in the caller's thread, where the device's other work is, and without the cache.
    ``usage`` is what all batches have used so far; what a step used is its difference.
    """

    def __init__(
        self,
        critics: Mapping[str, Callable[[], Critic]],
        cache: Path | None = None,
        computed: Mapping[str, Computed] = MappingProxyType({}),
    ) -> None:
        self.usage = Usage()
        self._critics, self._cache, self._computed = critics, cache, computed
        self._lock, self._counting = threading.Lock(), threading.Lock()
        self._open: Batch | None = None
        self._begun: list[Batch] = []

    def ahead(self, jobs: Sequence[Job]) -> None:
        """Start judging some of the jobs that the next ``begin`` will have, while the others are not there yet.

        Verdicts do not depend on it. Items that share a call (``calls: batched``) have to come together, or the call is
        made in vain. Whatever goes wrong is told by the result of ``begin``.
        """
        if served := self._served(jobs):
            with self._lock:
                self._batch().add(served)

    def begin(self, jobs: Sequence[Job]) -> "Future[list[Verdict]]":
        """Start judging, while others compute; the result is each job's verdict, in their order.

        The critics that compute here have done so when this returns: meanwhile the others are waited for. The result
        raises ``CostCap`` where a critic's calls have cost its cap.
        """
        with self._lock:
            batch, self._open = self._batch(), None
            self._begun = [each for each in self._begun if not each.result.done()] + [batch]
            asked = batch.finish(self._served(jobs))
        parts = {name: [job for job in jobs if job.judge.critic == name] for name in self._computed}
        here = {name: iter(self._computed[name](part)) for name, part in parts.items()}
        found: Future[list[Verdict]] = Future()

        def told(served: "Future[list[Verdict]]") -> None:
            if error := served.exception():
                found.set_exception(error)
            else:
                others = iter(served.result())
                found.set_result([next(here.get(job.judge.critic, others)) for job in jobs])

        asked.add_done_callback(told)
        return found

    def verdicts(self, jobs: Sequence[Job]) -> list[Verdict]:
        """The verdicts of the jobs, in their order.

        Raises:
            CostCap: a critic's calls have cost its cap.
        """
        return self.begin(jobs).result()

    def close(self) -> None:
        """End what is under way, such as judging ahead of a batch that never came. The cache keeps the answers."""
        with self._lock:
            under_way, self._open, self._begun = [*self._begun, self._open], None, []
        for batch in under_way:
            if batch:
                batch.stop()

    def _served(self, jobs: Sequence[Job]) -> list[Job]:
        return [job for job in jobs if job.judge.critic not in self._computed]

    def _batch(self) -> Batch:
        self._open = self._open or Batch(self._critics, self._cache, self._count)
        return self._open

    def _count(self, used: Usage) -> None:
        with self._counting:
            self.usage += used
