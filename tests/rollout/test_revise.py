"""Revisions: which responses get one, what the policy is asked, how it joins its group, and what is credited for it."""

import itertools
import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from grape_rl import ALGORITHMS
from grape_rl.maths.advantage import group_relative, leave_one_out
from grape_rl.maths.pairing import ranked_pairs
from grape_rl.maths.rejection import accepted
from grape_rl.methods import resolve_options
from grape_rl.model.forward import ForwardContext
from grape_rl.model.logprobs import compute_logprobs
from grape_rl.rollout.advantages import AdvantageInputs, estimate_advantages
from grape_rl.rollout.dynamic_sampling import ScoredRollout, once
from grape_rl.rollout.revise import revised, revision_prompt, worst
from grape_rl.rollout.source import Prompt, Round, reference_logprobs, responses, step_seed
from grape_rl.sources.responses import Responses
from grape_rl.sources.sampled_preferences import pair_source
from grape_rl.types import Response, Rollout, Scores, Verdict, failed

NAN = math.nan
PROMPTS = (torch.tensor([5, 6, 7]), torch.tensor([8]))
GROUP = (0, 0, 0, 1, 1, 1)
LENGTHS = (3, 1, 4, 2, 2, 4)


def rollout(group, lengths, prompts=PROMPTS, first=10):
    """Token i of the n-th response is 10 + n, so that every row says which it is."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    tokens = (torch.arange(first, first + len(lengths))[:, None] * mask).long()
    return Rollout(prompts, tokens, mask, torch.tensor(group), -0.5 * mask.float(), ("stop",) * len(lengths), 4)


def scores(*rewards):
    verdicts = tuple((failed("x", "timeout", "slow") if math.isnan(r) else Verdict("x", r),) for r in rewards)
    category = ("sums",) * len(rewards)
    return Scores(torch.tensor(rewards, dtype=torch.float64), verdicts, category, items=(("sum",),) * len(rewards))


def draw(*rewards):
    answers = tuple(Response(f"prompt {g}", f"text {i}", {"n": g}, 9, "stop") for i, g in enumerate(GROUP))
    return ScoredRollout(rollout(GROUP, LENGTHS), answers, scores(*rewards))


REWARDS = (0.5, 0.25, 1.0, 0.75, NAN, 0.0)


def revise(tokenizer, found, new, per_group=1, lengths=None, silent=(), long=(), logp=None, limit=1.0):
    """``found`` with revisions rewarded by ``new``; and what was asked of the sampler and of the scorer."""
    asked = []

    def sampler(prompts, n, seed, version, ended):
        asked.append(([p.tolist() for p in prompts], n, seed, version))
        written = rollout(range(len(prompts)), lengths or [2] * len(prompts), tuple(prompts), 30)
        return replace(written, version=version, finish=("length",) * len(prompts))

    def scorer(answers, group, known=None):
        asked.append((answers, group, known))
        both = scores(*known.reward.tolist(), *new)
        return replace(both, verdicts=known.verdicts + both.verdicts[len(known.verdicts) :])

    def number(response):
        return int(response.text.split()[1])

    out = revised(
        found,
        lambda response, items, verdicts: (
            "" if number(response) in silent else f"{items[0]} {number(response)} {verdicts[0].score:g}"
        ),
        lambda response, critique: None if number(response) in long else torch.tensor([40 + number(response), 3]),
        sampler,
        logp or (lambda sequences: -2.0 * sequences.mask.float()),
        scorer,
        tokenizer,
        per_group,
        seed=9,
        failure_limit=limit,
    )
    return out, asked


def test_the_worst_of_each_group_are_revised_and_join_it(tokenizer):
    before = draw(*REWARDS)
    found, ((prompts, n, seed, version), (answers, group, known)) = revise(
        tokenizer, before, (0.75, 0.5, NAN, 1.0), per_group=2, lengths=(6, 1, 2, 3)
    )
    assert (prompts, n, version) == ([[40, 3], [41, 3], [43, 3], [45, 3]], 1, 4), "4 has no reward"
    assert seed == step_seed(9, 4, "revise") != step_seed(9, 4, "sample")
    assert found.revised.of == (0, 1, 3, 5)
    assert found.revised.critiques == ("sum 0 0.5", "sum 1 0.25", "sum 3 0.75", "sum 5 0")
    assert found.revision_of.tolist() == [-1] * 6 + [0, 1, 3, 5]
    assert answers[:6] == before.answers
    answers = answers[6:]
    assert [(a.prompt, a.row, a.tokens) for a in answers] == [
        ("prompt 0", {"n": 0}, 6), ("prompt 0", {"n": 0}, 1), ("prompt 1", {"n": 1}, 2), ("prompt 1", {"n": 1}, 3)
    ]  # fmt: skip
    assert [a.text for a in answers] == [tokenizer.decode([30 + i] * k) for i, k in enumerate((6, 1, 2, 3))]
    assert group.tolist() == [*GROUP, 0, 0, 1, 1]
    assert known is before.scores, "what was graded is not graded again"
    assert [a.finish for a in found.answers] == list(found.rollout.finish) == ["stop"] * 6 + ["length"] * 4
    after = found.rollout
    assert all(map(torch.equal, after.prompts, PROMPTS)), "what is trained on is the prompt alone"
    assert after.group.tolist() == [*GROUP, 0, 0, 1, 1] and len(after.finish) == 10 == len(found.answers)
    assert after.tokens.shape == after.mask.shape == after.behavior_logp.shape == (10, 6)
    own = [after.tokens[i][after.mask[i]].tolist() for i in range(10)]
    assert own == [[10 + i] * k for i, k in enumerate(LENGTHS)] + [[30 + i] * k for i, k in enumerate((6, 1, 2, 3))]
    assert after.behavior_logp[:6].sum() == -0.5 * sum(LENGTHS) and after.behavior_logp[6:].sum() == -2.0 * 12
    assert torch.equal(found.own, after.mask & (torch.arange(10) < 6)[:, None])
    told = found.revised.metrics
    assert (told["revised"], told["revision_too_long"]) == (4, 0) and found.revised.warnings == ()
    assert told["revision_gain"] == pytest.approx(((0.75 - 0.5) + (0.5 - 0.25) + (1.0 - 0.0)) / 3), "one is missing"
    assert told["revision_kl"] == pytest.approx(math.exp(-2.0 + 0.5) - 1 + 1.5)


def test_a_revision_may_be_shorter_than_all_responses(tokenizer):
    after = revise(tokenizer, draw(*REWARDS), (0.5, 0.5), lengths=(1, 1))[0].rollout
    assert after.tokens.shape == (8, 4) and after.mask[6:].sum(dim=1).tolist() == [1, 1]


def test_who_has_no_critique_or_no_room_is_not_revised_and_the_log_says_so(tokenizer):
    found, ((prompts, *_), _) = revise(tokenizer, draw(*REWARDS), (1.0,), per_group=2, silent=(1,), long=(3, 5))
    assert prompts == [[40, 3]] and found.revised.of == (0,)
    assert found.revised.metrics["revised"] == 1 and found.revised.metrics["revision_too_long"] == 2
    ((key, message),) = found.revised.warnings
    assert key == "revision_too_long" and message.startswith("2 responses were not revised: ")


def test_where_nothing_is_revised_the_draw_is_what_it_was(tokenizer):
    before = draw(*REWARDS)
    found, asked = revise(tokenizer, before, (), silent=range(6))
    assert asked == [] and found.rollout is before.rollout and found.scores is before.scores
    assert found.revised.of == () and found.revised.metrics["revised"] == 0 and found.revised.warnings == ()
    assert found.revision_of.tolist() == [-1] * 6 and torch.equal(found.own, before.rollout.mask)


def test_of_equal_rewards_the_earliest_is_the_worst_and_a_missing_one_never():
    reward, group = torch.tensor([0.5, 0.5, 0.5, NAN, 1.0, NAN]), torch.tensor([0, 0, 0, 0, 3, 7])
    assert worst(reward, group, 2) == [0, 1, 4]
    assert worst(reward, group, 9) == [0, 1, 2, 4]


def test_too_many_missing_verdicts_old_and_new_end_the_run(tokenizer):
    assert revise(tokenizer, draw(*REWARDS), (0.5, NAN), limit=0.25)
    with pytest.raises(RuntimeError, match="2 of 8 verdicts"):
        revise(tokenizer, draw(*REWARDS), (0.5, NAN), limit=0.24)


def test_the_behavior_policy_is_the_policy_at_its_temperature_under_the_training_prompt(tokenizer, model):
    """Against a forward pass of each prompt and revision alone; so the ratio of the first update is 1."""
    logp = reference_logprobs(model, ForwardContext(40, temperature=0.7))
    after = revise(tokenizer, draw(*REWARDS), (1.0, 0.5), lengths=(5, 2), logp=logp)[0].rollout
    for row, prompt in ((6, PROMPTS[0]), (7, PROMPTS[1])):
        own = after.tokens[row][after.mask[row]]
        with torch.no_grad():
            logits = model(input_ids=torch.cat([prompt, own])[None]).logits[0, len(prompt) - 1 : -1] / 0.7
        expected = logits.log_softmax(-1).gather(1, own[:, None]).squeeze(1)
        torch.testing.assert_close(after.behavior_logp[row, : len(own)], expected, rtol=0, atol=1e-5)
        assert not after.behavior_logp[row, len(own) :].any()
    now = compute_logprobs(model, after, 0.7).logp.detach()[6:]
    torch.testing.assert_close(now, after.behavior_logp[6:], rtol=0, atol=1e-5)


def test_a_prompt_to_revise_by_is_a_conversation_or_a_text_that_ends_as_the_prompt_does():
    asked = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert revision_prompt(asked, "r", "all {critique}", "Bad: {critique}.") == [
        *asked, {"role": "assistant", "content": "r"}, {"role": "user", "content": "Bad: all {critique}."}
    ]  # fmt: skip
    assert len(asked) == 2, "the row's own messages stay"
    assert revision_prompt("p", "r", "c", "{critique}!").endswith("c!\n\np")


def source(tokenizer, sampler, scorer, revising, reference, advantage=group_relative):
    prompts = [Prompt(p, f"prompt {i}", {"n": i}) for i, p in enumerate(PROMPTS)]
    return responses(
        prompts, sampler, scorer, lambda draw, n: revising(once(draw, n)), advantage, tokenizer, reference,
        prompts_per_step=2, group_size=3, max_tokens=6, seed=1, failure_limit=1.0,
    )  # fmt: skip


def test_what_the_log_tells_of_the_policy_is_of_its_own_responses_alone(tokenizer):
    """Reward, length, tokens' KL: a revision is no sample of the policy. What was graded and what it took is of all."""

    def sampler(prompts, n, seed, version, ended):
        return replace(rollout(GROUP, LENGTHS, tuple(prompts)), version=version)

    def scorer(answers, group):
        return scores(*REWARDS[:4], 0.5, 0.0)

    def off_by_row(sequences):
        return sequences.mask * sequences.tokens * -0.1  # a row has one token, again and again

    def revising(found):
        told = tuple(replace(a, text=f"text {i}") for i, a in enumerate(found.answers))
        return revise(tokenizer, replace(found, answers=told), (NAN, 1.0), lengths=(6, 1))[0]

    plain, more = (source(tokenizer, sampler, scorer, how, off_by_row)(0) for how in (lambda found: found, revising))
    for name in ("reward", "length", "reward_std", "zero_variance_groups", "truncated", "item/sums/x"):
        assert more.metrics[name] == plain.metrics[name]
    assert more.metrics["missing"] == plain.metrics["missing"] + 1
    assert more.metrics["tokens"] == plain.metrics["tokens"] + 7
    assert (plain.metrics["used"], more.metrics["used"], more.metrics["revised"]) == (6, 7, 2)
    away = [float(off_by_row(more.sequences)[i, 0]) + 0.5 for i in range(6)]
    kl = sum(k * (math.exp(a) - 1 - a) for k, a in zip(LENGTHS, away, strict=True)) / sum(LENGTHS)
    assert more.metrics["kl"] == pytest.approx(kl, rel=1e-5)
    assert "revised" not in plain.metrics and plain.metrics.keys() < more.metrics.keys()
    notes = [(r.get("revision_of"), r.get("critique")) for r in more.records]
    order = [a["prompt"] for a in more.records]
    assert notes == [(None, None)] * 6 + [(1, "sum 1 0.25"), (5, "sum 5 0")] and order[6:] == [order[1], order[5]]
    assert more.records[6]["reward"] is None and more.records[7]["reward"] == 1.0
    assert "revision_of" not in plain.records[0]
    missing = [message for key, message in more.warnings if key == "missing"]
    assert missing and missing[0].startswith("1 verdicts are missing")


