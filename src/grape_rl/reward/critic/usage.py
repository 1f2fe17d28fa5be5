"""What judging has used."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Usage:
    """Calls, those of them that the cache answered, tries of the others, tokens and cost.

    A part of a run's use is a difference.

    >>> Usage(5, 1, 4, cost=2.0) - Usage(2, 0, 2, cost=0.5)
    Usage(calls=3, cached=1, tries=2, prompt_tokens=0, completion_tokens=0, cost=1.5)
    """

    calls: int = 0
    cached: int = 0
    tries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def __sub__(self, other: "Usage") -> "Usage":
        return Usage(*(getattr(self, each.name) - getattr(other, each.name) for each in fields(self)))
