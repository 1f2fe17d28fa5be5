"""Log-probabilities of sequences under a model that is not trained, such as the reference policy."""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from grape_rl.model.forward import ForwardContext
from grape_rl.model.logprobs import compute_logprobs, microbatches, select_rows
from grape_rl.types import Sequences

LogprobFunction = Callable[[Sequences], Float[Tensor, "b t"]]
"""Sequences → the log-probability (nats) of each token under a fixed model; 0 where ``mask`` is False."""


def reference_logprobs(model: nn.Module, forward: ForwardContext) -> LogprobFunction:
    """A function from sequences to their log-probs under ``model``, in float32 on the CPU, without gradients."""

    def reference(sequences: Sequences) -> Float[Tensor, "b t"]:
        parts = microbatches(sequences, forward.tokens_per_microbatch)
        return microbatched_logprobs(parts, model, sequences, forward).float()

    return reference


@torch.no_grad()
def microbatched_logprobs(
    parts: Iterable[Int[Tensor, " _"]], model: nn.Module, sequences: Sequences, forward: ForwardContext
) -> Float[Tensor, "b t"]:
    """Log-probs of sequences on the CPU, without gradients, one forward pass for each micro-batch of rows.

    ``parts`` are the micro-batches: each row is in exactly one. The result has the precision that the model computes.
    """
    logp: Tensor | None = None
    for rows in parts:
        with forward.precision():
            part = compute_logprobs(model, select_rows(sequences, rows), forward.temperature).logp.cpu()
        logp = torch.zeros(sequences.mask.shape, dtype=part.dtype) if logp is None else logp
        logp[rows, : part.shape[1]] = part
    assert logp is not None, "no sequences"
    return logp