def test_the_kl_that_steers_its_own_coefficient_is_that_of_own_responses(tokenizer):
    found = revise(tokenizer, draw(*REWARDS), (1.0, 1.0))[0]
    seen = []
    credit = AdvantageInputs(remembers={"x": lambda response_kl: seen.append(response_kl) or 0.0}, memory={"x": 0.0})
    estimate_advantages(group_relative, credit, found, 0 * found.rollout.behavior_logp - 1.0, 6, 1)
    assert seen == [pytest.approx(sum(k * 0.5 for k in LENGTHS) / 6)]


def test_the_advantages_of_a_tiny_case():
    """Two groups of two, one revision each: means and deviations are over three."""
    reward, group = torch.tensor([0.0, 1.0, 0.5, 0.5, 0.5, 0.2]), torch.tensor([0, 0, 1, 1, 0, 1])
    found = group_relative(reward, group, "none")
    assert found.tolist() == pytest.approx([-0.5, 0.5, 0.1, 0.1, 0.0, -0.2], abs=1e-7)
    assert leave_one_out(reward, group).tolist() == pytest.approx([-0.75, 0.75, 0.15, 0.15, 0.0, -0.3], abs=1e-7)
    kept = accepted(torch.tensor([0.0, 1.0, 0.5, 0.4, 2.0, 0.2]), group, torch.arange(6))
    assert kept.isnan().tolist() == [True, True, False, True, False, True], "the best of three: a revision, a response"


