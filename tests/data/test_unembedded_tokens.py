"""A tokenizer with tokens that have no embedding in the model: no row may contain one."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AddedToken

from grape_rl import train
from grape_rl.data.unembedded_tokens import EMBEDDINGS_ATTRIBUTE
from grape_rl.model.load import load
from grape_rl.model.scratch import character_tokenizer, random_llama
from grape_rl.model.value_head import separate_value_model
from grape_rl.setup.policy import make_policy
from grape_rl.setup.value_function import build_value_function
from grape_rl.training.value import ValueFunctionOptions
from small_runs import REWARD, settings, sums, written

CPU = torch.device("cpu")
SURPLUS = "<|endoftext|>"


def folder(at: Path, template: str | None = None, eos: str = "", pad: str = "", also: int | None = None) -> str:
    """A model with an embedding per character, and a tokenizer with one special token more.

    transformers adds such a token to the tokenizer of any folder of type qwen2. ``eos`` and ``pad`` replace the
    tokenizer's end and padding tokens. ``also`` is an end token in the model's generation configuration.
    """
    tokenizer = character_tokenizer(["0123456789+= "])
    model = random_llama(tokenizer, 32, 2, 2, 64, seed=0)
    tokenizer.add_tokens([AddedToken(SURPLUS, special=True)], special_tokens=True)
    assert tokenizer.convert_tokens_to_ids(SURPLUS) == model.config.vocab_size
    tokenizer.eos_token, tokenizer.pad_token = eos or tokenizer.eos_token, pad or tokenizer.pad_token
    model.generation_config.eos_token_id = also
    tokenizer.chat_template = template
    model.save_pretrained(at)
    tokenizer.save_pretrained(at)
    return str(at)


def run(at: Path, method: str, rows: list[dict[str, object]], **data: object) -> dict[str, object]:
    """The configuration of a run of the method from that folder."""
    made = settings(at, method)
    made["model"] = {"name": made.pop("name", str(at / "model"))}
    made["data"] = {"source": str(written(at / "rows.jsonl", rows)), "max_length": 64, **data}
    made.pop("reward")
    return made


def paired(count: int) -> list[dict[str, object]]:
    """Sums with a right and a wrong answer."""
    return [{"prompt": r["prompt"], "chosen": r["completion"], "rejected": r["completion"] + "1"} for r in sums(count)]


def labeled(count: int) -> list[dict[str, object]]:
    """Sums; every second one is labeled desirable."""
    return [{**row, "label": i % 2 == 0} for i, row in enumerate(sums(count))]


def stepped(count: int) -> list[dict[str, object]]:
    """Sums in one step; every second one is labeled right."""
    return [
        {"prompt": row["prompt"], "completions": [row["completion"]], "labels": [i % 2 == 0]}
        for i, row in enumerate(sums(count))
    ]


KINDS = {"sft": sums, "dpo": paired, "kto": labeled, "reward_model": paired, "process_reward_model": stepped}


@pytest.mark.parametrize("method", KINDS)
def test_a_token_that_no_row_contains_is_harmless(method, tmp_path):
    folder(tmp_path / "model")
    more = {"options": {"separator": " "}} if method == "process_reward_model" else {}
    assert len(train({**run(tmp_path, method, KINDS[method](6)), **more}).metrics) == 2


def test_it_is_harmless_in_a_run_that_samples_and_the_model_loads_again(tmp_path):
    folder(tmp_path / "model")
    (tmp_path / "digits.py").write_text(REWARD)
    wanted = {**run(tmp_path, "grpo", sums(6)), "reward": {"function": f"{tmp_path / 'digits.py'}:digits"}}
    found = train(wanted)
    _, tokenizer = load(str(found.model), CPU)
    assert tokenizer.convert_tokens_to_ids(SURPLUS) == len(tokenizer) - 1
    assert EMBEDDINGS_ATTRIBUTE not in (found.model / "tokenizer_config.json").read_text()


@pytest.mark.parametrize(
    ("method", "column", "where"),
    [
        ("sft", "prompt", "data: row 2: contains"), ("sft", "completion", "data: row 2: contains"),
        ("dpo", "prompt", "data: row 2: contains"), ("dpo", "rejected", "data: row 2: contains"),
        ("kto", "completion", "data: row 2: contains"), ("reward_model", "chosen", "data: row 2: contains"),
        ("process_reward_model", "completions", "data: row 2: contains"),
        ("grpo", "prompt", "data, row 2: contains"),
    ],
)  # fmt: skip
def test_a_row_that_contains_it_is_named_before_the_run_writes_anything(method, column, where, tmp_path):
    name = folder(tmp_path / "model")
    rows = KINDS.get(method, sums)(6)
    rows[2][column] = [f"1{SURPLUS}"] if column == "completions" else f"1{SURPLUS}2"
    wanted = run(tmp_path, method, rows)
    if method == "grpo":
        (tmp_path / "digits.py").write_text(REWARD)
        wanted["reward"] = {"function": f"{tmp_path / 'digits.py'}:digits"}
    with pytest.raises(ValueError) as error:
        train(wanted)
    count = json.loads(Path(name, "config.json").read_text())["vocab_size"]
    message = f"{where} '{SURPLUS}', token {count}, but the model has only {count} embeddings; remove it, or"
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_template_that_writes_it_is_refused_too(tmp_path):
    folder(tmp_path / "model", template="{% for m in messages %}{{ m['content'] }}" + SURPLUS + "{% endfor %}")
    with pytest.raises(ValueError, match=r"data: row 0: contains '<\|endoftext\|>'"):
        train(run(tmp_path, "sft", sums(3), chat=True))


def test_an_end_token_that_the_model_cannot_generate_is_ignored(tmp_path):
    name = folder(tmp_path / "model", eos=SURPLUS)
    with pytest.raises(ValueError, match=r"the end token '<\|endoftext\|>' is token \d+, but .* no response would end"):
        make_policy(*load(name, CPU))
    other = folder(tmp_path / "other", eos=SURPLUS, also=1)
    assert make_policy(*load(other, CPU)).end_tokens == (1,), "the one that it can generate is left"


def test_a_reward_model_pads_with_a_token_that_has_an_embedding(tmp_path):
    folder(tmp_path / "model", pad=SURPLUS)
    assert len(train(run(tmp_path, "reward_model", paired(6))).metrics) == 2


def test_a_value_model_needs_no_embedding_that_the_policy_has_not(tmp_path):
    start = make_policy(*load(folder(tmp_path / "model"), CPU))
    separate_value_model(start.model).save_pretrained(tmp_path / "value")
    settings = ValueFunctionOptions(value_trunk="own", value_model=str(tmp_path / "value"))
    assert build_value_function(settings, start, None).config.num_labels == 1


def test_a_larger_vocabulary_is_refused(tmp_path):
    few = random_llama(character_tokenizer(["01"]), 32, 2, 2, 64, seed=0)
    with pytest.raises(ValueError, match=r"the tokenizer has \d+ tokens, including '.' \(token \d+\), but the model"):
        make_policy(few, character_tokenizer(["0123456789"]))
