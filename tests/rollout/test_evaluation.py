"""Held-out results: what they average, that the same seed gives the same, and that a file gives them back."""

import json
import math
from collections import Counter

import pytest
import torch

from grape_rl.model.sampler import SamplingParams, sample
from grape_rl.reward.scores import ItemSummary
from grape_rl.rollout.evaluation import HeldOut, evaluate, read_held_out
from grape_rl.rollout.source import Prompt
from grape_rl.types import Scores, Verdict, failed


def digits(answers, group):
    """Rewards responses by their digits; an empty response is a verdict that is missing."""
    verdicts = tuple(
        (
            Verdict("digits", float(sum(c.isdigit() for c in a.text)))
            if a.text
            else failed("digits", "refused", "empty"),
        )
        for a in answers
    )
    return Scores(torch.tensor([v.score for (v,) in verdicts]), verdicts, tuple(a.row["kind"] for a in answers))


def test_each_prompt_is_answered_and_averaged(model, tokenizer):
    prompts = [Prompt(torch.arange(4, 7 + i), f"p{i}", {"kind": "ab"[i % 2]}) for i in range(5)]
    seen = []

    def sampler(tokens, on_response):
        return sample(model, tokens, 3, SamplingParams(6), (1,), 4)

    def scorer(answers, group):
        seen.append(answers)
        return digits(answers, group)

    found = evaluate(prompts, sampler, 3, scorer, tokenizer)
    answers = seen[0]
    assert found.responses == len(answers) == 15
    rewards = [sum(c.isdigit() for c in a.text) for a in answers if a.text]
    assert found.reward == pytest.approx(sum(rewards) / len(rewards))
    assert found.length == pytest.approx(sum(a.tokens for a in answers) / 15)
    assert found.truncated == pytest.approx(sum(a.finish == "length" for a in answers) / 15)
    assert {item.category for item in found.items} == {"a", "b"}
    assert found.mean("digits") == pytest.approx(sum(item.mean for item in found.items) / 2)
    assert math.isnan(found.mean("spelling"))
    assert evaluate(prompts, sampler, 3, scorer, tokenizer) == found


RESULT = HeldOut(
    8, 0.5, 3.25, 0.125,
    (ItemSummary("sums", "correct", 6, 0.75, Counter({"timeout": 1, "refused": 1})),
     ItemSummary("sums", "brief", 0, math.nan, Counter({"timeout": 8}))),
)  # fmt: skip


def test_json_gives_the_results_back(tmp_path):
    nothing = HeldOut(2, math.nan, 1.0, 0.0, ())
    path = tmp_path / "held_out.json"
    path.write_text(json.dumps({"0": RESULT.as_json(), "10": nothing.as_json()}, allow_nan=False))
    found = read_held_out(path)
    assert list(found) == [0, 10]
    assert found[0].items[0] == RESULT.items[0]
    assert math.isnan(found[0].items[1].mean) and found[0].items[1].missing == {"timeout": 8}
    assert (found[0].responses, found[0].reward, found[0].length, found[0].truncated) == (8, 0.5, 3.25, 0.125)
    assert math.isnan(found[10].reward) and found[10].items == ()
    assert read_held_out(tmp_path / "nowhere.json") == {}