DETERMINISTIC = [
    name for name, row in ALGORITHMS.items() if isinstance(row.source, Responses) and name not in ("ppo", "red_drop")
]


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_every_method_takes_groups_of_unequal_sizes_in_any_order(tokenizer, name):
    row = ALGORITHMS[name]
    assert isinstance(row.source, Responses)
    chosen = resolve_options(row, {})
    (advantage,) = [f.bind(chosen) for f in row.source.functions if f.function is row.source.advantage]
    start = dict(row.source.start_memory)
    found = revise(tokenizer, draw(0.5, 0.25, 1.0, 0.75, 0.6, 0.1), (0.9,), lengths=(6,), long=(5,))[0]
    order = torch.tensor([6, 0, 3, 5, 1, 4, 2])
    moved = ScoredRollout(
        replace(
            found.rollout,
            **{k: getattr(found.rollout, k)[order] for k in ("tokens", "mask", "group", "behavior_logp")},
        ),
        found.answers,
        replace(found.scores, reward=found.scores.reward[order]),
    )
    one, other = (
        estimate_advantages(advantage, AdvantageInputs(memory=start), each, None, 6, 1) for each in (found, moved)
    )
    assert one.advantage.shape == (7,) and (one.batch.advantage[one.batch.mask].isfinite()).all()
    torch.testing.assert_close(one.advantage[order], other.advantage, equal_nan=True)
    assert name == "rejection_sampling" or not one.advantage.isnan().any()


