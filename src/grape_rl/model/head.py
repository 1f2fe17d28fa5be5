"""The head: from hidden states to the log-probability of the chosen token and the entropy of the choice."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

TILE = 2**25
"""The most logits (tokens x vocabulary) that exist at once: 128 MiB in float32, and as much again in backward."""

Logits = Callable[[Float[Tensor, "n d"]], Float[Tensor, "n v"]]


def logits_of(model: nn.Module) -> Logits:
    """The map from hidden states to logits that ``model`` itself applies, its scaling and soft-capping included.

    Raises:
        ValueError: the model has no output embeddings, so it is not a causal language model.
    """
    head = model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    if head is None:
        raise ValueError(f"{type(model).__name__} has no output embeddings: a causal language model is needed")
    config = model.config.get_text_config()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)

    def logits(hidden: Float[Tensor, "n d"]) -> Float[Tensor, "n v"]:
        out = head(hidden).float() if hidden.dtype in (torch.float16, torch.bfloat16) else head(hidden)
        out = out * scale if scale != 1.0 else out
        return cap * torch.tanh(out / cap) if cap else out

    return logits


def token_logprobs(
    logits: Logits, hidden: Float[Tensor, "n d"], tokens: Int[Tensor, " n"], temperature: float = 1.0, tile: int = TILE
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Log-probability of each token, and the entropy of the distribution it was chosen from.

    logp = log softmax(logits(hidden) / temperature)[tokens];  entropy = −Σ_v p_v log p_v, in nats.

    At most ``tile`` logits exist at once: where tokens x vocabulary is more, the tokens go through in slices whose
    logits are computed again in backward.
    """
    vocabulary = logits(hidden[:1].detach()).shape[-1]
    rows = max(1, tile // vocabulary)
    if len(hidden) <= rows:
        return _Chosen.apply(logits(hidden), tokens, temperature)  # pyright: ignore[reportReturnType]

    def slice_logprobs(hidden: Tensor, tokens: Tensor) -> Any:
        return _Chosen.apply(logits(hidden), tokens, temperature)

    slices: list[tuple[Tensor, Tensor]] = [
        checkpoint(slice_logprobs, h, y, use_reentrant=False)  # pyright: ignore[reportAssignmentType]
        for h, y in zip(hidden.split(rows), tokens.split(rows), strict=True)
    ]
    return torch.cat([logp for logp, _ in slices]), torch.cat([entropy for _, entropy in slices])


class _Chosen(torch.autograd.Function):
    """log softmax and entropy from one exponential, with a backward that keeps only the probabilities p.

    ∂logp/∂z = 1[v = token] − p and ∂H/∂z = −p (log p + H), z the logits over the temperature. Composed from torch's
    own operations it would hold three fields of tokens x vocabulary for backward instead of one.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        z = logits / temperature
        z = z - z.amax(dim=-1, keepdim=True)
        p = z.exp()
        total = p.sum(dim=-1)
        p.div_(total[:, None])
        logp = z.gather(-1, tokens[:, None]).squeeze(-1) - total.log()
        # A logit of −inf (a token that the model rules out) has p = 0 and adds nothing: 0 · log 0 = 0.
        entropy = total.log() - (p * z.clamp_(min=torch.finfo(z.dtype).min)).sum(dim=-1)
        ctx.save_for_backward(p, tokens, entropy)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None, None]:
        if torch.is_grad_enabled():  # p is no function of the logits to autograd: the result would be wrong in silence
            raise RuntimeError("log-probabilities can be differentiated once only (create_graph=True was asked for)")
        p, tokens, entropy = ctx.saved_tensors
        grad_logp, grad_entropy = grads
        grad = torch.zeros_like(p)
        if grad_logp is not None:
            grad = p * -grad_logp[:, None]
            grad.scatter_add_(-1, tokens[:, None], grad_logp[:, None])
        if grad_entropy is not None:
            grad = grad - torch.xlogy(p, p).add(p * entropy[:, None]) * grad_entropy[:, None]
        return grad / ctx.temperature, None, None
