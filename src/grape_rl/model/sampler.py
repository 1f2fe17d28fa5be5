"""In-process sampling: from prompts to a rollout, with the log-probability of every token as it was sampled."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from grape_rl.model.decode import generate_tokens
from grape_rl.model.logprobs import require_nonempty
from grape_rl.types import Finish, Rollout

OnResponse = Callable[[int, Int[Tensor, " t"], Finish], None]
"""A callback for each finished response: its row in the rollout, its tokens, and the reason why it ended."""


@dataclass(frozen=True)
class SamplingParams:
    """Parameters of sampling: softmax(logits / temperature), restricted by top-k and top-p (nucleus) sampling.

    Attributes:
        max_tokens: the maximum number of tokens of a response.
        temperature: 0 selects the most likely token.
        top_k: the number of most likely tokens to keep; 0 keeps all.
        top_p: the probability of the nucleus to keep; 1 keeps all.
        generation_batch_size: the number of responses that are generated at once. It never changes a response, except
            for rounding.

    Raises:
        ValueError: a parameter is out of range.
    """

    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    generation_batch_size: int = 512

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"{self}: needs max_tokens ≥ 1, temperature ≥ 0, top_k ≥ 0 and 0 < top_p ≤ 1")


def sampling_probabilities(logits: Float[Tensor, "n v"], params: SamplingParams) -> Float[Tensor, "n v"]:
    """The probabilities that tokens are sampled with; 0 for tokens outside top-k or the nucleus.

    Temperature comes first, then top-k, then the nucleus: the most likely tokens whose total probability is at least
    ``top_p``.
    """
    if params.temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
    if params.temperature != 1:
        logits = logits / params.temperature
    if 0 < params.top_k < logits.shape[-1]:
        kth = logits.topk(params.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if params.top_p < 1:
        ordered, index = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(dim=-1)
        outside = probabilities.cumsum(dim=-1) - probabilities >= params.top_p
        logits = logits.masked_fill(outside.scatter(-1, index, outside), -torch.inf)
    return logits.softmax(dim=-1)


BLOCK_SIZE = 128
"""The number of tokens per block in ``sample_inverse_cdf``."""


def sample_inverse_cdf(
    weights: Float[Tensor, "n v"], uniform: Float[Tensor, " n"]
) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
    """The token at quantile ``uniform`` of each row's weights (≥ 0, any sum), and its log-probability.

    One pass sums blocks of ``BLOCK_SIZE`` tokens. Then the block that contains the quantile is selected, and the token
    within it. These cumulative sums are float64, so that a large vocabulary distorts no token's probability. A token of
    weight 0 is never sampled.
    """
    n, v = weights.shape
    padded = nn.functional.pad(weights, (0, -v % BLOCK_SIZE)) if v % BLOCK_SIZE else weights
    blocks = padded.view(n, -1, BLOCK_SIZE)
    cumulative = blocks.sum(dim=-1).double().cumsum(dim=-1)
    block, quantile = _locate(cumulative, uniform.double())
    inside, _ = _locate(blocks[torch.arange(n, device=weights.device), block].double().cumsum(dim=-1), quantile)
    token = (block * BLOCK_SIZE + inside).clamp(max=v - 1)  # NaN weights would give an index out of range
    return token, (weights.gather(1, token[:, None]).squeeze(1) / cumulative[:, -1]).log().float()


def _locate(
    cumulative: Float[Tensor, "n k"], quantile: Float[Tensor, " n"]
) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
    """The part that contains the quantile, given the inclusive cumulative sums, and the quantile within that part."""
    total = cumulative[:, -1:].contiguous()
    target = quantile[:, None] * total
    part = torch.searchsorted(cumulative, target, right=True)
    # Rounding may make the target equal to the total: it then belongs to the last part with a positive sum.
    part = part.minimum(torch.searchsorted(cumulative, total)).clamp(max=cumulative.shape[1] - 1)
    start = torch.where(part > 0, cumulative.gather(1, (part - 1).clamp(min=0)), 0.0)
    return part.squeeze(1), ((target - start) / (cumulative.gather(1, part) - start)).squeeze(1)


@contextmanager
def _cast_once(model: nn.Module) -> Iterator[None]:
    """Within this context, autocast casts each weight once instead of once per token.

    Autocast caches its copies only of weights that require a gradient.
    """
    kind = next(model.parameters()).device.type
    frozen = [p for p in model.parameters() if not p.requires_grad] if torch.is_autocast_enabled(kind) else []
    for parameter in frozen:
        parameter.requires_grad_(parameter.is_floating_point())
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def sample(
    model: nn.Module,
    prompts: Sequence[Int[Tensor, " _"]],
    n: int,
    params: SamplingParams,
    end: Sequence[int],
    seed: int,
    on_response: OnResponse | None = None,
) -> Rollout:
    """``n`` responses to each prompt, each until an ``end`` token or ``max_tokens``. The rollout's version is 0.

    Rows ``n·i … n·i + n − 1`` answer prompt i. Each prompt is encoded once, and finished rows leave the batch. Each
    token is sampled from one uniform number, drawn from ``seed``, so the rollout does not depend on
    ``generation_batch_size``. All ``n`` rows of a prompt run together. ``on_response`` is called for each finished
    response, so that judging overlaps with sampling.

    Raises:
        ValueError: a prompt has no tokens.
    """
    prompts = require_nonempty(tuple(prompts))
    # One uniform number per row and token, independent of the batches below.
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(len(prompts) * n, params.max_tokens, generator=generator, dtype=torch.float64).to(device)
    ends = torch.tensor(list(end), dtype=torch.long, device=device)

    def sample_token(
        logits: Float[Tensor, "b v"], quantile: Float[Tensor, " b"]
    ) -> tuple[Int[Tensor, " b"], Float[Tensor, " b"]]:
        return sample_inverse_cdf(sampling_probabilities(logits.float(), params), quantile)

    # Generate in batches of whole prompts.
    per_batch = max(1, params.generation_batch_size // n)
    with _cast_once(model):
        batches = [
            generate_tokens(
                model,
                [p.to(device) for p in prompts[i : i + per_batch]],
                uniform[i * n : (i + per_batch) * n],
                sample_token,
                ends,
                partial(_report, on_response, i * n) if on_response else None,
            )
            for i in range(0, len(prompts), per_batch)
        ]
    # One rollout, as wide as its longest response.
    tokens, logp, length = (torch.cat(parts).cpu() for parts in zip(*batches, strict=True))
    width = int(length.max())
    tokens, logp = tokens[:, :width].contiguous(), logp[:, :width].contiguous()
    last = tokens.gather(1, length[:, None] - 1).squeeze(1)
    stopped = torch.isin(last, ends.cpu())
    return Rollout(
        prompts=tuple(p.cpu() for p in prompts),
        tokens=tokens,
        mask=torch.arange(width) < length[:, None],
        group=torch.arange(len(prompts)).repeat_interleave(n),
        behavior_logp=logp,
        finish=tuple("stop" if s else "length" for s in stopped.tolist()),
        version=0,
    )


def _report(on_response: OnResponse, first: int, row: int, tokens: Int[Tensor, " t"], finish: Finish) -> None:
    """Call ``on_response`` for a row of a batch whose row 0 is the rollout's row ``first``."""
    on_response(first + row, tokens, finish)
