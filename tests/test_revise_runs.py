"""Runs that revise: what is revised and learned, killed and resumed; what is off is as it was; what is refused."""

import pytest
import torch

from grape_rl import train
from grape_rl.cli.settings import run_summary
from grape_rl.config.files import merge
from grape_rl.data.chat import prompt_tokens
from grape_rl.model.scratch import character_tokenizer, random_llama
from grape_rl.setup import revisions as setup_revisions
from grape_rl.setup import sampling as setup_sampling
from grape_rl.types import Response
from grape_rl.validation import load_config
from small_runs import killed_and_resumed, lines, settings, timeless_metrics, weights

REVISE = {"per_group": 2, "request": "{critique}\nagain:"}
WIDE = {"scratch": {"hidden": 32, "layers": 2, "heads": 2, "context": 192}}


def revising(folder, method, **more):
    return merge(settings(folder, method), {"model": WIDE, "revise": REVISE, **more})


@pytest.mark.parametrize(
    ("method", "options"),
    [("grape", {}), ("online_dpo", {"pairing": "revised"}), ("rejection_sampling", {"epochs": 2})],
)
def test_the_worst_are_revised_and_a_killed_run_goes_on_to_the_same_bits(method, options, tmp_path, monkeypatch):
    wanted = revising(tmp_path, method, steps=3, checkpoint_every=1, options=options)
    run, straight = killed_and_resumed(wanted, tmp_path, monkeypatch)
    name = "rollouts/step-000003.jsonl"
    assert lines(run.folder / name) == lines(straight.folder / name)
    for number, step in enumerate(run.metrics, 1):
        found = lines(run.folder / f"rollouts/step-{number:06d}.jsonl")
        own, revisions = found[:12], found[12:]
        assert all("revision_of" not in each for each in own) and 3 < len(revisions) == step["revisions"] <= 6
        gains = [each["reward"] - own[each["revision_of"]]["reward"] for each in revisions]
        assert step["revision_reward_gain"] == pytest.approx(sum(gains) / len(gains))
        for each in revisions:
            of = own[each["revision_of"]]
            assert each["prompt"] == of["prompt"] and len(each["verdicts"]) == 2
            lost = [v["item"] for v in of["verdicts"] if v["score"] < 1]
            assert lost and [line.split(":")[0] for line in each["critique"].splitlines()] == [f"- {x}" for x in lost]
            worse = [other for other in own if other["prompt"] == of["prompt"] and other["reward"] < of["reward"]]
            assert len(worse) < 2
        if method == "online_dpo":
            better = [each for each, gain in zip(revisions, gains, strict=True) if gain > 0]
            assert step["pairs"] == len(better)
            assert [each["role"] for each in revisions] == ["chosen" if e in better else "none" for e in revisions]
        elif method == "grape":
            assert step["trained_responses"] == 12 + len(revisions) and step["approx_kl"] < 1e-6, (
                "the ratio starts at 1"
            )
            assert step["revision_kl"] > 1e-4, "what it would be under the prompt to revise by"
        else:
            assert step["trained_responses"] == 3


def test_where_no_revision_fits_the_run_says_so_and_is_that_without_revisions(tmp_path):
    small = {"scratch": WIDE["scratch"] | {"context": 40}}
    run = train(revising(tmp_path, "grape", model=small))
    assert all(step["revisions"] == 0 and step["revisions_too_long"] > 0 for step in run.metrics)
    assert "revisions_too_long" in [line["key"] for line in lines(run.folder / "warnings.jsonl")]
    off = {"per_group": 0}
    other = train(revising(tmp_path, "grape", model=small, revise=off, output=str(tmp_path / "off")))
    assert all(map(torch.equal, weights(run.model).values(), weights(other.model).values()))
    assert "revis" not in timeless_metrics(other)


