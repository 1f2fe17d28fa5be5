"""Where batches come from: which rows, what becomes of failures, what is told, and that only the step decides."""

import math
import threading
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch

from grape_rl.data.chat import Example
from grape_rl.maths.advantage import group_relative
from grape_rl.model.forward import ForwardContext
from grape_rl.model.logprobs import compute_logprobs
from grape_rl.rollout.dynamic_sampling import dynamic_sampling, once, zero_variance_groups
from grape_rl.rollout.records import rollout_metrics, verdict_metrics
from grape_rl.rollout.source import (
    Prompt,
    drawn_rows,
    graded_responses,
    reference_logprobs,
    responses,
    step_seed,
)
from grape_rl.sources.demonstrations import experience_from_demonstrations
from grape_rl.types import Rollout, Scores, Verdict, failed


@pytest.mark.parametrize(("count", "per_step"), [(7, 3), (4, 4), (3, 7), (1, 2)])
def test_every_row_comes_once_before_any_comes_again(count, per_step):
    drawn = [row for step in range(3 * count) for row in drawn_rows(count, per_step, step, seed=1)]
    epochs = [drawn[i : i + count] for i in range(0, len(drawn), count)]
    assert len(epochs) == 3 * per_step
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    if count > 3:
        assert len({tuple(epoch) for epoch in epochs}) > 1, "each epoch has an order of its own"


def test_a_step_draws_the_same_whenever_it_is_asked():
    assert drawn_rows(50, 8, 9, seed=2) == drawn_rows(50, 8, 9, seed=2)
    assert drawn_rows(50, 8, 9, seed=2) != drawn_rows(50, 8, 9, seed=3)


def test_seeds_of_purposes_steps_and_runs_are_all_different_and_fit_torch():
    found = {step_seed(seed, step, p) for seed in range(5) for step in range(20) for p in ("order", "sample", "x")}
    assert len(found) == 300
    assert all(0 <= seed < 2**63 for seed in found)
    assert step_seed(1, 11, "x") != step_seed(11, 1, "x")


def test_demonstrations_are_rows_with_advantage_one():
    taught = [Example(torch.arange(4, 4 + i), torch.arange(10, 12 + i)) for i in range(1, 4)]
    experience = experience_from_demonstrations(taught)
    sequences, batch = experience.sequences, experience.batch
    assert sorted(len(p) for p in sequences.prompts) == [1, 2, 3]
    for row, prompt in enumerate(sequences.prompts):
        assert torch.equal(sequences.tokens[row][sequences.mask[row]], taught[len(prompt) - 1].completion)
    assert torch.equal(batch.advantage, batch.mask.float())
    assert torch.equal(batch.mask, sequences.mask)
    assert experience.metrics == {"length": 4.0, "tokens": 3 + 4 + 5 + 6}


# Four responses to two prompts, written by hand.
PROMPTS = [Prompt(torch.arange(4, 6 + i), f"prompt {i}", {"n": i}) for i in range(2)]
MASK = torch.tensor([[True, True, False], [True, True, True], [True, False, False], [True, True, True]])
BEHAVIOR = torch.tensor([[-0.5, -1.0, 0.0], [-0.25, -0.5, -2.0], [-1.5, 0.0, 0.0], [-0.1, -0.2, -0.3]])


def rollout(tokenizer, finish=("stop", "length", "stop", "length")):
    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    end, pad = tokenizer.eos_token_id, 0
    tokens = [[*ids("7"), end, pad], ids("1 2"), [end, pad, pad], ids("abc")]
    group = torch.tensor([0, 0, 1, 1])
    return Rollout(tuple(p.tokens for p in PROMPTS), torch.tensor(tokens), MASK, group, BEHAVIOR, finish, 3)


def scored(*rewards):
    """A scorer with fixed rewards; None is a verdict that is missing."""

    def scores(answers, group):
        verdicts = tuple(
            (failed("correct", "timeout", "too\nslow") if r is None else Verdict("correct", r),) for r in rewards
        )
        reward = torch.tensor([math.nan if r is None else r for r in rewards], dtype=torch.float64)
        return Scores(reward, verdicts, ("sums",) * len(rewards))

    return scores


