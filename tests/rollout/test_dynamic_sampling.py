"""Dynamic sampling: the prompts of each round, the groups that are replaced, and the fields of each response."""

import math
from dataclasses import replace

import pytest
import torch

from grape_rl.rollout.dynamic_sampling import dynamic_sampling, single_draw, zero_variance_groups
from grape_rl.rollout.scored_rollout import ScoredRollout, response_ids
from grape_rl.types import Response, Rollout, Scores, Verdict


def drawn(turn, rewards, width=3):
    """Groups with these rewards; everything that a response has says which it is: turn, group and number."""
    rows = [(turn, g, i, r) for g, group in enumerate(rewards) for i, r in enumerate(group)]
    marks = torch.tensor([100 * t + 10 * g + i for t, g, i, _ in rows])
    lengths = torch.tensor([1 + (turn + g + i) % width for _, g, i, _ in rows])
    mask = torch.arange(width) < lengths[:, None]
    rollout = Rollout(
        prompts=tuple(torch.tensor([1000 + 10 * turn + g]) for g in range(len(rewards))),
        tokens=marks[:, None].expand(-1, width) * mask,
        mask=mask,
        group=torch.tensor([g for _, g, _, _ in rows]),
        behavior_logp=-marks[:, None].expand(-1, width).float() * mask,
        finish=tuple("length" if m % 2 else "stop" for m in marks.tolist()),
        version=7,
    )
    responses = tuple(Response(f"{t} {g}", f"{t} {g} {i}", {}, 1, "stop") for t, g, i, _ in rows)
    scores = Scores(
        torch.tensor([r for *_, r in rows], dtype=torch.float64),
        tuple((Verdict(f"{t} {g} {i}", 0.0),) for t, g, i, _ in rows),
        tuple(f"{t} {g}" for t, g, _, _ in rows),
        marks.double(),
    )
    return ScoredRollout(rollout, responses, scores, rollout.behavior_logp - 0.5)


WIDTH = (3, 5, 4, 6)
"""Of each turn's responses, in tokens."""


def script(*turns):
    """A draw that gives these rewards one turn after the other, now wider and now less, and what it was asked."""
    asked = []

    def draw(turn, count):
        asked.append((turn, count))
        return drawn(turn, turns[turn], width=WIDTH[turn])

    return draw, asked


SAME, VARIED, MISSING = [0.5, 0.5], [0.0, 1.0], [math.nan, 1.0]


def whole(found):
    """The marks of the groups, after checking that every part of every response speaks of the same one."""
    rollout, out = found.rollout, {}
    for i, g in enumerate(rollout.group.tolist()):
        own = rollout.mask[i]
        (mark,) = set(rollout.tokens[i][own].tolist())
        turn, group, number = mark // 100, mark // 10 % 10, mark % 10
        assert (rollout.behavior_logp[i][own] == -mark).all()
        assert not rollout.tokens[i][~own].any() and not rollout.behavior_logp[i][~own].any()
        assert found.reference_logp is None or torch.equal(
            found.reference_logp[i][own], rollout.behavior_logp[i][own] - 0.5
        )
        assert own.sum() == 1 + (turn + group + number) % WIDTH[turn]
        assert rollout.prompts[g].item() == 1000 + 10 * turn + group
        assert found.responses[i].text == f"{turn} {group} {number}" == found.scores.verdicts[i][0].item
        assert found.scores.compared is None or found.scores.compared[i] == mark
        assert found.scores.category[i] == f"{turn} {group}"
        assert rollout.finish[i] == ("length" if mark % 2 else "stop")
        out.setdefault(g, []).append((turn, group, number, found.scores.reward[i].item()))
    return [out[g] for g in range(len(rollout.prompts))]


def members(turn, group, rewards):
    return [(turn, group, i, r) for i, r in enumerate(rewards)]


def test_once_is_one_draw():
    draw, asked = script([SAME, VARIED])
    assert whole(single_draw(draw, 2)) == [members(0, 0, SAME), members(0, 1, VARIED)]
    assert asked == [(0, 2)]


