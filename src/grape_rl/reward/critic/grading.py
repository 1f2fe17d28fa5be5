"""Judging responses by critics: every question of a batch, within the critics' limits, and the answers as verdicts."""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

from grape_rl.reward.critic.batch import Batch, Critic
from grape_rl.reward.critic.plan import Job
from grape_rl.reward.critic.usage import Usage
from grape_rl.types import Verdict

__all__ = ["Critic", "Job", "Judging", "Usage"]


class Judging:
    """Asks critics, by name. Each batch has a thread, an event loop and connections of its own, which end with it.

    ``critics`` makes each critic of a batch. ``cache`` is a file that keeps the answers. ``usage`` is what all batches
    have used so far; what a step used is its difference.
    """

    def __init__(self, critics: Mapping[str, Callable[[], Critic]], cache: Path | None = None) -> None:
        self.usage = Usage()
        self._critics, self._cache = critics, cache
        self._lock, self._counting = threading.Lock(), threading.Lock()
        self._open: Batch | None = None
        self._begun: list[Batch] = []

    def ahead(self, jobs: Sequence[Job]) -> None:
        """Start judging some of the jobs that the next ``begin`` will have, while the others are not there yet.

        Verdicts do not depend on it. Items that share a call (``calls: batched``) have to come together, or the call is
        made in vain. Whatever goes wrong is told by the result of ``begin``.
        """
        with self._lock:
            self._batch().add(jobs)

    def begin(self, jobs: Sequence[Job]) -> "Future[list[Verdict]]":
        """Start judging, while others compute; the result is each job's verdict, in their order.

        The result raises ``CostCap`` where a critic's calls have cost its cap.
        """
        with self._lock:
            batch, self._open = self._batch(), None
            self._begun = [each for each in self._begun if not each.result.done()] + [batch]
            return batch.finish(jobs)

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

    def _batch(self) -> Batch:
        self._open = self._open or Batch(self._critics, self._cache, self._count)
        return self._open

    def _count(self, used: Usage) -> None:
        with self._counting:
            self.usage += used
