"""Pairs of sampled responses: which are made, what is told of them, and that a step without any changes nothing."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from grape_rl import ALGORITHMS
from grape_rl.maths.pairing import ranked_pairs
from grape_rl.methods import build_objective, resolve_options
from grape_rl.model.forward import ForwardContext
from grape_rl.rollout.collect import CollectedRollout
from grape_rl.rollout.scored_rollout import ScoredRollout
from grape_rl.sources.sampled_preferences import pair_source
from grape_rl.training.pairs import pair_logprobs
from grape_rl.training.update import UpdateSettings
from grape_rl.types import Response, Rollout, Scores, Verdict, failed
from precise import doubled

SETTINGS = UpdateSettings(ForwardContext(30, temperature=0.7), max_tokens=9, max_grad_norm=1e9, seed=3)
PROMPTS = (torch.tensor([5, 6, 7]), torch.tensor([8]))
LENGTHS = (3, 1, 4, 2, 2, 5, 4, 3)
GROUP = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])


def drawn(*rewards, same=()):
    """Four responses to each of two prompts; None is a reward that is missing; ``same`` rows repeat the first one."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(4, 40, (8, 5), generator=generator)
    mask = torch.arange(5) < torch.tensor(LENGTHS)[:, None]
    behavior = (-3 * torch.rand(8, 5, generator=generator)).masked_fill(~mask, 0)
    for row in same:
        tokens[row], mask[row] = tokens[0], mask[0]
    finish = ("stop",) * 8
    rollout = Rollout(PROMPTS, tokens, mask, GROUP, behavior, finish, 0)
    verdicts = tuple((failed("x", "timeout", "slow") if r is None else Verdict("x", r),) for r in rewards)
    reward = torch.tensor([math.nan if r is None else r for r in rewards], dtype=torch.float64)
    answers = tuple(Response(f"prompt {g}", f"text {i}", {}, 1, "stop") for i, g in enumerate(GROUP.tolist()))
    return ScoredRollout(rollout, answers, Scores(reward, verdicts, ("sums",) * 8))


def experience(found, pairing="best_worst", reference=None, **more):
    made = CollectedRollout(
        found, {"reward": 0.5, "tokens": 99.0, "reference_seconds": 0.0}, (("slow", "graders were"),)
    )
    return pair_source(lambda step: made, partial(ranked_pairs, pairing=pairing, **more), reference)(0)


def test_the_best_of_each_prompt_stands_against_its_worst():
    found = drawn(0.5, 0.25, 1.0, 0.75, 0.5, None, 0.0, 0.25)
    asked = []
    what = experience(found, reference=lambda sequences: asked.append(sequences) or _ones(sequences))
    rollout = found.rollout
    assert [p.tolist() for p in what.sequences.prompts] == [[5, 6, 7], [8]]
    for row, i in enumerate((2, 4, 1, 6)):  # chosen, chosen, rejected, rejected
        own = what.sequences.tokens[row][what.sequences.mask[row]]
        assert torch.equal(own, rollout.tokens[i][rollout.mask[i]])
    assert what.sequences.group.tolist() == [0, 1, 0, 1]
    assert what.batch.chosen_reward.tolist() == [1.0, 0.5] and what.batch.rejected_reward.tolist() == [0.25, 0.0]
    assert asked[-1] is what.sequences and torch.equal(what.batch.reference_logp, _ones(what.sequences))
    assert [r["role"] for r in what.records] == [
        "none", "rejected", "chosen", "none", "chosen", "none", "rejected", "none"
    ]  # fmt: skip
    assert what.records[5]["reward"] is None and what.records[5]["verdicts"][0]["status"] == "timeout"
    assert all(r["advantage"] is None for r in what.records)
    told = what.metrics
    assert (told["pairs"], told["unpaired_groups"], told["reward_gap"]) == (2, 0, pytest.approx((0.75 + 0.5) / 2))
    assert (told["chosen_length"], told["rejected_length"]) == ((4 + 2) / 2, (1 + 4) / 2)
    assert (told["reward"], told["tokens"]) == (0.5, 99.0), "those of all that was sampled"
    assert "kl" not in told and what.warnings == (("slow", "graders were"),)


def _ones(sequences):
    return -torch.ones(sequences.mask.shape)


def test_a_response_may_be_chosen_in_one_pair_and_rejected_in_another():
    what = experience(drawn(0.5, 0.25, 1.0, 0.25, 0.5, None, None, 0.5), "adjacent")
    assert [r["role"] for r in what.records[:4]] == ["both", "rejected", "chosen", "none"]
    assert (what.metrics["pairs"], what.metrics["unpaired_groups"]) == (2, 1)
    assert experience(drawn(0.5, 0.25, 1.0, 0.25, 0.5, None, None, 0.5), "all").metrics["pairs"] == 5