def test_what_varies_from_the_start_is_drawn_once():
    draw, asked = script([VARIED, VARIED])
    assert whole(dynamic_sampling(draw, 2)) == [members(0, 0, VARIED), members(0, 1, VARIED)]
    assert asked == [(0, 2)]


def test_groups_of_equal_rewards_are_replaced_by_others_that_vary():
    draw, asked = script([SAME, VARIED, SAME, SAME], [SAME, VARIED, VARIED], [VARIED])
    found = dynamic_sampling(draw, 4)
    assert asked == [(0, 4), (1, 3), (2, 1)]
    assert whole(found) == [
        members(1, 1, VARIED), members(0, 1, VARIED), members(1, 2, VARIED), members(2, 0, VARIED),
    ]  # fmt: skip
    assert not zero_variance_groups(found.scores.reward, found.rollout.group).any()
    assert found.rollout.version == 7


@pytest.mark.parametrize("extra", [0, 1, 2])
def test_the_draws_are_bounded_and_what_stays_equal_stays(extra):
    draw, asked = script([SAME, VARIED], [SAME], [SAME])
    assert whole(dynamic_sampling(draw, 2, extra_draws=extra)) == [members(0, 0, SAME), members(0, 1, VARIED)]
    assert asked == [(0, 2), (1, 1), (2, 1)][: 1 + extra]


def test_a_group_with_one_known_reward_is_drawn_for_again():
    draw, asked = script([MISSING], [[0.0, math.nan, 1.0]])
    found = dynamic_sampling(draw, 1)
    assert asked == [(0, 1), (1, 1)]
    assert [(t, g, i) for t, g, i, _ in whole(found)[0]] == [(1, 0, 0), (1, 0, 1), (1, 0, 2)]


def test_what_is_compared_comes_along_where_there_is_such_a_thing():
    draw, _ = script([SAME, VARIED], [VARIED])
    found = dynamic_sampling(draw, 2)
    assert found.scores.compared is not None and len(found.scores.compared) == 4
    assert found.reference_logp is not None and found.reference_logp.shape == found.rollout.mask.shape
    draw, _ = script([SAME, VARIED], [VARIED])

    def plain(turn, count):
        one = draw(turn, count)
        return replace(one, scores=replace(one.scores, compared=None), reference_logp=None)

    found = dynamic_sampling(plain, 2)
    assert found.scores.compared is None and found.reference_logp is None


def test_what_the_first_draw_leaves_to_the_next_step_stays():
    draw, _ = script([SAME, VARIED], [VARIED])

    def scored(turn, count):
        one = draw(turn, count)
        return replace(one, scores=replace(one.scores, memory={"turn": float(turn)}))

    assert dynamic_sampling(scored, 2).scores.memory == {"turn": 0.0}


def test_nothing_can_be_made_of_nothing():
    draw, asked = script(*[[SAME, SAME]] * 4)
    assert whole(dynamic_sampling(draw, 2)) == [members(0, 0, SAME), members(0, 1, SAME)]
    assert len(asked) == 4, "three more by default"


def test_the_same_tokens_to_the_same_prompt_are_the_same_response():
    """Whatever stands in the padding; but the same tokens cut short, or not chosen by the policy, are another one."""
    tokens = torch.tensor([[1, 2, 9], [1, 2, 0], [1, 2, 0], [1, 2, 9], [1, 2, 9], [1, 2, 9]])
    mask = torch.tensor([[True, True, False]] * 3 + [[True, True, True], [True, False, True], [True, True, False]])
    group = torch.tensor([0, 0, 1, 0, 0, 0])
    zeros = torch.zeros(6, 3)
    rollout = Rollout((torch.tensor([4]), torch.tensor([4])), tokens, mask, group, zeros, ("stop",) * 6, 0)
    found = response_ids(rollout).tolist()
    assert found[0] == found[1] == found[5]
    assert len({found[0], found[2], found[3], found[4]}) == 4
