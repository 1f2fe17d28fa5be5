"""The KV cache, with prompts stored once, against a loop over rows, heads and positions."""

import math

import pytest
import torch
from tiny import MODELS, exactness, sharp
from torch import Tensor

from grape_rl.model.attention import AttentionInputs
from grape_rl.model.kv_cache import KVCache, PrefilledPrompts, prefill

LENGTHS = [5, 1, 3, 2]
HEADS, KEY_HEADS, WIDTH, VALUE_WIDTH = 4, 2, 6, 3


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def attention(query, keys, values, scale, window, cap, sink):
    """One head's attention of the last position: the weighted sum of values, in Python floats."""
    first = 0 if window is None else max(0, len(keys) - window)
    scores = [scale * sum(a * b for a, b in zip(query, key, strict=True)) for key in keys[first:]]
    scores = [cap * math.tanh(z / cap) for z in scores] if cap else scores
    weights = [math.exp(z) for z in scores]
    total = math.fsum(weights) + (0.0 if sink is None else math.exp(sink))
    columns = zip(*values[first:], strict=True)
    return [math.fsum(w * v for w, v in zip(weights, column, strict=True)) / total for column in columns]


@pytest.mark.parametrize("sinks", [None, [0.3, -1.0, 2.0, 0.0]])
@pytest.mark.parametrize("cap", [None, 0.7])
@pytest.mark.parametrize("window", [None, 1, 2, 4, 100])
def test_rows_attend_to_their_own_prompt_and_tokens_as_other_rows_leave(window, cap, sinks):
    """Groups of unequal size, a prompt without rows, more room than tokens, two compactions."""
    keys = [random(4, KEY_HEADS, 5, WIDTH, seed=layer) for layer in (0, 1)]
    values = [random(4, KEY_HEADS, 5, VALUE_WIDTH, seed=2 + layer) for layer in (0, 1)]
    prompts = PrefilledPrompts(keys, values, torch.tensor(LENGTHS), torch.zeros(4, 1))
    for layer in (0, 1):  # the contents of a prompt's padding must not matter
        for p, n in enumerate(LENGTHS):
            keys[layer][p, :, n:], values[layer][p, :, n:] = 50.0, 1e6
    group = [3, 0, 0, 3, 3, 2, 0, 3]
    cache = KVCache(prompts, torch.tensor(group), limit=6)
    own = {(layer, row): ([], []) for layer in (0, 1) for row in range(len(group))}
    running = list(range(len(group)))
    for step, room in enumerate([1, 4, 4, 4, 6, 6]):
        if keep := {2: [0, 1, 3, 4, 7, 5], 4: [5, 2]}.get(step):
            cache.keep_rows(torch.tensor(keep))
            running = [running[i] for i in keep]
        cache.begin_step(torch.tensor([step]), room)
        for layer in (0, 1):
            query = random(len(running), HEADS, 1, WIDTH, seed=100 + 2 * step + layer)
            key = random(len(running), KEY_HEADS, 1, WIDTH, seed=200 + 2 * step + layer)
            value = random(len(running), KEY_HEADS, 1, VALUE_WIDTH, seed=300 + 2 * step + layer)
            sink_scores = None if sinks is None else torch.tensor(sinks, dtype=torch.float64)
            found = cache.attend(AttentionInputs(layer, query, key, value, 0.4, window, cap, sink_scores))
            assert found.shape == (len(running), HEADS, 1, VALUE_WIDTH)
            for i, row in enumerate(running):
                for mine, new in zip(own[layer, row], (key, value), strict=True):
                    mine.append(new[i, :, 0])
                p, n = group[row], LENGTHS[group[row]]
                for head in range(HEADS):
                    shared = head // (HEADS // KEY_HEADS)
                    all_keys, all_values = (
                        [*field[layer][p, shared, :n].tolist(), *(token[shared].tolist() for token in mine)]
                        for field, mine in zip((keys, values), own[layer, row], strict=True)
                    )
                    sink = sinks and sinks[head]
                    expected = attention(query[i, head, 0].tolist(), all_keys, all_values, 0.4, window, cap, sink)
                    assert found[i, head, 0].tolist() == pytest.approx(expected, abs=1e-12)


def test_tokens_are_written_in_place_and_prompts_without_rows_are_freed():
    field = [random(3, 1, 4, 2, seed=0)]
    cache = KVCache(
        PrefilledPrompts(field, field, torch.tensor([4, 2, 4]), torch.zeros(3, 1)), torch.tensor([0, 1, 2]), limit=4
    )
    places = set()
    for step in range(4):
        cache.begin_step(torch.tensor([step]), step + 1)
        one = torch.ones(3, 1, 1, 2, dtype=torch.float64)
        cache.attend(AttentionInputs(0, one, one, one, 1.0))
        places.add(cache._own[0][0].data_ptr())
    assert len(places) == 1 and cache._own[0][0].shape == (3, 4, 2)
    cache.keep_rows(torch.tensor([2]))
    assert cache._prompts.keys[0].shape[0] == 1 and torch.equal(cache._prompts.keys[0][0], field[0][2])
    assert cache._own[0][0].shape == (1, 4, 2) and field[0].shape[0] == 3


@pytest.mark.parametrize("tokens", [1, 14, 1000])
@pytest.mark.parametrize("name", MODELS)
def test_prefilled_prompts_equal_each_prompt_alone(name, tokens):
    """Against transformers' own cache after one pass over each prompt."""
    dtype, tolerance = exactness(name)
    model = sharp(MODELS[name], dtype)
    prompts = [torch.randint(3, 23, (n,), generator=torch.Generator().manual_seed(n)) for n in (6, 1, 9, 7, 2)]
    with torch.no_grad():
        prefilled = prefill(model, prompts, tokens)
        assert prefilled.lengths.tolist() == [6, 1, 9, 7, 2]
        for i, prompt in enumerate(prompts):
            out = model.base_model(input_ids=prompt[None], use_cache=False)
            # The hidden states accumulate the rounding of two layers with large weights.
            torch.testing.assert_close(
                prefilled.last_hidden[i], out.last_hidden_state[0, -1], rtol=tolerance, atol=tolerance
            )
            own = model.base_model(input_ids=prompt[None], use_cache=True).past_key_values
            for layer, cached in enumerate(own.layers):
                shown = cached.keys.shape[2]  # a sliding window's cache holds only the window
                for ours, theirs in ((prefilled.keys, cached.keys), (prefilled.values, cached.values)):
                    mine = ours[layer][i, :, len(prompt) - shown : len(prompt)]
                    torch.testing.assert_close(mine, theirs[0], rtol=tolerance, atol=tolerance)


def test_a_prefill_pass_has_at_most_the_given_tokens_or_one_longer_prompt():
    model, read = sharp(MODELS["qwen2"]), []
    model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    with torch.no_grad():
        prefill(model, [torch.full((n,), 4) for n in (6, 1, 9, 7, 2)], tokens=14)
    assert read == [(1, 7), (1, 9), (1, 9)]


def test_a_model_with_another_kind_of_cache_is_refused():
    from tiny import RECURRENT

    with pytest.raises(TypeError, match="1 of its 2 layers have keys and values of their own"), torch.no_grad():
        prefill(sharp(RECURRENT["lfm2"]), [torch.tensor([3, 4])])
