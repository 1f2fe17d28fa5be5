"""One limiter for all calls of a critic: requests and tokens a minute, and what they may cost."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

_WINDOW = 60.0


class CostCap(RuntimeError):
    """What the critic's calls have cost is at the cap."""


@dataclass(slots=True)
class _Call:
    began: float
    tokens: float
    recent: bool = True


class Limiter:
    """Lets a call begin when the last minute has room for it: so many requests, so many tokens; None is no limit.

    Tokens are counted when a call has ended; one that has not is taken for as large as the mean so far. ``cost_cap`` is
    in the unit of the prices: what has begun before it is reached is still paid for. Threads may share a limiter.
    """

    def __init__(
        self,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        cost_cap: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._requests, self._tokens, self._cap, self._clock = requests_per_minute, tokens_per_minute, cost_cap, clock
        self._lock = threading.Lock()
        self._recent: deque[_Call] = deque()
        self._recent_tokens = 0.0
        self._ended, self._used = 0, 0.0
        self.cost = 0.0

    async def turn(self) -> Callable[[int, float], None]:
        """Wait for a turn to call; what it gives is to be told the call's tokens and cost.

        Raises:
            CostCap: the calls so far have cost the cap.
        """
        while not isinstance(call := self._begun(), _Call):
            await asyncio.sleep(call)
        return partial(self._count, call)

    def _count(self, call: _Call, tokens: int, cost: float) -> None:
        with self._lock:
            if call.recent:
                self._recent_tokens += tokens - call.tokens
            call.tokens = tokens
            self._ended += 1
            self._used += tokens
            self.cost += cost

    def _begun(self) -> _Call | float:
        """A call that may begin now, or the seconds until there may be room for one."""
        with self._lock:
            now = self._clock()
            while self._recent and self._recent[0].began <= now - _WINDOW:
                gone = self._recent.popleft()
                gone.recent = False
                self._recent_tokens -= gone.tokens
            full = self._requests is not None and len(self._recent) >= self._requests
            full |= self._tokens is not None and self._recent_tokens >= self._tokens
            if full and self._recent:
                return max(self._recent[0].began + _WINDOW - now, 0.001)
            if self._cap is not None and self.cost >= self._cap:
                raise CostCap(f"the critic's calls have cost {self.cost:g}, and the cap is {self._cap:g}")
            call = _Call(now, self._used / self._ended if self._ended else 0.0)
            self._recent.append(call)
            self._recent_tokens += call.tokens
            return call
