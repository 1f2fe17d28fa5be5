"""Runs on demonstrations of every type of data, from a file to a trained model."""

import json
import math

import pytest
import torch

from grape_rl import train
from grape_rl.cli import main
from grape_rl.config.files import merge
from grape_rl.model.load import load
from grape_rl.model.scratch import character_tokenizer, random_llama
from small_runs import lines, settings, sums, weights, written

CPU = torch.device("cpu")
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}A:{{ m.content }}{{ eos_token }}{% else %}U:{{ m.content }};"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
)


def talk(i):
    """Two sums and their answers."""
    a, b = sums(i + 2)[-2:]
    return [
        {"role": "user", "content": a["prompt"]},
        {"role": "assistant", "content": a["completion"]},
        {"role": "user", "content": [{"type": "text", "text": b["prompt"]}]},
        {"role": "assistant", "content": b["completion"]},
    ]


def as_text(row):
    return {"text": row["prompt"] + row["completion"]}


def chat_model(folder):
    """A new model with a tokenizer that has a chat template, as a folder."""
    tokenizer = character_tokenizer(["0123456789+= UA:;"])
    tokenizer.chat_template = TEMPLATE
    random_llama(tokenizer, 32, 2, 2, 64, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def sft(folder, rows, **more):
    """A run of SFT on the rows, without a reward."""
    wanted = {key: value for key, value in settings(folder, "sft").items() if key != "reward"}
    written(folder / "rows.jsonl", rows)
    return merge(wanted, more)


def test_a_file_of_conversations_from_the_command_line(tmp_path, capsys):
    name = chat_model(tmp_path / "model")
    written(tmp_path / "talk.jsonl", [{"messages": talk(i), "id": i} for i in range(40)])
    code = main(
        ["train", "sft", "--model.name", name, "--data.source", str(tmp_path / "talk.jsonl"), "--steps", "30",
         "--data.held_out_rows", "3", "--optimizer.learning_rate", "1e-2", "--output", str(tmp_path / "run"),
         "--device", "cpu"]
    )  # fmt: skip
    said, told = capsys.readouterr()
    assert code == 0 and "chat template" not in told, told
    assert "held-out: demonstrations" in said and "perplexity" in said
    told = json.loads((tmp_path / "run" / "held_out.json").read_text())
    before, after = ({item["item"]: item["mean"] for item in told[step]["items"]} for step in ("0", "30"))
    assert after["nll"] < 0.8 * before["nll"]
    metrics = lines(tmp_path / "run" / "metrics.jsonl")
    assert metrics[-1]["perplexity"] == pytest.approx(math.exp(metrics[-1]["loss"]), rel=1e-4)
    assert metrics[-1]["perplexity"] < 0.6 * metrics[0]["perplexity"]


def own_nll(folder, texts):
    """−log π a token of each text's learned parts, by the model's own forward pass."""
    model, tokenizer = load(str(folder), CPU)
    total, count = 0.0, 0
    for turns in texts:
        ids, on = [], []
        for piece, learned in turns:
            own = tokenizer(piece, add_special_tokens=False)["input_ids"]
            ids, on = ids + own, on + [learned] * len(own)
        with torch.no_grad():
            logp = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        total -= sum(float(logp[i - 1, ids[i]]) for i in range(1, len(ids)) if on[i])
        count += sum(on[1:])
    return total / count


@pytest.mark.parametrize("kind", ["completion", "messages", "text"])
def test_the_held_out_loss_is_that_of_the_model_itself_on_every_type_of_data(kind, tmp_path):
    if kind == "messages":
        rows = [{"messages": talk(i)} for i in range(12)]
        texts = [
            [
                (f"U:{a['content']};A:", False), (f"{b['content']}<eos>", True),
                (f"U:{c['content'][0]['text']};A:", False), (f"{d['content']}<eos>", True),
            ]
            for a, b, c, d in map(talk, range(4))
        ]  # fmt: skip
    elif kind == "completion":
        rows = sums(12)
        texts = [[(r["prompt"], False), (r["completion"] + "<eos>", True)] for r in rows[:4]]
    else:
        rows = [as_text(r) for r in sums(12)]
        texts = [[(r["text"] + "<eos>", True)] for r in rows[:4]]
    wanted = sft(tmp_path, rows, model={"scratch": None, "name": chat_model(tmp_path / "model")}, steps=3)
    wanted["data"]["held_out_rows"] = 4
    run = train(wanted)
    for step, folder in ((0, tmp_path / "model"), (3, run.model)):
        found = run.evaluations[step]
        assert (found.responses, [item.graded for item in found.items]) == (0, [4, 4])
        expected = own_nll(folder, texts)
        assert found.mean("nll") == pytest.approx(expected, rel=1e-5)
        assert found.mean("perplexity") == pytest.approx(math.exp(expected), rel=1e-5)
    assert run.evaluations[3].mean("nll") < run.evaluations[0].mean("nll")


def test_a_reward_and_a_loss_on_the_same_held_out_rows(tmp_path):
    wanted = merge(settings(tmp_path, "sft"), {"data": {"held_out_rows": 3}, "steps": 1})
    found = train(wanted).evaluations[1]
    assert found.responses == 3
    assert [item.item for item in found.items] == ["even", "brief", "nll", "perplexity"]
    written(tmp_path / "test.jsonl", [{"prompt": row["prompt"]} for row in sums(3)])
    alone = merge(wanted, {"data": {"held_out": str(tmp_path / "test.jsonl")}, "output": str(tmp_path / "other")})
    assert [item.item for item in train(alone).evaluations[1].items] == ["even", "brief"], "no completions, no loss"


@pytest.mark.parametrize("method", ["sft", "dft"])
def test_a_run_with_noise_resumes_to_the_same_bits(method, tmp_path):
    more = {"method": method, "options": {"neftune": 5.0, "epochs": 2}, "steps": 4, "checkpoint_every": 2}
    straight = train(sft(tmp_path, sums(12), **more))
    halfway = sft(tmp_path, sums(12), **more, output=str(tmp_path / "halves"))
    train({**halfway, "steps": 2})
    run = train(halfway, resume=True)
    assert all(torch.equal(a, weights(run.model)[key]) for key, a in weights(straight.model).items())
    plain = train(sft(tmp_path, sums(12), **{**more, "options": {"epochs": 2}}, output=str(tmp_path / "plain")))
    assert [line["loss"] for line in plain.metrics] != [line["loss"] for line in run.metrics]


def test_micro_batches_change_no_result(tmp_path):
    rows = [{"messages": talk(i)} for i in range(12)]
    name = chat_model(tmp_path / "model")
    found = []
    for tokens in (8192, 30):
        wanted = sft(tmp_path, rows, model={"scratch": None, "name": name}, tokens_per_microbatch=tokens, steps=3)
        found.append(weights(train(wanted | {"output": str(tmp_path / str(tokens))}).model))
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=0, atol=2e-4)  # Adam's steps of 1e-2, in float32


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        (
            [{"question": "1+1="}],
            {},
            "row 0 has no demonstration: 'prompt' with 'completion', or 'messages', or 'text';",
        ),
        ([{"mesages": talk(0)}], {}, "it has 'mesages'; did you mean 'mesages'?"),
        (
            [{"messages": talk(0)}, {"messages": talk(0)[:1]}],
            {},
            "data: row 1: the conversation has no assistant message",
        ),
        ([{"messages": talk(0)}, {"text": "1"}], {}, "row 1 has no column 'messages'; it has 'text'"),
        ([{"messages": "1+1=2"}], {}, "row 0: the messages ('messages') must be messages, but it is plain text"),
        (
            [{"text": "1+1=2"}],
            {"learn": "assistant"},
            "plain text has no assistant to learn; set data.learn to all",
        ),
        ([{"messages": talk(0)}], {"chat": True}, "data.chat needs columns of a prompt and a completion; "),
        ([{"text": "1\ud8002"}], {}, "row 0: column 'text' contains a lone surrogate (\\ud800)"),
        (
            [{"messages": [{"role": "user", "content": [{"type": "image", "image": "x"}]}]}],
            {},
            "row 0: the messages ('messages') has a message whose content is neither text",
        ),
        ([{"prompt": "1+1="}] * 3, {"held_out_rows": 1}, "but the columns prompt are prompt-only data, which"),
    ],
)
def test_what_cannot_be_learned_is_told_in_one_line(rows, more, message, tmp_path):
    wanted = sft(tmp_path, rows, model={"scratch": None, "name": chat_model(tmp_path / "model")}, data=more)
    with pytest.raises(ValueError) as told:
        train(wanted)
    assert message in str(told.value) and "\n" not in str(told.value)
    assert not (tmp_path / "run").exists()
