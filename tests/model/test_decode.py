"""The decode loop against a plain one: a forward pass over each whole sequence for each token."""

import itertools
from bisect import bisect_right

import pytest
import torch
from tiny import MODELS, exactness, sharp
from torch.utils._python_dispatch import TorchDispatchMode

from grape_rl.model import decode
from grape_rl.model.decode import DecodeSchedule, generate_tokens
from grape_rl.model.kv_cache import KVCache
from grape_rl.model.sampler import SamplingParams, sample_inverse_cdf, sampling_probabilities

PROMPTS = [torch.tensor(ids) for ids in ([5, 9, 3, 17], [4], [8, 8, 21, 3, 6, 12, 7], [11, 2])]
END = (3, 7, 11)
LIMIT, N = 9, 4


def uniform(seed: int = 0, n: int = N) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(len(PROMPTS) * n, LIMIT, dtype=torch.float64, generator=generator)


def draw(logits, quantile):
    return sample_inverse_cdf(sampling_probabilities(logits.float(), SamplingParams(LIMIT)), quantile)


def plain(model, quantiles, end):
    """Tokens and log-probabilities of each row, by inverting the cumulative distribution."""
    for row, numbers in enumerate(quantiles.tolist()):
        ids, logp = PROMPTS[row * len(PROMPTS) // len(quantiles)].tolist(), []
        start = len(ids)
        for number in numbers:
            with torch.no_grad():
                logprobs = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double().log_softmax(-1)
            below = list(itertools.accumulate(logprobs.exp().tolist()))
            ids.append(bisect_right(below, number * below[-1]))
            logp.append(logprobs[ids[-1]].item())
            if ids[-1] in end:
                break
        yield ids[start:], logp


@pytest.mark.parametrize(
    "schedule",
    [DecodeSchedule(1, 1), DecodeSchedule(1, 4), DecodeSchedule(3, 4), DecodeSchedule(4, 100)],
    ids=lambda schedule: f"check {schedule.check_every}, room {schedule.room_multiple}",
)
@pytest.mark.parametrize("name", MODELS)
def test_tokens_are_those_of_a_loop_over_whole_sequences(name, schedule):
    """With a check after every token and after several, and with room for exactly the tokens and for more."""
    model = sharp(MODELS[name], exactness(name)[0])
    quantiles, finished = uniform(), []
    tokens, logp, lengths = generate_tokens(
        model, PROMPTS, quantiles, draw, torch.tensor(END), lambda *row: finished.append(row), schedule
    )
    rows = list(plain(model, quantiles, END))
    for row, (ids, logprobs) in enumerate(rows):
        n = len(ids)
        assert lengths[row] == n
        assert tokens[row].tolist() == ids + [0] * (LIMIT - n)
        # Logits of some tens are read in float32: 2e-6 each, and gemma2's are exact to 2e-5 only.
        assert logp[row].tolist() == pytest.approx(logprobs + [0.0] * (LIMIT - n), abs=2e-5)
    assert {row: (ids.tolist(), finish) for row, ids, finish in finished} == {
        row: (ids, "stop" if ids[-1] in END else "length") for row, (ids, _) in enumerate(rows)
    }
    assert len(finished) == len(rows) and [len(ids) for _, ids, _ in finished] == sorted(len(ids) for ids, _ in rows)


def test_finished_rows_leave_the_batch_and_so_do_their_prompts(monkeypatch):
    kept, keep_rows = [], KVCache.keep_rows
    monkeypatch.setattr(KVCache, "keep_rows", lambda self, rows: kept.append(len(rows)) or keep_rows(self, rows))
    model = sharp(MODELS["qwen2"])
    ran = []
    model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: ran.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    _, _, lengths = generate_tokens(model, PROMPTS, uniform(1, 8), draw, torch.tensor(END))
    alive = [int((lengths > t).sum()) for t in range(1, LIMIT)]
    expected, rows = [], 32
    for going in alive:
        if going:
            rows = going if going <= 0.75 * rows else rows
            expected.append(rows)
    assert ran[1:] == expected and len(kept) > 1 and kept == sorted(set(expected) - {32}, reverse=True)


class Steps(TorchDispatchMode):
    """Records the operations of each step, and raises if one depends on a tensor's value."""

    def __init__(self):
        super().__init__()
        self.done = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        reads_data = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(function.tags)
        if function is torch.ops.aten.index.Tensor:  # dynamic for a mask, but not for integer indices
            reads_data = any(index is not None and index.dtype == torch.bool for index in args[1])
        assert not reads_data, f"{function} reads a tensor's value"
        self.done[-1].append((str(function), getattr(out, "shape", None)))
        return out


@pytest.mark.parametrize("name", MODELS)
def test_between_two_checks_all_steps_are_equal_and_the_host_reads_nothing(name, monkeypatch):
    """A CUDA graph requires this of a step: the same operations on the same shapes for every token."""
    model, quantiles = sharp(MODELS[name], exactness(name)[0]), uniform(2)
    none = torch.tensor([], dtype=torch.long)
    expected = generate_tokens(model, PROMPTS, quantiles, draw, none, schedule=DecodeSchedule(1, 1))
    steps, states, stopped = Steps(), decode.trunk_states, decode._RunningRows.stopped

    def begun(*args, **kwargs):
        if not steps.done:
            steps.__enter__()
        steps.done.append([])
        return states(*args, **kwargs)

    def checked(self, *args):
        steps.__exit__(None, None, None)
        return stopped(self, *args)

    monkeypatch.setattr(decode, "trunk_states", begun)
    monkeypatch.setattr(decode._RunningRows, "stopped", checked)
    found = generate_tokens(model, PROMPTS, quantiles, draw, none, schedule=DecodeSchedule(100, 100))
    assert len(steps.done) == LIMIT - 1
    # The first also allocates the rows' own cache, and the last is not followed by the next step's input.
    first, *middle, _ = steps.done
    assert len(first) > len(middle[0]) > 50 and all(step == middle[0] for step in middle)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=exactness(name)[1] + 1e-6)


def test_a_limit_of_one_token_needs_no_step():
    model = sharp(MODELS["llama"])
    model.base_model.register_forward_pre_hook(lambda *_: calls.append(1))
    calls: list[int] = []
    tokens, logp, lengths = generate_tokens(model, PROMPTS, uniform()[:, :1], draw, torch.tensor(END))
    assert tokens.shape == logp.shape == (16, 1) and lengths.tolist() == [1] * 16 and len(calls) == 1
