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
    """Tokens and log-probabilities of each row, by the inverse of its distribution's running sum."""
    for row, numbers in enumerate(quantiles.tolist()):
        ids, logp = PROMPTS[row * len(PROMPTS) // len(quantiles)].tolist(), []
        start = len(ids)
        for number in numbers:
            with torch.no_grad():
                chances = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double().log_softmax(-1)
            below = list(itertools.accumulate(chances.exp().tolist()))
            ids.append(bisect_right(below, number * below[-1]))
            logp.append(chances[ids[-1]].item())
            if ids[-1] in end:
                break
        yield ids[start:], logp


@pytest.mark.parametrize(
    "pace",
    [DecodeSchedule(1, 1), DecodeSchedule(1, 4), DecodeSchedule(3, 4), DecodeSchedule(4, 100)],
    ids=lambda pace: f"look {pace.look}, room {pace.room}",
)
@pytest.mark.parametrize("name", MODELS)
def test_tokens_are_those_of_a_loop_over_whole_sequences(name, pace):
    """In each pace: the host that looks at every token and one that looks at few, rooms as wide as needed and wider."""
    model = sharp(MODELS[name], exactness(name)[0])
    quantiles, heard = uniform(), []
    tokens, logp, lengths = generate_tokens(
        model, PROMPTS, quantiles, draw, torch.tensor(END), lambda *each: heard.append(each), pace
    )
    rows = list(plain(model, quantiles, END))
    for row, (ids, chances) in enumerate(rows):
        n = len(ids)
        assert lengths[row] == n
        assert tokens[row].tolist() == ids + [0] * (LIMIT - n)
        # Logits of some tens are read in float32: 2e-6 each, and gemma2's are exact to 2e-5 only.
        assert logp[row].tolist() == pytest.approx(chances + [0.0] * (LIMIT - n), abs=2e-5)
    assert {row: (told.tolist(), finish) for row, told, finish in heard} == {
        row: (ids, "stop" if ids[-1] in END else "length") for row, (ids, _) in enumerate(rows)
    }
    assert len(heard) == len(rows) and [len(told) for _, told, _ in heard] == sorted(len(ids) for ids, _ in rows)


def test_rows_that_end_leave_the_batch_and_prompts_whose_rows_have_ended_too(monkeypatch):
    kept = []
    monkeypatch.setattr(KVCache, "keep", lambda self, rows, own=KVCache.keep: kept.append(len(rows)) or own(self, rows))
    model = sharp(MODELS["qwen2"])
    ran = []
    model.base_model.register_forward_pre_hook(
        lambda module, args, told: ran.append(len(told["input_ids"])), with_kwargs=True
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
    """Writes down what each step does, and raises where a tensor's value would decide what to do."""

    def __init__(self):
        super().__init__()
        self.done = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        told = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(function.tags)
        if function is torch.ops.aten.index.Tensor:  # dynamic by a mask, and not by numbers
            told = any(each is not None and each.dtype == torch.bool for each in args[1])
        assert not told, f"{function} reads what a tensor holds"
        self.done[-1].append((str(function), getattr(out, "shape", None)))
        return out


@pytest.mark.parametrize("name", MODELS)
def test_between_two_looks_each_step_does_the_same_and_the_host_reads_nothing(name, monkeypatch):
    """What a CUDA graph asks of a step: the same operations on the same shapes, whatever the token."""
    model, quantiles = sharp(MODELS[name], exactness(name)[0]), uniform(2)
    none = torch.tensor([], dtype=torch.long)
    expected = generate_tokens(model, PROMPTS, quantiles, draw, none, pace=DecodeSchedule(1, 1))
    steps, states, stopped = Steps(), decode.trunk_states, decode._Running.stopped

    def begun(*given, **read):
        if not steps.done:
            steps.__enter__()
        steps.done.append([])
        return states(*given, **read)

    def looked(self, *told):
        steps.__exit__(None, None, None)
        return stopped(self, *told)

    monkeypatch.setattr(decode, "trunk_states", begun)
    monkeypatch.setattr(decode._Running, "stopped", looked)
    found = generate_tokens(model, PROMPTS, quantiles, draw, none, pace=DecodeSchedule(100, 100))
    assert len(steps.done) == LIMIT - 1
    # The first finds no room for its own keys yet, and the last is not followed by what makes the next one's input.
    first, *middle, _ = steps.done
    assert len(first) > len(middle[0]) > 50 and all(each == middle[0] for each in middle)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=exactness(name)[1] + 1e-6)


def test_a_limit_of_one_token_needs_no_step():
    model = sharp(MODELS["llama"])
    model.base_model.register_forward_pre_hook(lambda *_: calls.append(1))
    calls: list[int] = []
    tokens, logp, lengths = generate_tokens(model, PROMPTS, uniform()[:, :1], draw, torch.tensor(END))
    assert tokens.shape == logp.shape == (16, 1) and lengths.tolist() == [1] * 16 and len(calls) == 1