def test_the_pair_is_the_revision_over_what_it_revises(tokenizer):
    def experience(new, **more):
        found = revise(tokenizer, draw(0.5, 0.25, 1.0, 0.75, 0.6, 0.0), new)[0]
        pairing = partial(ranked_pairs, pairing="revised", **more)
        found = replace(found, reference_logp=-1.0 * found.rollout.mask)
        return pair_source(lambda step: Round(found, {"reference_seconds": 0.0}, ()), pairing, None)(0)

    what = experience((0.75, 0.5))
    own = [t[m].tolist() for t, m in zip(what.sequences.tokens, what.sequences.mask, strict=True)]
    assert own == [[30, 30], [31, 31], [11], [15] * 4], "chosen, chosen, rejected, rejected"
    assert [p.tolist() for p in what.sequences.prompts] == [p.tolist() for p in PROMPTS]
    assert what.batch.chosen_reward.tolist() == [0.75, 0.5] and what.batch.rejected_reward.tolist() == [0.25, 0.0]
    assert [r["role"] for r in what.records] == [
        "none", "rejected", "none", "none", "none", "rejected", "chosen", "chosen"
    ]  # fmt: skip
    assert what.records[6]["revision_of"] == 1
    assert what.metrics["kl"] == pytest.approx(math.exp(-0.5) - 1 + 0.5), "of what was sampled, at -0.5 a token"
    assert experience((0.75, 0.4), min_gap=0.45).metrics["pairs"] == 1
    assert experience((0.25, -1.0)).metrics["pairs"] == 0, "no better, and worse"


def test_what_the_correction_ignores_by_enumeration():
    """docs/revise.md: with the weight π(y′|x)/π(y′|x, y, c), a revision's term is the policy gradient; without, not.

    One token of three, two responses, the worse one revised; RLOO's advantage. Every outcome in float64.
    """
    logits, reward = torch.tensor([0.3, -0.5, 0.1]).double(), torch.tensor([0.2, 1.0, 0.5]).double()
    pi = logits.softmax(0)
    after = torch.tensor([[0.1, 0.8, 0.1], [0.3, 0.4, 0.3], [0.2, 0.5, 0.3]]).double()  # π(·|x, y, c), by y
    score = torch.eye(3).double() - pi  # ∇ log π(y)
    gradient = (pi * reward) @ score
    weighted, plain, toward, own = (torch.zeros(3).double() for _ in range(4))
    group = torch.zeros(3, dtype=torch.long)
    for a, b, y in itertools.product(range(3), repeat=3):
        (w,) = worst(reward[[a, b]], group[:2], 1)
        of = (a, b)[w]
        chance = pi[a] * pi[b] * after[of, y]
        advantage = leave_one_out(reward[[a, b, y]], group)
        weighted += chance * pi[y] / after[of, y] * advantage[2] * score[y]
        plain += chance * advantage[2] * score[y]
        toward += chance * (reward[y] - (reward[a] + reward[b]) / 2) * score[y]
        own += chance * (advantage[0] * score[a] + advantage[1] * score[b])
    torch.testing.assert_close(weighted, gradient, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(plain, toward, rtol=1e-12, atol=1e-14)
    assert (plain - gradient).abs().max() > 0.05 and plain @ gradient > 0
    assert (own / 2 - gradient).abs().max() > 1e-3, (
        "what revises them depends on the responses, and with it the baseline"
    )
