"""The benchmarks of speed: their models, tokenizers and data."""

import pytest
import torch

import shapes
from speed import data
from speed.turns import write_rows


def test_prompts_have_exactly_the_requested_number_of_tokens():
    words = ["the cat", "these cats", "then at the start", "a tea at ten", "reading the text there"]
    pairs = shapes.byte_pairs(words * 3, 290)
    assert {len(pairs(row["prompt"])["input_ids"]) for row in data.prompts(pairs, 10, 60)} == {10}
    tokenizer = shapes.letters()
    found = data.prompts(tokenizer, 50, 4)
    assert [len(tokenizer(row["prompt"])["input_ids"]) for row in found] == [50] * 4
    assert len({row["prompt"] for row in found}) == 4 and data.prompts(tokenizer, 50, 4) == found
    assert len(tokenizer) == 81 and tokenizer.eos_token_id == 1 and tokenizer.pad_token_id == 0


def test_a_byte_pair_tokenizer_is_the_same_after_loading(tmp_path):
    texts = [f"Ann has {n} apples, she's 1{n} years.\n\nHow  many? <<{n}*2=4>>" for n in range(9)]
    made = shapes.byte_pairs(texts, 280)
    shapes.model({**shapes.SHAPES["tiny"], "vocab_size": 280}).save_pretrained(tmp_path)
    made.save_pretrained(tmp_path)
    from transformers import AutoTokenizer

    again = AutoTokenizer.from_pretrained(str(tmp_path))
    assert len(made) == len(again) == 280, "no token without an embedding"
    decomposed = "U\u0308"
    assert again(decomposed)["input_ids"] == made(decomposed)["input_ids"] == made("Ü")["input_ids"]
    for text in [*texts, "Ünï 1234 ...\n x"]:
        assert again(text)["input_ids"] == made(text)["input_ids"] and made.decode(made(text)["input_ids"]) == text


def test_data_is_read_under_either_name(tmp_path):
    answers = {"a": {"is_correct": False, "solution": "5"}, "b": {"is_correct": True, "solution": "4"}}
    solved = [{"question": "1+1?", "ground_truth": "2", "a": answers["a"]}, {"question": "2+2?", **answers}]
    write_rows(tmp_path / "train.jsonl", [{"question": "1+1?", "answer": "2"}, {"question": "3?", "answer": "3"}])
    write_rows(tmp_path / "example_model_solutions.jsonl", solved)
    assert data.demonstrations(tmp_path, 1) == [{"prompt": "1+1?\n", "completion": "2"}]
    assert data.pairs(tmp_path, 5) == [{"prompt": "2+2?\n", "chosen": "4", "rejected": "5"}]
    assert data.solved_texts(tmp_path) == ["1+1?", "2", "3?", "3"]
    with pytest.raises(ValueError, match=r"neither gsm8k_train.jsonl nor train.jsonl exists"):
        data.demonstrations(tmp_path / "none", 1)


@pytest.mark.parametrize(("name", "millions"), [("tiny", 0.8), ("gsm", 17.3), ("wide", 26.5), ("qwen05", 494.0)])
def test_shapes_have_their_stated_number_of_parameters(name, millions):
    given = {
        "vocab_size": {"tiny": 81, "gsm": 8192}.get(name),
        "intermediate_size": 3 * shapes.SHAPES[name]["hidden_size"],
    }
    with torch.device("meta"):
        made = shapes.model(given | dict(shapes.SHAPES[name]))
    assert sum(p.numel() for p in made.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


def test_an_unknown_shape_raises():
    with pytest.raises(ValueError, match="unknown shape 'wid'; did you mean 'wide'"):
        shapes.built("wid", [])
