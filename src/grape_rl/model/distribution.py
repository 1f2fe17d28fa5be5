"""Statistics of the full next-token distribution: its collision probability, and its KL to a reference model."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from grape_rl.model.lm_head import TILE, LogitsFunction, logits_of
from grape_rl.model.logprobs import hidden_states, to_device
from grape_rl.types import Outputs, Sequences


@dataclass(frozen=True)
class DistributionStats:
    """Statistics of the distribution π(·) that each token was chosen from; 0 where the token is masked out.

    Attributes:
        collision: log Σ_v π(v)², the log-probability that two samples are equal.
        kl: KL(reference‖π) in nats.
    """

    collision: Float[Tensor, "b t"]
    kl: Float[Tensor, "b t"]


def logprobs_with_stats(
    model: nn.Module, sequences: Sequences, reference: nn.Module | None, temperature: float = 1.0, tile: int = TILE
) -> tuple[Outputs, DistributionStats]:
    """The outputs of ``compute_logprobs`` and the statistics of each masked token's distribution, in one forward pass.

    The reference also runs on the sequences, without a graph; ``kl`` is 0 without a reference. Gradients flow through
    every field. At most ``tile`` logits of either model exist at once: more tokens x vocabulary are processed in slices
    whose logits are recomputed in backward.

    Raises:
        ValueError: a prompt has no tokens, so that nothing precedes its first response token.
    """
    # Hidden states of both models.
    sequences = to_device(sequences, next(model.parameters()).device)
    mask = sequences.mask
    tokens, hidden = sequences.tokens[mask], hidden_states(model, sequences)[mask]
    reference_hidden = None
    if reference is not None:
        with torch.no_grad():
            reference_hidden = hidden_states(reference, sequences)[mask]
    logits, reference_logits = logits_of(model), None if reference is None else logits_of(reference)
    with torch.no_grad():
        vocabulary = logits(hidden[:1]).shape[-1]

    def statistics(hidden: Tensor, reference_hidden: Tensor | None, tokens: Tensor) -> Tensor:
        return _statistics(logits, hidden, reference_logits, reference_hidden, tokens, temperature)

    # Logits and statistics, slice by slice.
    slices = list(_slices(hidden, reference_hidden, tokens, max(1, tile // vocabulary)))
    if len(slices) == 1:
        parts = [statistics(*slices[0])]
    else:
        parts = [checkpoint(statistics, *inputs, use_reentrant=False) for inputs in slices]
    fields = torch.cat(parts, dim=1)  # pyright: ignore[reportArgumentType, reportCallIssue]
    zeros = torch.zeros(mask.shape, dtype=fields.dtype, device=mask.device)
    logp, entropy, collision, kl = (zeros.masked_scatter(mask, field) for field in fields)
    return Outputs(logp, entropy), DistributionStats(collision, kl)


def _slices(
    hidden: Float[Tensor, "n d"], reference_hidden: Float[Tensor, "n e"] | None, tokens: Int[Tensor, " n"], rows: int
) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
    for start in range(0, max(1, len(tokens)), rows):
        part = slice(start, start + rows)
        yield hidden[part], None if reference_hidden is None else reference_hidden[part], tokens[part]


def _statistics(
    logits: LogitsFunction,
    hidden: Float[Tensor, "n d"],
    reference_logits: LogitsFunction | None,
    reference_hidden: Float[Tensor, "n e"] | None,
    tokens: Int[Tensor, " n"],
    temperature: float,
) -> Float[Tensor, "4 n"]:
    """Log-probability, entropy, log collision probability and KL of each token."""
    # Rounds as token_logprobs does: a policy that is its own reference has a log-ratio of exactly 0.
    log_p = logits(hidden) / temperature
    log_p = log_p - log_p.amax(dim=-1, keepdim=True).detach()
    log_p = log_p - log_p.exp().sum(dim=-1, keepdim=True).log()
    logp = log_p.gather(-1, tokens[:, None]).squeeze(-1)
    # A token that the model rules out has log π = −inf, and contributes nothing: 0 · log 0 = 0.
    finite = log_p.clamp(min=torch.finfo(log_p.dtype).min)
    entropy = -(finite.exp() * finite).sum(dim=-1)
    kl = torch.zeros_like(logp)
    if reference_logits is not None and reference_hidden is not None:
        with torch.no_grad():
            log_q = (reference_logits(reference_hidden) / temperature).log_softmax(dim=-1)
            log_q = log_q.clamp(min=torch.finfo(log_p.dtype).min)
        kl = (log_q.exp() * (log_q - finite)).sum(dim=-1)
    return torch.stack([logp, entropy, (2 * log_p).logsumexp(dim=-1), kl])
