"""What the whole choice says that each token came from: how peaked it is, and how far from another model's."""

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
    """Of each token's choice π(·): ``collision`` log Σ_v π(v)², and ``kl`` KL(reference‖π) in nats; 0 where masked."""

    collision: Float[Tensor, "b t"]
    kl: Float[Tensor, "b t"]


def logprobs_with_stats(
    model: nn.Module, sequences: Sequences, reference: nn.Module | None, temperature: float = 1.0, tile: int = TILE
) -> tuple[Outputs, DistributionStats]:
    """What ``logprobs`` gives of each masked token, and what the whole choice says: in the same forward pass.

    Beside the model's, the reference's hidden states are taken for the same sequences, without a graph; without a
    reference ``kl`` is 0. Gradients flow through every field. At most ``tile`` logits of either model exist at once:
    where tokens x vocabulary is more, the tokens go through in slices whose logits are computed again in backward.

    Raises:
        ValueError: a prompt has no tokens, so that nothing stands before the first one after it.
    """
    sequences = to_device(sequences, next(model.parameters()).device)
    mask = sequences.mask
    tokens, hidden = sequences.tokens[mask], hidden_states(model, sequences)[mask]
    other = None
    if reference is not None:
        with torch.no_grad():
            other = hidden_states(reference, sequences)[mask]
    logits, other_logits = logits_of(model), None if reference is None else logits_of(reference)
    with torch.no_grad():
        vocabulary = logits(hidden[:1]).shape[-1]

    def told(hidden: Tensor, other: Tensor | None, tokens: Tensor) -> Tensor:
        return _told(logits, hidden, other_logits, other, tokens, temperature)

    slices = list(_slices(hidden, other, tokens, max(1, tile // vocabulary)))
    if len(slices) == 1:
        parts = [told(*slices[0])]
    else:
        parts = [checkpoint(told, *each, use_reentrant=False) for each in slices]
    fields = torch.cat(parts, dim=1)  # pyright: ignore[reportArgumentType, reportCallIssue]
    zeros = torch.zeros(mask.shape, dtype=fields.dtype, device=mask.device)
    logp, entropy, collision, kl = (zeros.masked_scatter(mask, field) for field in fields)
    return Outputs(logp, entropy), DistributionStats(collision, kl)


def _slices(
    hidden: Float[Tensor, "n d"], other: Float[Tensor, "n e"] | None, tokens: Int[Tensor, " n"], rows: int
) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
    for start in range(0, max(1, len(tokens)), rows):
        part = slice(start, start + rows)
        yield hidden[part], None if other is None else other[part], tokens[part]


def _told(
    logits: LogitsFunction,
    hidden: Float[Tensor, "n d"],
    other_logits: LogitsFunction | None,
    other: Float[Tensor, "n e"] | None,
    tokens: Int[Tensor, " n"],
    temperature: float,
) -> Float[Tensor, "4 n"]:
    """Log-probability, entropy, collision and KL of each token's choice."""
    # As token_logprobs rounds it: a policy that is its own reference has gained nothing, to the bit.
    whole = logits(hidden) / temperature
    whole = whole - whole.amax(dim=-1, keepdim=True).detach()
    whole = whole - whole.exp().sum(dim=-1, keepdim=True).log()
    logp = whole.gather(-1, tokens[:, None]).squeeze(-1)
    # A token that the model rules out has log π = −inf, and adds nothing: 0 · log 0 = 0.
    finite = whole.clamp(min=torch.finfo(whole.dtype).min)
    entropy = -(finite.exp() * finite).sum(dim=-1)
    kl = torch.zeros_like(logp)
    if other_logits is not None and other is not None:
        with torch.no_grad():
            theirs = (other_logits(other) / temperature).log_softmax(dim=-1).clamp(min=torch.finfo(whole.dtype).min)
        kl = (theirs.exp() * (theirs - finite)).sum(dim=-1)
    return torch.stack([logp, entropy, (2 * whole).logsumexp(dim=-1), kl])
