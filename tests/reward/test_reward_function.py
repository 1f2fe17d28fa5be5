"""Reward functions of one's own: TRL's form, unchanged, on text and on conversations, with and without ``async``."""

import asyncio
import math
import re

import pytest
import torch

from grape_rl import train
from grape_rl.reward.reward_function import function_scorer
from grape_rl.types import Response, Verdict
from small_runs import lines, settings


def groups(*ids):
    return torch.tensor(ids)


BATCH = [
    Response("p0", "one", {"answer": 1, "extra": "e"}, 5, "stop"),
    Response("p0", "two", {"answer": 2, "extra": "f"}, 5, "stop"),
    Response("p1", "three", {"answer": 3}, 5, "stop"),
]


def test_a_function_gets_the_batch_and_the_columns_it_asks_for():
    seen = []

    def everything(prompts, completions, **columns):
        seen.append((prompts, completions, columns))
        return [1, 2.5, True]

    def some(completions, answer, scale=10):
        seen.append((completions, answer, scale))
        return torch.tensor([-1.0, 0.0, 1e6])

    scores = function_scorer(everything, "mine")(BATCH, groups(0, 0, 1))
    assert scores.reward.tolist() == [1, 2.5, 1]
    assert scores.verdicts[1] == (Verdict("mine", 2.5, provenance="function"),)
    assert seen == [(["p0", "p0", "p1"], ["one", "two", "three"], {"answer": [1, 2, 3], "extra": ["e", "f", None]})]
    assert function_scorer(some, "some")(BATCH, groups(0, 0, 1)).reward.tolist() == [-1, 0, 1e6]
    assert seen[1:] == [(["one", "two", "three"], [1, 2, 3], 10)]


def test_a_functions_reward_is_the_number_it_returned():
    assert function_scorer(lambda **_: [0.1, 1e300, -1 / 3], "f")(BATCH, groups(0, 0, 1)).reward.tolist() == [
        0.1,
        1e300,
        -1 / 3,
    ]


def test_what_is_no_number_is_missing():
    for value, status in (
        (None, "refused"),
        (math.nan, "infrastructure"),
        (math.inf, "infrastructure"),
        ("1", "infrastructure"),
        ([1], "infrastructure"),
    ):
        scores = function_scorer(lambda value=value, **_: [1.0, value, 0.0], "f")(BATCH, groups(0, 0, 1))
        assert scores.reward[0] == 1 and scores.reward[2] == 0 and math.isnan(scores.reward[1])
        assert [v.status for (v,) in scores.verdicts] == ["ok", status, "ok"]


def test_a_function_that_raises_makes_the_batch_missing():
    def broken(**columns):
        raise ConnectionError("no route to the judge")

    scores = function_scorer(broken, "mine")(BATCH, groups(0, 0, 1))
    assert scores.reward.isnan().all()
    assert {(v.status, v.reasoning) for (v,) in scores.verdicts} == {
        ("infrastructure", "ConnectionError: no route to the judge")
    }


def test_a_function_that_does_not_fit_stops_the_run():
    with pytest.raises(ValueError, match="mine: returned 2 values for 3 responses"):
        function_scorer(lambda **_: [1, 2], "mine")(BATCH, groups(0, 0, 1))
    with pytest.raises(ValueError, match=r"mine: should return a list with one value per response but returned 1\.0"):
        function_scorer(lambda **_: 1.0, "mine")(BATCH, groups(0, 0, 1))
    with pytest.raises(
        ValueError, match=r"no column for the parameters \['solution'\]; columns: answer, extra, prompts"
    ):
        function_scorer(lambda completions, solution: [1], "mine")(BATCH, groups(0, 0, 1))


ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
CHAT = [
    Response("Be brief.\n2+2?", text, {"prompt": ASKED, "solution": "4"}, 5, "stop")
    for text in ("<think>\n2 and 2\n</think>\nIt is \\boxed{4}.", "\\boxed{5}", "four")
]