def experience_of(
    tokenizer,
    scorer,
    reference=None,
    limit=1.0,
    finish=("stop", "length", "stop", "length"),
    step=0,
    draws=once,
    advantage=group_relative,
):
    asked = []

    def sampler(prompts, n, seed, version, ended):
        asked.append((prompts, n, seed, version))
        return rollout(tokenizer, finish)

    source = responses(
        PROMPTS, sampler, scorer, draws, advantage, tokenizer, reference,
        prompts_per_step=2, group_size=2, max_tokens=3, seed=8, failure_limit=limit,
    )  # fmt: skip
    return source(step), asked


def test_what_is_compared_takes_the_place_of_the_reward_in_the_advantage_alone(tokenizer):
    def scores(answers, group):
        return replace(scored(1.0, 0.0, 0.25, 0.75)(answers, group), compared=torch.tensor([5.0, 7.0, 0.0, math.nan]))

    found, _ = experience_of(tokenizer, scores, advantage=partial(group_relative, scale="none"))
    assert found.batch.advantage[:, 0].tolist() == [-1.0, 1.0, 0.0, 0.0]
    assert found.batch.mask.any(dim=1).tolist() == [True, True, True, False]
    assert found.metrics["reward"] == 0.5
    assert [record["reward"] for record in found.records] == [1.0, 0.0, 0.25, 0.75]


def test_grading_and_the_reference_do_not_wait_for_what_they_do_not_need(tokenizer):
    """The reference's pass runs while the scorer is at work, and responses are heard of before the rollout is whole."""
    began, heard, whole = threading.Event(), [], []

    def reference(sequences):
        began.set()
        return BEHAVIOR - 0.5

    def scorer(answers, group):
        assert began.wait(10), "the reference waits for the scores"
        whole.extend(answers)
        return scored(1.0, 0.0, 0.25, 0.75)(answers, group)

    def sampler(prompts, n, seed, version, ended):
        found = rollout(tokenizer, ("stop", "length", "stop", "length"))
        for i in (2, 0, 3, 1):
            ended(i, found.tokens[i][found.mask[i]], found.finish[i])
        assert len(heard) == 4
        return found

    found = responses(
        PROMPTS, sampler, scorer, once, group_relative, tokenizer, reference,
        prompts_per_step=2, group_size=2, max_tokens=3, seed=8, failure_limit=1.0, ahead=heard.append,
    )(5)  # fmt: skip
    assert heard == [whole[i] for i in (2, 0, 3, 1)]
    assert torch.equal(found.batch.reference_logp, BEHAVIOR - 0.5)


def test_responses_are_sampled_scored_and_compared(tokenizer):
    found, ((prompts, n, seed, version),) = experience_of(tokenizer, scored(1.0, 0.0, 0.25, 0.75), step=5)
    assert (n, seed, version) == (2, step_seed(8, 5, "sample"), 5)
    order = drawn_rows(2, 2, 5, 8)
    assert [len(p) for p in prompts] == [len(PROMPTS[i].tokens) for i in order]
    # Two rewards at a distance d have the standard deviation d/√2, so both are 1/√2 of it from their mean.
    signs = torch.tensor([1.0, -1.0, -1.0, 1.0])
    assert torch.allclose(found.batch.advantage, (signs / math.sqrt(2))[:, None].expand(4, 3), atol=1e-5)
    assert torch.equal(found.batch.mask, MASK)
    assert torch.equal(found.batch.behavior_logp, BEHAVIOR)
    assert torch.equal(found.batch.reference_logp, BEHAVIOR), "no reference: its KL is 0"
    told = {k: v for k, v in found.metrics.items() if not k.endswith("_seconds")}
    assert told == pytest.approx(
        {
            "reward": 0.5,
            "reward_std": math.sqrt((0.25 + 0.25 + 0.0625 + 0.0625) / 4),
            "zero_variance_groups": 0.0,
            "length": 9 / 4,
            "truncated": 0.5,
            "tokens": 9.0,
            "item/sums/correct": 0.5,
            "missing": 0.0,
            "used": 4.0,
        }
    )
    assert found.warnings == ()


