"""The limiter with a simulated clock: at most so many requests and tokens in any minute."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grape_rl.reward.critic.limiter import CostCapReached, Limiter


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    async def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("grape_rl.reward.critic.limiter.asyncio.sleep", clock.sleep)
    return clock


def starts(limiter, clock, count, tokens=0, cost=0.0):
    async def run():
        found = []
        for _ in range(count):
            ended = await limiter.acquire()
            found.append(clock.now)
            ended(tokens, cost)
        return found

    return asyncio.run(run())


def test_requests_a_minute(clock):
    found = starts(Limiter(requests_per_minute=3, clock=clock), clock, 8)
    assert found == pytest.approx([0, 0, 0, 60, 60, 60, 120, 120])


def test_tokens_a_minute(clock):
    found = starts(Limiter(tokens_per_minute=100, clock=clock), clock, 5, tokens=50)
    assert found == pytest.approx([0, 0, 60, 60, 120])


def test_without_limits_nothing_waits(clock):
    assert starts(Limiter(clock=clock), clock, 50, tokens=10**6) == [0] * 50


def test_the_cost_cap(clock):
    limiter = Limiter(cost_cap=2.0, clock=clock)
    with pytest.raises(CostCapReached):
        starts(limiter, clock, 5, cost=1.0)
    assert limiter.cost == 2


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 60), st.booleans()), max_size=40), st.integers(1, 100))
def test_the_running_sum_is_the_sum(calls, tokens):
    """Against the sum over all calls of the last minute: a call may end long after it has left that minute."""
    clock, under_way, told = Clock(), [], []
    limiter = Limiter(tokens_per_minute=tokens, clock=clock)
    for pause, size, ends_now in calls:
        clock.now += pause
        recent = sum(t for began, t in told if began > clock.now - 60)
        alone = not any(began > clock.now - 60 for began, _ in told)
        begun = limiter._start()
        assert isinstance(begun, float) == (recent >= tokens and not alone)
        if not isinstance(begun, float):
            told.append([clock.now, begun.tokens])
            under_way.append((begun, told[-1], size))
        if ends_now and under_way:
            call, entry, size = under_way.pop(0)
            limiter._record(call, size, 0.0)
            entry[1] = size


def test_a_running_call_counts_as_the_mean():
    limiter = Limiter(tokens_per_minute=100, clock=Clock())

    async def run():
        (await limiter.acquire())(40, 0.0)
        await limiter.acquire()  # 40 so far, and 40 expected
        await limiter.acquire()  # 80, and 40 expected
        return limiter._start()

    assert asyncio.run(run()) == 60


def test_a_call_that_ends_after_its_minute_counts_in_no_later_minute():
    clock = Clock()
    limiter = Limiter(tokens_per_minute=100, clock=clock)

    async def run():
        late = await limiter.acquire()
        clock.now = 61.0
        (await limiter.acquire())(10, 0.0)
        late(1000, 0.0)
        return limiter._start()

    assert not isinstance(asyncio.run(run()), float)