def test_conversations_are_handed_over_as_trl_does():
    seen = []

    def keeps(prompts, completions, **columns):
        seen.append((prompts, completions, columns["solution"]))
        return [0] * len(prompts)

    function_scorer(keeps, "keeps")(CHAT, groups(0, 0, 0))
    assert seen == [([ASKED] * 3, [[{"role": "assistant", "content": r.text}] for r in CHAT], ["4"] * 3)]
    function_scorer(keeps, "keeps")([CHAT[0], BATCH[0]], groups(0, 1))  # row by row
    assert seen[1][:2] == ([ASKED, "p0"], [[{"role": "assistant", "content": CHAT[0].text}], "one"])


def accuracy(completions: list[list[dict[str, str]]], solution: list[str], **kwargs) -> list[float | None]:
    """As functions for TRL are written: the boxed answer against the solution, None where there is none."""
    rewards = []
    for completion, gold in zip(completions, solution, strict=True):
        found = re.search(r"\\boxed\{(.*?)\}", completion[0]["content"])
        rewards.append(float(found[1] == gold) if found else None)
    return rewards


def think_format(completions: list[list[dict[str, str]]], **kwargs) -> list[float]:
    """Whether reasoning stands in one pair of tags before the answer."""
    pattern = re.compile(r"^<think>(?!.*<think>)(.*?)</think>.*$", re.DOTALL)
    return [1.0 if pattern.match(completion[0]["content"]) else 0.0 for completion in completions]


async def judged(prompts, completions, solution, **kwargs):
    """Waits for each, all at once."""

    async def one(completion, gold):
        await asyncio.sleep(0.01)
        return 1.0 if gold in completion[0]["content"] else -1.0

    return await asyncio.gather(*(one(c, g) for c, g in zip(completions, solution, strict=True)))


def test_functions_written_for_trl_run_as_they_are():
    found = function_scorer(accuracy, "accuracy")(CHAT, groups(0, 0, 0))
    assert found.reward.tolist()[:2] == [1, 0] and math.isnan(found.reward[2])
    assert found.verdicts[2][0].status == "refused"
    assert function_scorer(think_format, "think_format")(CHAT, groups(0, 0, 0)).reward.tolist() == [1, 0, 0]
    assert function_scorer(judged, "judged")(CHAT, groups(0, 0, 0)).reward.tolist() == [1, -1, -1]


def test_an_async_function_runs_where_a_loop_runs_already():
    async def notebook():
        return function_scorer(judged, "judged")(CHAT, groups(0, 0, 0))

    assert asyncio.run(notebook()).reward.tolist() == [1, -1, -1]


def test_an_async_function_that_raises_makes_the_batch_missing():
    async def broken(**columns):
        raise ConnectionError("no route to the judge")

    (first, *_) = function_scorer(broken, "mine")(BATCH, groups(0, 0, 1)).verdicts
    assert first[0].reasoning == "ConnectionError: no route to the judge"


@pytest.mark.parametrize("name", ["completion_ids", "trainer_state", "log_metric", "environments"])
def test_what_trl_has_and_is_not_here_is_told(name):
    wants = {}
    exec(f"def f(completions, {name}, **kwargs): ...", wants)
    with pytest.raises(ValueError, match=rf"no column for the parameters \['{name}'\]; columns: .*; {name}: "):
        function_scorer(wants["f"], "wants")(BATCH, groups(0, 0, 1))


def test_a_run_by_an_async_function(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import asyncio\n"
        "async def digits(prompts, completions, **columns):\n"
        "    await asyncio.sleep(0)\n"
        "    return [float(sum(c.isdigit() for c in text)) for text in completions]\n"
    )
    run = train(settings(tmp_path, "grpo") | {"reward": {"function": f"{tmp_path / 'mine.py'}:digits"}})
    told = lines(run.folder / "rollouts" / "step-000001.jsonl")
    assert all(line["reward"] == sum(c.isdigit() for c in line["response"]) for line in told)
    assert len({line["reward"] for line in told}) > 1
