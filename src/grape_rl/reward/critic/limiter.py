"""One limiter for all calls of a critic: how many at once, requests and tokens a minute, and what they may cost."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class CostCap(RuntimeError):
    """What the critic's calls have cost is at the cap."""


class Limiter:
    """Lets a call through when there is room for it: ``concurrency`` at once, and, over any minute, so many requests
    and tokens. None is no limit. Tokens are counted when a call has ended; a call that begins is taken for as large as
    the mean so far. ``cost_cap`` is in the unit of the prices."""

    def __init__(
        self,
        concurrency: int,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        cost_cap: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._concurrency = concurrency
        self._slots: tuple[asyncio.AbstractEventLoop, asyncio.Semaphore] | None = None
        self._requests, self._tokens, self._cap, self._clock = requests_per_minute, tokens_per_minute, cost_cap, clock
        self._recent: deque[list[float]] = deque()
        self._ended, self._used = 0, 0.0
        self.cost = 0.0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Callable[[int, float], None]]:
        """A turn to call; what it yields is to be told the call's tokens and cost.

        Raises:
            CostCap: the calls so far have cost the cap.
        """
        async with self._free():
            while (wait := self._wait()) > 0:
                await asyncio.sleep(wait)
            if self._cap is not None and self.cost >= self._cap:
                raise CostCap(f"the critic's calls have cost {self.cost:g}, and the cap is {self._cap:g}")
            entry = [self._clock(), self._used / self._ended if self._ended else 0.0]
            self._recent.append(entry)

            def ended(tokens: int, cost: float) -> None:
                entry[1] = float(tokens)
                self._ended += 1
                self._used += tokens
                self.cost += cost

            yield ended

    def _free(self) -> asyncio.Semaphore:
        """The slots, which belong to an event loop: another one finds them all free."""
        loop = asyncio.get_running_loop()
        if self._slots is None or self._slots[0] is not loop:
            self._slots = loop, asyncio.Semaphore(self._concurrency)
        return self._slots[1]

    def _wait(self) -> float:
        """Seconds until there is room for one more request."""
        now = self._clock()
        while self._recent and self._recent[0][0] <= now - 60:
            self._recent.popleft()
        full = self._requests is not None and len(self._recent) >= self._requests
        full |= self._tokens is not None and sum(tokens for _, tokens in self._recent) >= self._tokens
        return max(self._recent[0][0] + 60 - now, 0.001) if full and self._recent else 0.0
