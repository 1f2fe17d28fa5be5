"""Experience of the methods whose loss is a sum over tokens: policy gradients and imitation."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from grape_rl.types import Sequences, TokenBatch


@dataclass(frozen=True)
class TokenExperience:
    """Training data of one step: sequences with an advantage for each token.

    Attributes:
        sequences: the prompts and responses.
        batch: the per-token fields that the loss reads.
        metrics: numbers for the log.
        warnings: keys and messages for the log.
        records: the sampled responses as plain data; empty if nothing was sampled.
        memory: numbers for the next step, by name.
    """

    sequences: Sequences
    batch: TokenBatch
    metrics: dict[str, float]
    warnings: tuple[tuple[str, str], ...] = ()
    records: tuple[dict[str, Any], ...] = ()
    memory: Mapping[str, float] = field(default_factory=dict[str, float])
