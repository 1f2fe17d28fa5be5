"""Sampling in-process: prompts in, a rollout out, with the log-probability of every token as it was drawn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from grape_rl.model.cache import roomy
from grape_rl.model.head import logits_of
from grape_rl.model.logprobs import left_padded, nonempty, positions
from grape_rl.types import Finish, Rollout

Ended = Callable[[int, Int[Tensor, " t"], Finish], None]
"""Hears of each response as it ends: its row in the rollout, its tokens, and how it ended."""


@dataclass(frozen=True)
class Sampling:
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


def drawn_from(logits: Float[Tensor, "n v"], sampling: Sampling) -> Float[Tensor, "n v"]:
    """Log-probabilities (nats) of the distribution that tokens are really drawn from: log 0 = −inf where it is cut.

    Temperature first, then top-k, then the nucleus: the likeliest tokens that together hold at least ``top_p``.
    """
    if sampling.temperature == 0:
        best = torch.full_like(logits, -torch.inf)
        return best.scatter_(-1, logits.argmax(dim=-1, keepdim=True), 0.0)
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        kth = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if sampling.top_p < 1:
        ordered, index = logits.sort(dim=-1, descending=True)
        before = ordered.softmax(dim=-1).cumsum(dim=-1) - ordered.softmax(dim=-1)
        cut = (before >= sampling.top_p).scatter(-1, index, before >= sampling.top_p)
        logits = logits.masked_fill(cut, -torch.inf)
    return logits.log_softmax(dim=-1)


def drawn(logp: Float[Tensor, "n v"], uniform: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    """The token at quantile ``uniform`` of each distribution.

    In float64, so that summing a large vocabulary moves no token's share; a token of probability 0 is never drawn.
    """
    below = logp.double().exp().cumsum(dim=-1)
    target = uniform.double()[:, None] * below[:, -1:]
    return torch.searchsorted(below, target, right=True).squeeze(-1).clamp(max=logp.shape[-1] - 1)


@torch.no_grad()
def sample(
    model: nn.Module,
    prompts: Sequence[Int[Tensor, " _"]],
    n: int,
    sampling: Sampling,
    end: Sequence[int],
    seed: int,
    version: int = 0,
    rows_at_once: int = 512,
    ended: Ended | None = None,
) -> Rollout:
    """``n`` responses to each prompt, each until an end token or ``max_tokens``.

    Rows ``n·i … n·i + n − 1`` answer prompt i. Each prompt is encoded once, and a row that has finished leaves the
    batch. One uniform number, drawn from ``seed``, decides each token, so that the same seed gives the same rollout
    however many rows run at once (all ``n`` of a prompt always do). ``ended`` hears of each response while others are
    still being written, so that judging it can begin.

    Raises:
        ValueError: a prompt has no tokens.
    """
    prompts = nonempty(tuple(prompts))
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(len(prompts) * n, sampling.max_tokens, generator=generator, dtype=torch.float64).to(device)
    per_chunk = max(1, rows_at_once // n)
    chunks = [
        _decoded(
            model,
            tuple(p.to(device) for p in prompts[i : i + per_chunk]),
            uniform[i * n : (i + per_chunk) * n],
            sampling,
            torch.tensor(list(end), dtype=torch.long, device=device),
            i * n,
            ended,
        )
        for i in range(0, len(prompts), per_chunk)
    ]
    width = max(tokens.shape[1] for tokens, _, _ in chunks)
    tokens, logp, length = (
        torch.cat([nn.functional.pad(c[0], (0, width - c[0].shape[1])) for c in chunks]).cpu(),
        torch.cat([nn.functional.pad(c[1], (0, width - c[1].shape[1])) for c in chunks]).cpu(),
        torch.cat([c[2] for c in chunks]).cpu(),
    )
    last = tokens.gather(1, length[:, None] - 1).squeeze(1)
    stopped = torch.isin(last, torch.tensor(list(end), dtype=torch.long))
    return Rollout(
        prompts=tuple(p.cpu() for p in prompts),
        tokens=tokens,
        mask=torch.arange(width) < length[:, None],
        group=torch.arange(len(prompts)).repeat_interleave(n),
        behavior_logp=logp,
        finish=tuple("stop" if s else "length" for s in stopped.tolist()),
        version=version,
    )


def _decoded(
    model: nn.Module,
    prompts: tuple[Int[Tensor, " _"], ...],
    uniform: Float[Tensor, "b t"],
    sampling: Sampling,
    end: Int[Tensor, " e"],
    first: int,
    ended: Ended | None,
) -> tuple[Int[Tensor, "b w"], Float[Tensor, "b w"], Int[Tensor, " b"]]:
    """Tokens, their log-probabilities and the length of each row, 0 beyond a row's end. The rollout's row ``first`` is
    the first of them."""

    def hear(over: Int[Tensor, " n"], length: int, finish: Finish) -> None:
        if ended:
            for row in over.tolist():
                ended(first + row, tokens[row, :length].cpu(), finish)

    b, limit = uniform.shape
    group = torch.arange(len(prompts), device=uniform.device).repeat_interleave(b // len(prompts))
    trunk, logits = model.base_model, logits_of(model)
    ids, valid = left_padded(prompts)
    out = trunk(input_ids=ids, attention_mask=valid, position_ids=positions(valid), use_cache=True)  # pyright: ignore[reportCallIssue]
    cache, hidden, seen = (
        roomy(out.past_key_values, group, limit - 1),
        out.last_hidden_state[:, -1][group],
        valid[group],
    )
    position = seen.sum(dim=1, keepdim=True)

    tokens = torch.zeros(b, limit, dtype=torch.long, device=ids.device)
    logp = torch.zeros(b, limit, device=ids.device)
    length = torch.zeros(b, dtype=torch.long, device=ids.device)
    rows = torch.arange(b, device=ids.device)  # the row of the rollout that each row of the running batch fills
    going = torch.ones(b, dtype=torch.bool, device=ids.device)
    alive = b
    for t in range(limit):
        choices = drawn_from(logits(hidden).float(), sampling)
        token = drawn(choices, uniform[rows, t])
        tokens[rows[going], t] = token[going]
        logp[rows[going], t] = choices.gather(1, token[:, None]).squeeze(1)[going]
        length[rows[going]] = t + 1
        stopped = going & torch.isin(token, end)
        going = going & ~stopped
        before, alive = alive, int(going.sum())
        if alive < before:
            hear(rows[stopped], t + 1, "stop")
        if t + 1 == limit:
            hear(rows[going], limit, "length")
        if alive == 0 or t + 1 == limit:
            return tokens[:, : t + 1], logp[:, : t + 1], length
        if alive <= 0.75 * len(rows):  # compacting copies the cache once, which a smaller batch soon repays
            keep = going.nonzero().squeeze(1)
            cache.batch_select_indices(keep)
            rows, token, seen, position, going = rows[keep], token[keep], seen[keep], position[keep], going[keep]
        seen = torch.cat([seen, seen.new_ones(len(rows), 1)], dim=1)
        out = trunk(  # pyright: ignore[reportCallIssue]
            input_ids=token[:, None], attention_mask=seen, position_ids=position, past_key_values=cache, use_cache=True
        )
        hidden, position = out.last_hidden_state[:, -1], position + 1
    raise AssertionError("unreachable: the last step returns")
