"""The loop that writes responses: one forward pass a token over all rows that still run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from grape_rl.model.attention import trunk_states
from grape_rl.model.cuda_graph import make_graphed
from grape_rl.model.kv_cache import KVCache, prefill
from grape_rl.model.lm_head import logits_of
from grape_rl.types import Finish

TokenSampler = Callable[[Float[Tensor, "n v"], Float[Tensor, " n"]], tuple[Int[Tensor, " n"], Float[Tensor, " n"]]]
"""Logits and a uniform number for each row → its token, and the log-probability (nats) that this had."""

OnRowFinished = Callable[[int, Int[Tensor, " t"], Finish], None]
"""Hears of each row that is over: its number, its tokens, and how it ended."""


@dataclass(frozen=True)
class DecodeSchedule:
    """Every how many tokens the host looks which rows have ended, by how many columns the room attended to grows, and
    what makes a step that is called until room or rows change."""

    look: int
    room: int
    repeated: Callable[[Callable[[], None]], Callable[[], None]] = lambda step: step


CPU_SCHEDULE = DecodeSchedule(look=1, room=1)
CUDA_SCHEDULE = DecodeSchedule(look=16, room=256, repeated=make_graphed)
"""A device runs ahead of a host that asks nothing of it, and replays a step as long as its shapes stay."""


class _Running:
    """The rows that run, as tensors that one step after the other reads and writes in place."""

    def __init__(self, uniform: Float[Tensor, "b t"], start: Int[Tensor, " b"]) -> None:
        self.uniform, self.start = uniform, start
        self.tokens = torch.zeros(uniform.shape, dtype=torch.long, device=uniform.device)
        self.logp = torch.zeros(uniform.shape, device=uniform.device)
        self.column = torch.zeros(1, dtype=torch.long, device=uniform.device)  # of the token that is drawn next
        self.row = torch.arange(len(uniform), device=uniform.device)
        self.going = torch.ones(len(uniform), dtype=torch.bool, device=uniform.device)

    def write(self, draw: TokenSampler, logits: Float[Tensor, "b v"]) -> None:
        """Draw the next token of each row."""
        token, logp = draw(logits, self.uniform.index_select(1, self.column).squeeze(1))
        self.tokens.index_copy_(1, self.column, token[:, None])
        self.logp.index_copy_(1, self.column, logp[:, None])
        self.column += 1

    def stopped(self, since: int, t: int, end: Int[Tensor, " e"]) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        """The rows that met an end token in columns ``since … t − 1``, and their lengths. They go no longer."""
        met = torch.isin(self.tokens[:, since:t], end) & self.going[:, None]
        rows = met.any(dim=1).nonzero().squeeze(1)
        self.going[rows] = False
        return rows, since + 1 + met[rows].int().argmax(dim=1)

    def keep(self, rows: Int[Tensor, " n"]) -> None:
        """Let all other rows go."""
        self.uniform, self.start = self.uniform[rows], self.start[rows]
        self.tokens, self.logp = self.tokens[rows], self.logp[rows]
        self.row, self.going = self.row[rows], self.going[rows]


@torch.no_grad()
def generate_tokens(
    model: nn.Module,
    prompts: Sequence[Int[Tensor, " _"]],
    uniform: Float[Tensor, "b t"],
    draw: TokenSampler,
    end: Int[Tensor, " e"],
    over: OnRowFinished | None = None,
    pace: DecodeSchedule | None = None,
) -> tuple[Int[Tensor, "b t"], Float[Tensor, "b t"], Int[Tensor, " b"]]:
    """Responses to the prompts, as many to each as ``uniform`` has rows for, each until an ``end`` token or t tokens.

    Returns the tokens, their log-probabilities and the length of each row, 0 beyond a row's end; all on the model's
    device. Rows that have ended leave the batch when a quarter has.

    Raises:
        TypeError: the model takes no attention of ours.
    """
    (b, limit), device = uniform.shape, uniform.device
    pace = pace or (CUDA_SCHEDULE if device.type == "cuda" else CPU_SCHEDULE)
    logits = logits_of(model)
    group = torch.arange(len(prompts), device=device).repeat_interleave(b // len(prompts))
    read = prefill(model, prompts)
    cache = KVCache(read, group, limit - 1)
    running = _Running(uniform, read.lengths[group])
    tokens, logp = torch.zeros_like(running.tokens), torch.zeros_like(running.logp)
    lengths = torch.zeros_like(group)

    def step(room: int) -> None:
        last = running.column - 1
        cache.begin(last, room)
        token = running.tokens.index_select(1, last)
        hidden = trunk_states(model, cache.attend, input_ids=token, position_ids=running.start[:, None] + last)
        running.write(draw, logits(hidden[:, 0]))

    def collect(rows: Int[Tensor, " n"], ends: Int[Tensor, " n"], finish: Finish) -> None:
        if len(rows) == 0:
            return
        to = running.row[rows]
        tokens[to], logp[to], lengths[to] = running.tokens[rows], running.logp[rows], ends
        if over:
            told = zip(to.tolist(), running.tokens[rows].cpu(), ends.tolist(), strict=True)
            for row, written, n in sorted(told, key=lambda each: each[2]):
                over(row, written[:n], finish)

    running.write(draw, logits(read.last)[group])
    del read  # the cache lets go of prompts whose rows have ended
    looked, room, advance = 0, 0, None
    for t in range(1, limit + 1):  # how many tokens each row has
        if t == limit or t % pace.look == 0:
            collect(*running.stopped(looked, t, end), "stop")
            looked, going = t, running.going.nonzero().squeeze(1)
            if t == limit:
                collect(going, torch.full_like(going, limit), "length")
            if t == limit or len(going) == 0:
                break
            if len(going) <= 0.75 * len(running.row):  # what that copies, a smaller batch soon repays
                running.keep(going)
                cache.keep(going)
                advance = None
        wide = min(-(-t // pace.room) * pace.room, limit - 1)
        if advance is None or wide != room:
            room, advance = wide, pace.repeated(partial(step, wide))
        advance()
    beyond = torch.arange(limit, device=device) >= lengths[:, None]
    return tokens.masked_fill_(beyond, 0), logp.masked_fill_(beyond, 0.0), lengths