def test_an_advantage_reads_what_its_parameters_name(tokenizer):
    seen = []

    def advantage(seed, length, reward, max_tokens, power=2.0):
        seen.append((seed, length.tolist(), max_tokens, power))
        return reward**power

    found, _ = experience_of(tokenizer, scored(1.0, 0.0, 0.5, 3.0), step=5, advantage=advantage)
    assert seen == [(step_seed(8, 5, "advantage"), [2, 3, 1, 3], 3, 2.0)]
    assert found.batch.advantage[:, 0].tolist() == [1.0, 0.0, 0.25, 9.0]


def test_a_step_that_draws_again_asks_for_other_prompts_with_another_seed_and_the_same_whenever_it_is_asked(tokenizer):
    def scorer():
        turns = iter([scored(0.5, 0.5, 1.0, 1.0), scored(0.25, 0.25, 0.0, None), scored(1.0, 0.0, 0.0, 1.0)])
        return lambda answers, group: next(turns)(answers, group)

    def found(step):
        return experience_of(tokenizer, scorer(), step=step, draws=dynamic_sampling)

    experience, asked = found(4)
    assert [n for _, n, _, _ in asked] == [2, 2, 2] and [len(prompts) for prompts, *_ in asked] == [2, 2, 2]
    assert [seed for *_, seed, _ in asked] == [step_seed(8, 4, p) for p in ("sample", "sample 1", "sample 2")]
    assert all(version == 4 for *_, version in asked)
    again, asked_again = found(4)
    assert torch.equal(again.sequences.tokens, experience.sequences.tokens) and again.records == experience.records
    orders = [tuple(len(p) for p in prompts) for step in range(8) for prompts, *_ in found(step)[1][1:]]
    assert len(set(orders)) == 2, "further prompts are in an order of their own"
    for (prompts, *told), (prompts_again, *told_again) in zip(asked, asked_again, strict=True):
        assert told == told_again and all(map(torch.equal, prompts, prompts_again))
    assert [r["reward"] for r in experience.records] == [1.0, 0.0, 0.0, 1.0]
    told = experience.metrics
    assert (told["extra_draws"], told["missing"], told["tokens"]) == (2, 1, 27)
    assert (told["reward"], told["zero_variance_groups"]) == (0.75, 1.0), "of the first draw: what the policy is"
    assert "extra_draws" not in experience_of(tokenizer, scored(1.0, 0.0, 0.0, 1.0), draws=dynamic_sampling)[0].metrics


def test_what_is_recorded_of_each_response(tokenizer):
    found, _ = experience_of(tokenizer, scored(1.0, None, 0.25, 0.75))
    first, second = found.records[:2]
    order = drawn_rows(2, 2, 0, 8)
    assert first["prompt"] == f"prompt {order[0]}"
    assert (first["response"], first["tokens"], first["finish"]) == ("7", 2, "stop")
    assert (first["category"], first["reward"], first["advantage"]) == ("sums", 1.0, 0.0)
    assert second["response"] == "1 2"
    assert second["reward"] is None and second["advantage"] is None
    assert second["verdicts"] == [
        {"item": "correct", "score": None, "confidence": None, "status": "timeout", "reasoning": "too\nslow",
         "provenance": "", "cost": 0.0, "tokens": 0, "label": ""}
    ]  # fmt: skip


def test_graders_see_text_without_special_tokens_and_all_that_was_written_counts(tokenizer):
    seen = graded_responses(rollout(tokenizer), PROMPTS, tokenizer)
    assert [r.text for r in seen] == ["7", "1 2", "", "abc"]
    assert [r.tokens for r in seen] == [2, 3, 1, 3]
    assert [r.row["n"] for r in seen] == [0, 0, 1, 1]


def test_a_missing_reward_is_masked_out_and_told(tokenizer):
    found, _ = experience_of(tokenizer, scored(1.0, None, 0.25, 0.75))
    assert torch.equal(found.batch.mask[1], torch.zeros(3, dtype=torch.bool))
    assert torch.equal(found.batch.mask[[0, 2, 3]], MASK[[0, 2, 3]])
    assert found.batch.advantage.isfinite().all()
    assert found.metrics["missing"] == 1
    assert found.metrics["reward"] == pytest.approx(2 / 3)
    kinds = "1 timeout; 1 responses masked out"
    assert found.warnings == (
        ("missing", f"1 verdicts are missing ({kinds}), the first of item 'correct', timeout: too\nslow"),
    )


