"""The limiter on a clock of its own: so many requests and tokens in any minute."""

import asyncio

import pytest

from grape_rl.reward.critic.limiter import CostCap, Limiter


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
            async with limiter.turn() as ended:
                found.append(clock.now)
                ended(tokens, cost)
        return found

    return asyncio.run(run())


def test_requests_a_minute(clock):
    found = starts(Limiter(8, requests_per_minute=3, clock=clock), clock, 8)
    assert found == pytest.approx([0, 0, 0, 60, 60, 60, 120, 120])


def test_tokens_a_minute(clock):
    found = starts(Limiter(8, tokens_per_minute=100, clock=clock), clock, 5, tokens=50)
    assert found == pytest.approx([0, 0, 60, 60, 120])


def test_no_limits_no_waiting(clock):
    assert starts(Limiter(1, clock=clock), clock, 50, tokens=10**6) == [0] * 50


def test_the_cost_cap(clock):
    limiter = Limiter(1, cost_cap=2.0, clock=clock)
    with pytest.raises(CostCap):
        starts(limiter, clock, 5, cost=1.0)
    assert limiter.cost == 2