def test_what_the_configuration_says_is_what_is_revised_by(tmp_path, monkeypatch):
    seen = []
    whole = setup_revisions.add_revisions
    spy = lambda scored, reviser: seen.append(reviser) or whole(scored, reviser)  # noqa: E731
    monkeypatch.setattr(setup_revisions, "add_revisions", spy)
    revise = {"items": 1, "max_characters": 17, "show_gold": True}
    wanted = revising(
        tmp_path, "grape", revise=REVISE | revise, seed=5, sampling={"temperature": 0.6}, reward={"failure_limit": 0.3}
    )
    run = train(wanted)
    reviser = seen[0]
    assert (reviser.seed, reviser.per_group, reviser.failure_limit) == (5, 2, 0.3)
    assert reviser.critique.keywords == {"max_items": 1, "max_characters": 17, "show_gold": True}
    assert all(step["approx_kl"] < 1e-6 for step in run.metrics), "the behavior policy is that of the temperature"
    found = lines(run.folder / "rollouts/step-000001.jsonl")
    assert {len(each["critique"]) for each in found[12:]} == {17}
    answer = Response("1+1=", "3", {"prompt": "1+1="}, 1, "stop")
    fixed = len(reviser.prompt(answer, ""))  # one token a character, and one that begins
    room = 192 - 10 - fixed
    assert len(reviser.prompt(answer, "1" * room)) == 192 - 10
    assert reviser.prompt(answer, "1" * (room + 1)) is None


TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role == 'tool' and not loop.last %}{{ raise_exception('no answer to a tool') }}{% endif %}"
    "{{ m.role[0] }}:{{ m.content }};{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
)


def chat_model(folder):
    tokenizer = character_tokenizer(["0123456789+=:; uaAgin,.whersbtcf-"])
    tokenizer.chat_template = TEMPLATE
    random_llama(tokenizer, 32, 2, 2, 192, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer, {"scratch": None, "name": str(folder)}


def test_in_a_conversation_the_answer_is_the_assistants_and_the_request_the_users(tmp_path, monkeypatch):
    tokenizer, model = chat_model(tmp_path / "model")
    seen = []
    sample = setup_sampling.sample
    monkeypatch.setattr(setup_sampling, "sample", lambda *given: seen.append((given[1], given[2])) or sample(*given))
    wanted = {**revising(tmp_path, "grape", data={"chat": True}, steps=1), "model": model}
    train(wanted)
    found = lines(tmp_path / "run" / "rollouts" / "step-000001.jsonl")
    (_, n), (prompts, one) = seen
    assert (n, one) == (4, 1) and len(prompts) == len(found) - 12 > 0
    for prompt, revision in zip(prompts, found[12:], strict=True):
        of = found[revision["revision_of"]]
        asked = f"u:{of['prompt']};a:{of['response']};u:{revision['critique']}\nagain:;A:"
        assert torch.equal(prompt, prompt_tokens(tokenizer, asked))


def test_a_template_that_refuses_to_revise_is_refused_before_the_first_step(tmp_path):
    _, model = chat_model(tmp_path / "model")
    wanted = {**revising(tmp_path, "grape"), "model": model}
    prompt = [{"role": "user", "content": "1+1"}, {"role": "tool", "content": "2"}]
    good = '{"prompt": [{"role": "user", "content": "1+2"}]}\n'
    bad = str({"prompt": prompt}).replace("'", '"')
    (tmp_path / "rows.jsonl").write_text(good + bad + "\n" + good)
    with pytest.raises(ValueError, match=r"revise: .*no answer to a tool"):
        train(wanted)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"method": "sft"}, "revise: sft samples no responses, so there is nothing to revise"),
        ({"reward": {"function": "f.py:f"}, "method": "grpo"}, "revise: a critique needs the verdicts of a rubric"),
        ({"revise": {"per_group": 5}}, "revise: per_group is 5, but grape samples 4 responses per prompt"),
        ({"revise": {"request": "Again!"}}, r"revise.request: .*has no \{critique\} in it"),
        (
            {"method": "online_dpo", "options": {"pairing": "revised"}, "revise": {"per_group": 0}},
            "options: pairing is 'revised' but nothing is revised: set revise.per_group",
        ),
    ],
)
def test_what_is_refused(tmp_path, more, message):
    with pytest.raises(ValueError, match=message):
        load_config(merge(revising(tmp_path, "grape"), more))


def test_the_step_that_is_announced_has_the_revisions_in_it(tmp_path):
    said = run_summary(load_config(revising(tmp_path, "grape")))
    assert "3 prompts x 4 responses = 12 responses and 6 revisions, up to 180 tokens" in said
