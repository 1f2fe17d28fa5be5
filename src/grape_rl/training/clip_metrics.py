"""The metrics ``clip_ratio`` and ``value_clip_ratio``: the share of tokens on which a loss is clipped."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from grape_rl.maths.clip_fraction import (
    ratio_clipped,
    ring_clipped,
    sequence_ratio_clipped,
    value_clipped,
    weight_clipped,
)
from grape_rl.maths.off_policy import rec_one_side, rec_ring, rec_two_side
from grape_rl.maths.surrogate import cispo, clipped, sequence_clipped
from grape_rl.maths.value import value_loss
from grape_rl.training.objective import Objective, term_fields
from grape_rl.types import Outputs, TokenBatch

CLIPPED_LOSSES: Mapping[Callable[..., Tensor], tuple[str, Callable[..., Tensor]]] = {
    clipped: ("clip_ratio", ratio_clipped),
    sequence_clipped: ("clip_ratio", sequence_ratio_clipped),
    cispo: ("clip_ratio", weight_clipped),
    rec_one_side: ("clip_ratio", ratio_clipped),
    rec_two_side: ("clip_ratio", weight_clipped),
    rec_ring: ("clip_ratio", ring_clipped),
    value_loss: ("value_clip_ratio", value_clipped),
}
"""Loss term → the metric, and the function that returns the clipped tokens. Add a new clipped loss here."""

CLIP_METRICS = tuple(dict.fromkeys(metric for metric, _ in CLIPPED_LOSSES.values()))


@torch.no_grad()
def count_clipped_tokens(objective: Objective, outputs: Outputs, batch: TokenBatch) -> dict[str, Tensor]:
    """Number of tokens on which the objective's losses are clipped, by metric; empty if no loss is clipped."""
    counts: dict[str, Tensor] = {}
    for term in objective.terms:
        if term.function in CLIPPED_LOSSES:
            metric, function = CLIPPED_LOSSES[term.function]
            inputs = term_fields(term, outputs, batch) | _defaults(term.function) | dict(term.options)
            names = inspect.signature(function).parameters
            tokens = function(**{name: inputs[name] for name in names})
            counts[metric] = (tokens & batch.mask).sum()
    return counts


def _defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """The function's options with their default values."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}
