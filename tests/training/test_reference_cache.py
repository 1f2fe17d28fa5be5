"""Log-probs that are kept: what is read again, what is not, and which batch a row's are computed in."""

import copy
from pathlib import Path

import pytest
import torch

from grape_rl.data.order import rows_of_step
from grape_rl.model.fingerprint import fingerprint
from grape_rl.model.lora import add_adapters
from grape_rl.training.reference_cache import ReferenceLogprobCache, fill_cache, first_epoch_batches
from grape_rl.types import Sequences


def rows(*given: tuple[list[int], list[int]]) -> Sequences:
    """Prompts and responses, padded."""
    width = max(len(response) for _, response in given)
    tokens = torch.tensor([response + [0] * (width - len(response)) for _, response in given])
    mask = torch.arange(width) < torch.tensor([len(response) for _, response in given])[:, None]
    return Sequences(tuple(torch.tensor(prompt) for prompt, _ in given), tokens, mask, torch.arange(len(given)))


def asked(sequences: Sequences) -> torch.Tensor:
    """Log-probs that differ from row to row and from batch to batch."""
    total = sum(float(prompt.sum()) for prompt in sequences.prompts)
    made = -sequences.tokens.double() / 7 - total - sequences.group[:, None]
    return made.float().masked_fill(~sequences.mask, 0)


ONE = rows(([1, 2], [3, 4, 5]), ([1], [6]))
TWO = rows(([1], [6]), ([9], [1, 0, 2]))


def kept(folder: Path, of: str = "a") -> ReferenceLogprobCache:
    """What is read, all of which must be of ``of``."""
    made = ReferenceLogprobCache(folder)
    assert made.read(of) == []
    return made


def test_what_was_written_is_read_to_the_bit(tmp_path):
    first = kept(tmp_path / "new")
    assert fill_cache(first, [ONE, TWO, ONE], asked) == 2
    again = kept(tmp_path / "new")
    assert fill_cache(again, [ONE, TWO], asked) == 0
    for each in (first, again):
        assert torch.equal(each(ONE), asked(ONE))
        expected = asked(TWO)
        expected[0] = 0
        expected[0, 0] = asked(ONE)[1, 0]
        assert torch.equal(each(TWO), expected), "a row that is known stays as it is"
    assert len(list((tmp_path / "new").iterdir())) == 1, "nothing new, no new file"


def test_the_dtype_stays(tmp_path):
    fill_cache(kept(tmp_path), [ONE], lambda each: asked(each).double())
    assert kept(tmp_path)(ONE).dtype == torch.float64


@pytest.mark.parametrize(
    "other",
    [
        rows(([1], [2, 3, 4, 5])), rows(([1, 2, 3], [4, 5])), rows(([1, 2], [3, 4])), rows(([1, 2], [3, 4, 5, 0])),
        rows(([2, 2], [3, 4, 5])), rows(([1, 2], [3, 4, 6])),
        Sequences(ONE.prompts[:1], ONE.tokens[:1], torch.tensor([[True, False, True]]), torch.tensor([0])),
    ],
)  # fmt: skip
def test_a_row_is_known_by_its_tokens_and_by_where_its_prompt_ends(other, tmp_path):
    made = kept(tmp_path)
    fill_cache(made, [ONE], asked)
    assert made.lacks(other) and not made.lacks(rows(([1, 2], [3, 4, 5])))


def test_what_is_of_another_reference_or_broken_is_not_read(tmp_path):
    fill_cache(kept(tmp_path), [ONE], asked)
    fill_cache(kept(tmp_path), [TWO], asked)
    paths = sorted(tmp_path.iterdir())
    assert len(paths) == 2
    other = ReferenceLogprobCache(tmp_path)
    assert other.read("b") == [path.name for path in paths] and other.lacks(ONE)
    whole = paths[0].read_bytes()
    for broken in (whole[:-3], b"", whole[:-1] + bytes([whole[-1] ^ 1]), whole[:40]):
        paths[0].write_bytes(broken)
        made = ReferenceLogprobCache(tmp_path)
        assert made.read("a") == [paths[0].name] and made.lacks(ONE) + made.lacks(TWO) >= 1
    paths[0].write_bytes(whole)
    assert not kept(tmp_path).lacks(ONE)


def test_what_is_there_when_a_run_is_killed_is_kept(tmp_path, monkeypatch):
    def dying(sequences: Sequences) -> torch.Tensor:
        if sequences is TWO:
            raise KeyboardInterrupt
        return asked(sequences)

    with pytest.raises(KeyboardInterrupt):
        fill_cache(kept(tmp_path), [ONE, TWO], dying)
    assert not kept(tmp_path).lacks(ONE) and kept(tmp_path).lacks(TWO)
    monkeypatch.setattr("grape_rl.training.reference_cache.SAVED_EVERY", -1.0)
    fill_cache(kept(tmp_path / "often"), [ONE, TWO], asked)
    assert len(list((tmp_path / "often").iterdir())) == 2
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(("count", "per_step", "steps"), [(7, 3, 100), (7, 3, 2), (6, 3, 100), (3, 7, 5)])
def test_the_first_batches_have_every_row_that_a_run_reads(count, per_step, steps):
    found = list(first_epoch_batches(count, per_step, steps, seed=4))
    assert found == [rows_of_step(count, per_step, step, 4) for step in range(len(found))]
    read = {row for step in range(steps) for row in rows_of_step(count, per_step, step, 4)}
    assert {row for batch in found for row in batch} == read
    assert len(found) == 1 or {row for batch in found[:-1] for row in batch} < read, "and no batch more"


def test_a_fingerprint_is_of_weights_and_configuration(model):
    whole = fingerprint(model)
    again = copy.deepcopy(model)
    again.config._name_or_path = "elsewhere"
    assert fingerprint(again) == whole
    with torch.no_grad():
        weight = next(again.parameters()).view(-1)
        weight[3] = torch.nextafter(weight[3], torch.tensor(9.0, dtype=weight.dtype))
    other = copy.deepcopy(model)
    other.config.rms_norm_eps = 0.5
    third = add_adapters(copy.deepcopy(model), 2, 4.0, (), seed=0)
    fourth = add_adapters(copy.deepcopy(model), 2, 4.0, (), seed=1)
    assert len({whole, *map(fingerprint, (again, other, third, fourth))}) == 5
