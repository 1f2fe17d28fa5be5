"""One limiter for all calls to a critic: requests per minute, tokens per minute, and total cost."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

_WINDOW = 60.0


class CostCapReached(RuntimeError):
    """The calls to a critic have reached its cost cap."""


@dataclass(slots=True)
class _Call:
    began: float
    tokens: float
    recent: bool = True


class Limiter:
    """Starts a call when the last minute has room for it, by number of requests and of tokens; None is no limit.

    The tokens of a call are known when it ends; until then the mean of the ended calls is assumed. ``cost_cap`` is in
    the unit of the prices. Calls that started before the cap was reached are still paid for. Thread-safe.
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

    async def acquire(self) -> Callable[[int, float], None]:
        """Wait until a call may start. Call the returned function with the call's tokens and cost when it has ended.

        Raises:
            CostCapReached: the calls so far have reached the cost cap.
        """
        while not isinstance(call := self._start(), _Call):
            await asyncio.sleep(call)
        return partial(self._record, call)

    def _record(self, call: _Call, tokens: int, cost: float) -> None:
        with self._lock:
            if call.recent:
                self._recent_tokens += tokens - call.tokens
            call.tokens = tokens
            self._ended += 1
            self._used += tokens
            self.cost += cost

    def _start(self) -> _Call | float:
        """A call that starts now, or the seconds until there may be room for one."""
        with self._lock:
            now = self._clock()
            while self._recent and self._recent[0].began <= now - _WINDOW:
                expired = self._recent.popleft()
                expired.recent = False
                self._recent_tokens -= expired.tokens
            full = self._requests is not None and len(self._recent) >= self._requests
            full |= self._tokens is not None and self._recent_tokens >= self._tokens
            if full and self._recent:
                return max(self._recent[0].began + _WINDOW - now, 0.001)
            if self._cap is not None and self.cost >= self._cap:
                raise CostCapReached(f"the critic's calls have cost {self.cost:g}, and the cap is {self._cap:g}")
            call = _Call(now, self._used / self._ended if self._ended else 0.0)
            self._recent.append(call)
            self._recent_tokens += call.tokens
            return call