def test_what_became_of_each_missing_verdict_is_counted():
    def line(*scores):
        names = ("a", "b")
        return tuple(
            Verdict(n, s) if isinstance(s, float) else failed(n, s, "") for n, s in zip(names, scores, strict=True)
        )

    verdicts = (
        line(1.0, "timeout"), line("refused", 0.5), line(0.0, "timeout"), line(0.5, 1.0),  # b: 2 of 4, imputed
        line(1.0, "timeout"), line(0.0, "truncated"), line(1.0, 0.5), line("refused", "timeout"),  # b: 1 of 4, left out
    )  # fmt: skip
    verdicts = (
        *verdicts[:3],
        (Verdict("a", 0.0, 1.0, "policy_fault", cost=0.5, tokens=7), verdicts[3][1]),
        *verdicts[4:],
    )
    reward = torch.tensor([1.0] * 7 + [math.nan], dtype=torch.float64)
    group = torch.tensor([0] * 4 + [1] * 4)
    told = verdict_metrics([v for row in verdicts for v in row], Scores(reward, verdicts, ("sums",) * 8), group)
    assert told == {
        "missing": 7, "missing/timeout": 4, "missing/refused": 2, "missing/truncated": 1,
        "imputed": 3, "items_left_out": 1, "masked_out": 1, "policy_fault": 1, "critic_tokens": 7, "critic_cost": 0.5,
    }  # fmt: skip


def test_too_many_missing_verdicts_stop_the_run(tokenizer):
    with pytest.raises(RuntimeError, match=r"2 of 4 verdicts \(50%\) are missing, above the limit of 40%.*too slow"):
        experience_of(tokenizer, scored(1.0, None, None, 0.5), limit=0.4)
    experience_of(tokenizer, scored(1.0, None, None, 0.5), limit=0.5)


def test_warnings_of_a_step_that_cannot_teach(tokenizer):
    found, _ = experience_of(tokenizer, scored(0.5, 0.5, 0.5, 0.5), finish=("length",) * 4)
    assert dict(found.warnings) == {
        "equal_rewards": "every reward of the step is 0.5: there is nothing to prefer",
        "all_cut_off": "every response was cut off at 3 tokens: raise sampling.max_tokens",
    }
    found, _ = experience_of(tokenizer, scored(None, None, None, None))
    assert dict(found.warnings).keys() == {"missing", "nothing_usable"}
    assert math.isnan(found.metrics["reward"])
    assert not found.batch.mask.any()


def test_the_kl_to_the_reference_is_told(tokenizer):
    other = (BEHAVIOR - torch.tensor([0.3, -0.2, 0.1])) * MASK
    found, _ = experience_of(tokenizer, scored(1.0, 0.0, 0.0, 1.0), reference=lambda sequences: other)
    assert torch.equal(found.batch.reference_logp, other)
    apart = [float(b - o) for b, o, m in zip(BEHAVIOR.ravel(), other.ravel(), MASK.ravel(), strict=True) if m]
    expected = sum(math.exp(-d) - 1 + d for d in apart) / len(apart)
    assert found.metrics["kl"] == pytest.approx(expected, rel=1e-4)


def test_groups_with_nothing_to_compare():
    reward = torch.tensor([1.0, 2.0, 0.5, 0.5, math.nan, 3.0, math.nan, math.nan])
    group = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    assert zero_variance_groups(reward, group).tolist() == [False, True, True, True]


def test_metrics_of_a_batch_without_a_reward(tokenizer):
    scores = scored(None, None, None, None)([], None)
    told = rollout_metrics(rollout(tokenizer), scores)
    assert math.isnan(told["reward"]) and math.isnan(told["reward_std"]) and math.isnan(told["item/sums/correct"])
    assert told["zero_variance_groups"] == 1


def test_a_reference_says_what_the_model_says_however_it_is_cut(model, tokenizer):
    sequences = rollout(tokenizer)
    expected = compute_logprobs(model, sequences, 0.7).logp.detach()
    for tokens in (1, 10, 10_000):
        found = reference_logprobs(model, ForwardContext(tokens, temperature=0.7))(sequences)
        assert not found.requires_grad
        assert torch.allclose(found, expected, atol=1e-5)  # float32
        assert Counter((found == 0).ravel().tolist()) == Counter((~MASK).ravel().tolist())
