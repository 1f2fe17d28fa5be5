"""GRPO is GRAPE with one item, through whole runs: the same weights to the last bit."""

import pytest

from grape_rl import train
from grape_rl.config.files import merge
from grape_rl.training.checkpoint import checkpoints
from small_runs import lines, settings, weights

CRITIC = """
schema: grape-rubric/1
categories:
  sums:
    items:
      - id: liked
        weight: WEIGHT
        judge: {criterion: It is likable., labels: {bad: 0, fair: 0.3, good: 0.7, best: 1}}
"""

CHECK = (
    CRITIC[: CRITIC.index("      - id")]
    + "      - {id: liked, weight: WEIGHT, check: {type: python, call: 'mine.py:f'}}\n"
)

MINE = """
def value(text):
    return sum(ord(c) * 7 ** i for i, c in enumerate(text)) % 101 / 100

def f(response):
    return value(response.text)

def reward(completions, **columns):
    return [SIGN * value(text) for text in completions]
"""


def run(folder, name, method, rubric, weight=1, function=None, faults=None, **options):
    """Three steps of a method by a rubric of one item, or by a reward function, a checkpoint at each."""
    wanted = merge(settings(folder, method), {"steps": 3, "checkpoint_every": 1, "keep_checkpoints": 9})
    (folder / "rubric.yaml").write_text(rubric.replace("WEIGHT", str(weight)))
    (folder / "mine.py").write_text(MINE.replace("SIGN", "1" if weight > 0 else "-1"))
    stub = {"stub": {"faults": faults or {}}}
    wanted["reward"] |= {"critics": {"default": stub}, "allow": ["mine.py"], "failure_limit": 0.5}
    if function:
        wanted["reward"] = {"function": f"{folder / 'mine.py'}:{function}"}
    # The table has the mean over tokens for grape, and over each response's own for grpo: an option of both.
    return train(wanted | {"options": {"reduction": "sequence", **options}, "output": str(folder / name)})


def same(one, other):
    """Whether two runs have the same checkpoints, to the last bit, at each of their three steps."""
    both = [checkpoints(each.folder / "checkpoints") for each in (one, other)]
    assert [path.name for path in both[0]] == [path.name for path in both[1]] == ["step-1", "step-2", "step-3"]
    found = [[weights(path) for path in each] for each in both]
    start = found[0][0]
    assert any(not start[key].equal(found[0][-1][key]) for key in start), "nothing was learned"
    return all(a[key].equal(b[key]) for a, b in zip(*found, strict=True) for key in a)


def confidences(of):
    return {v["confidence"] for step in (1, 2, 3) for r in lines(of.folder / "rollouts" / f"step-{step:06d}.jsonl")
            for v in r["verdicts"]}  # fmt: skip


@pytest.mark.parametrize("weight", [1, 0.3, 7, -0.3])
def test_a_critic_that_is_unsure_of_the_one_item_makes_grpo(weight, tmp_path):
    """GRPO's reward of the same rubric does not read the confidence; a tenth of the verdicts is missing in both."""
    faults = {"timeout": 0.1}
    grape = run(tmp_path, "grape", "grape", CRITIC, weight, faults=faults)
    grpo = run(tmp_path, "grpo", "grpo", CRITIC, weight, faults=faults)
    assert same(grape, grpo)
    unsure = confidences(grape)
    assert len(unsure - {None}) > 5 and None in unsure


@pytest.mark.parametrize("weight", [0.3, -7])
def test_a_reward_function_of_the_same_scores_makes_the_same_run(weight, tmp_path):
    """A pitfall is the function with the other sign."""
    grape = run(tmp_path, "grape", "grape", CHECK, weight)
    assert same(grape, run(tmp_path, "grpo", "grpo", CHECK, weight, function="reward"))


def test_with_the_mean_over_tokens_too_and_each_row_by_its_own_is_another(tmp_path):
    grape = run(tmp_path, "grape", "grape", CRITIC, reduction="token")
    assert same(grape, run(tmp_path, "grpo", "grpo", CRITIC, reduction="token"))
    assert not same(grape, run(tmp_path, "other", "grpo", CRITIC))


def test_several_items_and_a_critic_that_is_unsure_are_not_grpo(tmp_path):
    """Or the tests above would hold of anything."""
    several = CRITIC + "      - {id: brief, weight: 1, judge: {criterion: It is brief.}}\n"
    assert not same(run(tmp_path, "grape", "grape", several), run(tmp_path, "grpo", "grpo", several))
