"""The decode loop: after the prefill, one forward pass per token over all running rows."""

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
"""Maps logits and a uniform number per row to a token per row and its log-probability (nats)."""

OnRowFinished = Callable[[int, Int[Tensor, " t"], Finish], None]
"""A callback for each finished row: its number, its tokens, and the reason why it ended."""


@dataclass(frozen=True)
class DecodeSchedule:
    """How often the host interrupts the device while it decodes.

    Attributes:
        check_every: the number of tokens between two checks for finished rows.
        room_multiple: the number of attended columns is rounded up to a multiple of this.
        wrap: wraps a decode step that is called until the room or the rows change.
    """

    check_every: int
    room_multiple: int
    wrap: Callable[[Callable[[], None]], Callable[[], None]] = lambda step: step


CPU_SCHEDULE = DecodeSchedule(check_every=1, room_multiple=1)
CUDA_SCHEDULE = DecodeSchedule(check_every=16, room_multiple=256, wrap=make_graphed)
"""Between two checks the device runs ahead of the host, and steps of equal shapes replay one CUDA graph."""


class _RunningRows:
    """The state of the running rows, in tensors that each decode step updates in place."""

    def __init__(self, uniform: Float[Tensor, "b t"], start: Int[Tensor, " b"]) -> None:
        self.uniform, self.start = uniform, start
        self.tokens = torch.zeros(uniform.shape, dtype=torch.long, device=uniform.device)
        self.logp = torch.zeros(uniform.shape, device=uniform.device)
        self.column = torch.zeros(1, dtype=torch.long, device=uniform.device)  # of the token that is sampled next
        self.row = torch.arange(len(uniform), device=uniform.device)
        self.running = torch.ones(len(uniform), dtype=torch.bool, device=uniform.device)

    def append(self, sample_token: TokenSampler, logits: Float[Tensor, "b v"]) -> None:
        """Sample the next token of each row."""
        token, logp = sample_token(logits, self.uniform.index_select(1, self.column).squeeze(1))
        self.tokens.index_copy_(1, self.column, token[:, None])
        self.logp.index_copy_(1, self.column, logp[:, None])
        self.column += 1

    def stopped(self, since: int, t: int, end: Int[Tensor, " e"]) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        """The running rows with an end token in columns ``since … t − 1``, and their lengths; they are then stopped."""
        has_end = torch.isin(self.tokens[:, since:t], end) & self.running[:, None]
        rows = has_end.any(dim=1).nonzero().squeeze(1)
        self.running[rows] = False
        return rows, since + 1 + has_end[rows].int().argmax(dim=1)

    def keep_rows(self, rows: Int[Tensor, " n"]) -> None:
        """Keep only these rows."""
        self.uniform, self.start = self.uniform[rows], self.start[rows]
        self.tokens, self.logp = self.tokens[rows], self.logp[rows]
        self.row, self.running = self.row[rows], self.running[rows]


@torch.no_grad()
def generate_tokens(
    model: nn.Module,
    prompts: Sequence[Int[Tensor, " _"]],
    uniform: Float[Tensor, "b t"],
    sample_token: TokenSampler,
    end: Int[Tensor, " e"],
    on_finished: OnRowFinished | None = None,
    schedule: DecodeSchedule | None = None,
) -> tuple[Int[Tensor, "b t"], Float[Tensor, "b t"], Int[Tensor, " b"]]:
    """Responses of at most t tokens, each until an ``end`` token, with the same number of rows for each prompt.

    ``uniform`` has one uniform random number per row and token. Returns the tokens, their log-probabilities and the
    length of each row, on the model's device; tokens and log-probabilities are 0 after a row's end. Finished rows leave
    the batch once they are a quarter of it.

    Raises:
        TypeError: the model does not support custom attention.
    """
    # Prefill: the prompts' keys and values, and the state of the rows.
    (b, limit), device = uniform.shape, uniform.device
    schedule = schedule or (CUDA_SCHEDULE if device.type == "cuda" else CPU_SCHEDULE)
    logits = logits_of(model)
    group = torch.arange(len(prompts), device=device).repeat_interleave(b // len(prompts))
    prefilled = prefill(model, prompts)
    cache = KVCache(prefilled, group, limit - 1)
    state = _RunningRows(uniform, prefilled.lengths[group])
    tokens, logp = torch.zeros_like(state.tokens), torch.zeros_like(state.logp)
    lengths = torch.zeros_like(group)

    def step(room: int) -> None:
        last = state.column - 1
        cache.begin_step(last, room)
        token = state.tokens.index_select(1, last)
        hidden = trunk_states(model, cache.attend, input_ids=token, position_ids=state.start[:, None] + last)
        state.append(sample_token, logits(hidden[:, 0]))

    def collect(rows: Int[Tensor, " n"], ends: Int[Tensor, " n"], finish: Finish) -> None:
        if len(rows) == 0:
            return
        target = state.row[rows]
        tokens[target], logp[target], lengths[target] = state.tokens[rows], state.logp[rows], ends
        if on_finished:
            finished = zip(target.tolist(), state.tokens[rows].cpu(), ends.tolist(), strict=True)
            for row, row_tokens, n in sorted(finished, key=lambda item: item[2]):
                on_finished(row, row_tokens[:n], finish)

    state.append(sample_token, logits(prefilled.last_hidden)[group])
    del prefilled  # the cache frees prompts whose rows have finished
    # Decode: t is the number of tokens that each row has.
    checked, room, advance = 0, 0, None
    for t in range(1, limit + 1):
        # Collect finished rows and, if a quarter has finished, compact the batch.
        if t == limit or t % schedule.check_every == 0:
            collect(*state.stopped(checked, t, end), "stop")
            checked, running = t, state.running.nonzero().squeeze(1)
            if t == limit:
                collect(running, torch.full_like(running, limit), "length")
            if t == limit or len(running) == 0:
                break
            if len(running) <= 0.75 * len(state.row):  # a smaller batch soon repays the copies
                state.keep_rows(running)
                cache.keep_rows(running)
                advance = None
        # The next token of each row.
        wide = min(-(-t // schedule.room_multiple) * schedule.room_multiple, limit - 1)
        if advance is None or wide != room:
            room, advance = wide, schedule.wrap(partial(step, wide))
        advance()
    beyond = torch.arange(limit, device=device) >= lengths[:, None]
    return tokens.masked_fill_(beyond, 0), logp.masked_fill_(beyond, 0.0), lengths
