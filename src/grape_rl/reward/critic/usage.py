"""Calls, tokens and cost that critics have used."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class CriticUsage:
    """Usage of critics: calls, calls answered by the cache, tries of all other calls, tokens, and cost.

    The difference of two totals is the usage between them.

    >>> CriticUsage(5, 1, 4, cost=2.0) - CriticUsage(2, 0, 2, cost=0.5)
    CriticUsage(calls=3, cached=1, tries=2, prompt_tokens=0, completion_tokens=0, cost=1.5)
    """

    calls: int = 0
    cached: int = 0
    tries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0

    def __add__(self, other: "CriticUsage") -> "CriticUsage":
        return CriticUsage(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def __sub__(self, other: "CriticUsage") -> "CriticUsage":
        return CriticUsage(*(getattr(self, field.name) - getattr(other, field.name) for field in fields(self)))