def test_the_kl_is_that_of_all_responses_and_not_of_the_pairs():
    found = drawn(0.5, 0.25, 1.0, 0.75, 0.5, None, 0.0, 0.25)
    b, mask = found.rollout.behavior_logp, found.rollout.mask
    shift = torch.linspace(-0.5, 0.5, 40).reshape(8, 5)
    told = experience(replace(found, reference_logp=b + shift)).metrics["kl"]
    assert told == pytest.approx(float((shift.exp() - 1 - shift)[mask].mean()), rel=1e-4)


def test_rewards_that_single_precision_cannot_tell_apart_are_equal():
    """Else a loss that divides by their difference would see 0."""
    what = experience(drawn(0.1, 0.1 + 1e-12, 0.1, 0.1, 0.5, 0.5, 0.5, 0.6))
    assert what.metrics["pairs"] == 1
    assert (what.batch.chosen_reward > what.batch.rejected_reward).all()


NOTHING = {
    "equal": (drawn(*[0.5] * 4, *[0.25] * 4), {}),
    "missing": (drawn(1.0, None, None, None, 0.0, None, None, None), {}),
    "the same": (drawn(1.0, 0.0, 0.0, 0.5, *[0.25] * 4, same=(1, 2, 3)), {}),
    "too near": (drawn(1.0, 0.5, 0.5, 0.5, *[0.25] * 4), {"min_gap": 0.6}),
}


@pytest.mark.parametrize("name", ["online_dpo", "online_aot"])
@pytest.mark.parametrize("why", NOTHING)
def test_a_step_without_pairs_says_so_and_leaves_every_bit_even_with_momentum(model, name, why):
    row = ALGORITHMS[name]
    goal, found = build_objective(row, resolve_options(row, {})), drawn(1.0, 0.0, 0.5, 0.5, 1.0, 0.0, 0.5, 0.5)
    adam = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    assert row.update(model, adam, experience(found), goal, SETTINGS)
    before = [p.detach().clone() for p in model.parameters()]

    def never(sequences):
        raise AssertionError("there is nothing to run the reference on")

    silent, more = NOTHING[why]
    what = experience(silent, reference=never, **more)
    assert row.update(model, adam, what, goal, SETTINGS) == {}
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert (what.metrics["pairs"], what.metrics["unpaired_groups"]) == (0, 2)
    assert math.isnan(what.metrics["reward_gap"])
    assert what.warnings[-1] == ("no_pairs", "no two responses of the step make a pair: the step changes nothing")
    assert {r["role"] for r in what.records} == {"none"}


@pytest.mark.parametrize("name", ["online_dpo", "online_aot"])
def test_the_gradient_is_that_of_the_policy_at_its_temperature_however_it_is_cut(model, name):
    """Against a loop over the pairs, each response by the model's own forward pass."""
    model, row = doubled(model), ALGORITHMS[name]
    goal, what = (
        build_objective(row, resolve_options(row, {})),
        experience(drawn(0.5, 0.25, 1.0, 0.75, 0.5, None, 0.0, 0.25)),
    )
    reference = pair_logprobs(model, what.sequences, ForwardContext(30, temperature=0.7)) - 0.1 * what.batch.mask
    what = replace(what, batch=replace(what.batch, reference_logp=reference))
    logp, frozen = [], (reference * what.batch.mask).sum(dim=1)
    for row_number, prompt in enumerate((*what.sequences.prompts, *what.sequences.prompts)):
        own = what.sequences.tokens[row_number][what.sequences.mask[row_number]]
        logits = model(input_ids=torch.cat([prompt, own])[None]).logits[0, len(prompt) - 1 : -1] / 0.7
        logp.append(logits.log_softmax(-1).gather(1, own[:, None]).sum())
    margins = [logp[i] - logp[i + 2] for i in range(2)], [frozen[i] - frozen[i + 2] for i in range(2)]
    if name == "online_aot":  # quantile against quantile
        margins = tuple(sorted(each, key=lambda value: value.item()) for each in margins)
    loss = sum((1 + (-0.1 * (m - f)).exp()).log() for m, f in zip(*margins, strict=True)) / 2
    expected = torch.autograd.grad(loss, list(model.parameters()))
    for budget in (1, 10_000):
        before = [p.detach().clone() for p in model.parameters()]
        settings = replace(SETTINGS, forward=ForwardContext(budget, temperature=0.7))
        row.update(model, torch.optim.SGD(model.parameters(), lr=1.0), what, goal, settings)
        for b, p, e in zip(before, model.parameters(), expected, strict=True):
            torch.testing.assert_close(b - p.detach(), e, rtol=1e-9, atol=1e-11)  # float64, sums in another order
            p.data.copy_(b)
