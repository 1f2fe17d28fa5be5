"""Sampling in-process: prompts in, a rollout out, with the log-probability of every token as it was drawn."""

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
"""Hears of each response as it ends: its row in the rollout, its tokens, and how it ended."""


@dataclass(frozen=True)
class SamplingParams:
    """How to draw tokens: softmax(logits / temperature), cut to the ``top_k`` likeliest and the ``top_p`` nucleus.

    ``top_k`` 0 and ``top_p`` 1 cut nothing. ``temperature`` 0 takes the likeliest token.
    """

    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"{self}: needs max_tokens ≥ 1, temperature ≥ 0, top_k ≥ 0 and 0 < top_p ≤ 1")


def sampling_probabilities(logits: Float[Tensor, "n v"], sampling: SamplingParams) -> Float[Tensor, "n v"]:
    """The probabilities of the distribution that tokens are really drawn from: 0 where it is cut.

    Temperature first, then top-k, then the nucleus: the likeliest tokens that together hold at least ``top_p``.
    """
    if sampling.temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
    if sampling.temperature != 1:
        logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        kth = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if sampling.top_p < 1:
        ordered, index = logits.sort(dim=-1, descending=True)
        share = ordered.softmax(dim=-1)
        outside = share.cumsum(dim=-1) - share >= sampling.top_p
        logits = logits.masked_fill(outside.scatter(-1, index, outside), -torch.inf)
    return logits.softmax(dim=-1)


BLOCK_SIZE = 128
"""How many tokens are summed at a time."""


def sample_inverse_cdf(
    share: Float[Tensor, "n v"], uniform: Float[Tensor, " n"]
) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
    """The token at quantile ``uniform`` of each row's shares (≥ 0, of any sum), and its log-probability.

    One pass sums blocks of ``BLOCK`` tokens; then the block that holds the quantile is found, and the token in it. What
    is summed further is summed in float64, so that a large vocabulary moves no token's share. A token of share 0 is
    never drawn.
    """
    n, v = share.shape
    blocks = (nn.functional.pad(share, (0, -v % BLOCK_SIZE)) if v % BLOCK_SIZE else share).view(n, -1, BLOCK_SIZE)
    below = blocks.sum(dim=-1).double().cumsum(dim=-1)
    block, within = _at(below, uniform.double())
    inside, _ = _at(blocks[torch.arange(n, device=share.device), block].double().cumsum(dim=-1), within)
    token = (block * BLOCK_SIZE + inside).clamp(max=v - 1)  # what is not a number has no place
    return token, (share.gather(1, token[:, None]).squeeze(1) / below[:, -1]).log().float()


def _at(below: Float[Tensor, "n k"], quantile: Float[Tensor, " n"]) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
    """Which part holds the quantile, given the sum up to each part and with it; and at which quantile of that part."""
    total = below[:, -1:].contiguous()
    target = quantile[:, None] * total
    part = torch.searchsorted(below, target, right=True)
    # Rounding may put the target at the total: then it is in the last part that adds anything.
    part = part.minimum(torch.searchsorted(below, total)).clamp(max=below.shape[1] - 1)
    start = torch.where(part > 0, below.gather(1, (part - 1).clamp(min=0)), 0.0)
    return part.squeeze(1), ((target - start) / (below.gather(1, part) - start)).squeeze(1)


@contextmanager
def _cast_once(model: nn.Module) -> Iterator[None]:
    """Within autocast: each weight is cast once, and not at every token.

    Autocast keeps its copies of weights that a gradient might be asked for, and of no others.
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
    sampling: SamplingParams,
    end: Sequence[int],
    seed: int,
    version: int = 0,
    generation_batch_size: int = 512,
    ended: OnResponse | None = None,
) -> Rollout:
    """``n`` responses to each prompt, each until an end token or ``max_tokens``.

    Rows ``n·i … n·i + n − 1`` answer prompt i. Each prompt is encoded once, and a row that has finished leaves the
    batch. One uniform number, drawn from ``seed``, decides each token, so that the same seed gives the same rollout
    however many rows run at once (all ``n`` of a prompt always do). ``ended`` hears of each response while others are
    still being written, so that judging it can begin.

    Raises:
        ValueError: a prompt has no tokens.
    """
    prompts = require_nonempty(tuple(prompts))
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(len(prompts) * n, sampling.max_tokens, generator=generator, dtype=torch.float64).to(device)
    ends = torch.tensor(list(end), dtype=torch.long, device=device)

    def draw(logits: Float[Tensor, "b v"], at: Float[Tensor, " b"]) -> tuple[Int[Tensor, " b"], Float[Tensor, " b"]]:
        return sample_inverse_cdf(sampling_probabilities(logits.float(), sampling), at)

    per_chunk = max(1, generation_batch_size // n)
    with _cast_once(model):
        chunks = [
            generate_tokens(
                model,
                [p.to(device) for p in prompts[i : i + per_chunk]],
                uniform[i * n : (i + per_chunk) * n],
                draw,
                ends,
                partial(_told, ended, i * n) if ended else None,
            )
            for i in range(0, len(prompts), per_chunk)
        ]
    tokens, logp, length = (torch.cat(parts).cpu() for parts in zip(*chunks, strict=True))
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
        version=version,
    )


def _told(ended: OnResponse, first: int, row: int, tokens: Int[Tensor, " t"], finish: Finish) -> None:
    """Tells ``ended`` of a row of a chunk whose row 0 is the rollout's row ``first``."""
    ended(first + row, tokens, finish)
