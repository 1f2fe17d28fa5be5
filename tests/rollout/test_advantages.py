"""From a scored rollout to a batch: values, rewards of tokens, missing rewards, and what a step leaves to the next."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from grape_rl.maths.advantage import baseline_advantage, gae, leave_one_out
from grape_rl.maths.reward import kl_penalized, moving_average
from grape_rl.maths.value import whitened
from grape_rl.rollout.advantages import AdvantageInputs, estimate_advantages
from grape_rl.rollout.scored_rollout import ScoredRollout
from grape_rl.types import Rollout, Scores, ValueBatch

NAN = math.nan
MASK = torch.arange(4) < torch.tensor([4, 2, 1, 3])[:, None]
BEHAVIOR = torch.tensor([[-0.5, -1.0, -2.0, -0.1], [-0.3, -0.4, 0, 0], [-1.5, 0, 0, 0], [-0.7, -0.2, -0.9, 0]])
REFERENCE = torch.tensor([[-0.6, -0.7, -2.5, -0.1], [-0.1, -0.8, 9, 9], [-1.0, 9, 9, 9], [-0.7, -0.4, -0.8, 9]])
VALUE = torch.tensor([[0.1, 0.2, -0.3, 0.4], [0.5, -0.6, 0, 0], [0.7, 0, 0, 0], [0.8, 0.9, -1.0, 0]])


def drawn(*reward):
    rollout = Rollout(
        (torch.arange(3),), torch.zeros(4, 4, dtype=torch.long), MASK, torch.zeros(4, dtype=torch.long), BEHAVIOR,
        ("stop", "length", "stop", "stop"), 0,
    )  # fmt: skip
    scores = Scores(torch.tensor(reward, dtype=torch.float64), ((),) * 4, ("",) * 4)
    return ScoredRollout(rollout, (), scores)


def made(advantage, inputs, *reward, reference=REFERENCE):
    scored = replace(drawn(*reward), reference_logp=reference)
    return estimate_advantages(advantage, inputs, scored, max_tokens=4, seed=1)


PPO = AdvantageInputs(partial(kl_penalized, kl_in_reward=0.2), lambda sequences: VALUE, whitened)


def test_token_advantages_and_the_values_targets_are_a_loop():
    """A missing reward masks its response out; a response that was cut off has ended like any other."""
    found = made(partial(gae, gamma=0.9, lam=0.8), PPO, 1.0, -0.5, NAN, 2.0)
    batch = found.batch
    assert isinstance(batch, ValueBatch)
    advantage, target = {}, {}
    for i, reward in ((0, 1.0), (1, -0.5), (3, 2.0)):
        length, later, after = int(MASK[i].sum()), 0.0, 0.0
        for t in reversed(range(length)):
            earned = -0.2 * (BEHAVIOR[i, t] - REFERENCE[i, t]).item() + (reward if t == length - 1 else 0.0)
            later = earned + 0.9 * after - VALUE[i, t].item() + 0.9 * 0.8 * later
            after = VALUE[i, t].item()
            advantage[i, t], target[i, t] = later, later + after
    assert batch.mask.nonzero().tolist() == sorted(map(list, advantage))
    for (i, t), expected in target.items():
        assert batch.value_target[i, t].item() == pytest.approx(expected, rel=1e-5)
        assert batch.behavior_value[i, t] == VALUE[i, t]
    mean = math.fsum(advantage.values()) / len(advantage)
    spread = math.sqrt(math.fsum((a - mean) ** 2 for a in advantage.values()) / (len(advantage) - 1))
    for (i, t), a in advantage.items():
        assert batch.advantage[i, t].item() == pytest.approx((a - mean) / spread, rel=1e-4)
    assert found.advantage[2].isnan()
    whole = [a for (i, _), a in advantage.items() if i == 3]
    assert found.advantage[3].item() == pytest.approx(math.fsum(whole) / 3, rel=1e-5), "told before it is rescaled"
    left = [target[at] - VALUE[at].item() for at in target]
    foreseen = 1 - torch.tensor(left).var() / torch.tensor(list(target.values())).var()
    assert found.metrics["explained_variance"] == pytest.approx(float(foreseen), rel=1e-4)


def test_the_kl_is_off_the_rewards_that_responses_are_compared_by():
    credit = AdvantageInputs(partial(kl_penalized, kl_in_reward=0.2))
    found = made(leave_one_out, credit, 1.0, 0.0, NAN, 2.0)
    kl = [sum((BEHAVIOR[i, t] - REFERENCE[i, t]).item() for t in range(int(MASK[i].sum()))) for i in range(4)]
    less = [1.0 - 0.2 * kl[0], -0.2 * kl[1], NAN, 2.0 - 0.2 * kl[3]]
    for i, others in ((0, (1, 3)), (1, (0, 3)), (3, (0, 1))):
        expected = less[i] - (less[others[0]] + less[others[1]]) / 2
        assert found.advantage[i].item() == pytest.approx(expected, rel=1e-6)
        assert found.batch.advantage[i, 0].item() == pytest.approx(expected, rel=1e-6)
    assert found.metrics["kl_penalty"] == pytest.approx(0.2 * sum(kl) / 4, rel=1e-5)
    assert found.metrics["response_kl"] == pytest.approx(sum(kl) / 4, rel=1e-5)
    assert not isinstance(found.batch, ValueBatch) and not found.batch.mask[2].any()


def test_without_a_coefficient_or_a_reference_every_bit_is_as_without_the_kl():
    plain = made(leave_one_out, AdvantageInputs(), 1.0, 0.1, NAN, 2.0)
    for credit, reference in ((AdvantageInputs(partial(kl_penalized, kl_in_reward=0.0)), REFERENCE), (PPO, None)):
        found = made(leave_one_out, AdvantageInputs(credit.token_reward), 1.0, 0.1, NAN, 2.0, reference=reference)
        assert torch.equal(found.batch.advantage, plain.batch.advantage)
    assert plain.metrics == {} and plain.memory == {}


def test_what_a_step_leaves_is_made_of_what_it_found():
    credit = AdvantageInputs(
        memory_updates={"moving_average": partial(moving_average, decay=0.75), "seen": counted}, memory=(held := {})
    )
    advantage = partial(baseline_advantage, baseline="moving_average")
    held |= {"moving_average": NAN, "seen": 0.0}
    first = made(advantage, credit, 1.0, 3.0, NAN, 2.0)
    assert first.advantage[:2].tolist() == [-1.0, 1.0], "the batch's mean, for there is no past"
    assert first.memory == {"moving_average": 2.0, "seen": 4.0}
    assert math.isnan(held["moving_average"]), "only the run puts it in the place of the old one"
    held |= first.memory
    second = made(advantage, credit, 0.0, 0.0, 0.0, 4.0)
    assert second.advantage.tolist() == [-2.0, -2.0, -2.0, 2.0]
    assert second.memory == {"moving_average": 0.75 * 2 + 0.25 * 1, "seen": 8.0}
    assert second.metrics == {"moving_average": 2.0, "seen": 4.0}, "what the step found, not what it leaves"


def counted(previous, responses):
    return previous + responses


def test_the_kl_that_the_coefficient_follows_is_the_mean_of_whole_responses():
    told = []
    updates = {"noted": lambda response_kl, responses: told.append((response_kl, responses)) or 0.0}
    made(leave_one_out, AdvantageInputs(memory_updates=updates, memory={"noted": 0.0}), 1.0, 2.0, 3.0, 4.0)
    kl = [sum((BEHAVIOR[i, t] - REFERENCE[i, t]).item() for t in range(int(MASK[i].sum()))) for i in range(4)]
    assert told == [(pytest.approx(sum(kl) / 4, rel=1e-5), 4)]


@pytest.mark.parametrize(
    "wrong", [lambda reward: reward[1:], lambda reward: reward[:, None], lambda reward: reward.sum()]
)
def test_an_advantage_of_another_shape_is_refused(wrong):
    def short(reward, scale):
        return wrong(reward)

    with pytest.raises(
        ValueError, match=r"short: the advantage has the shape \[.*per response \(4\) or per token \(\[4, 4"
    ):
        made(partial(short, scale=1.0), AdvantageInputs(), 1.0, 2.0, 3.0, 4.0)
