"""reasoning-gym's questions as rows: distinct, repeatable, split without overlap."""

import json
import subprocess
import sys

import pytest

from grape_rl.data.tasks import _json_clean, task_split

reasoning_gym = pytest.importorskip("reasoning_gym")

SUM = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
SORT = {"min_numbers": 3, "max_numbers": 4, "min_value": 0, "max_value": 99, "min_decimals": 0, "max_decimals": 0}
SPELL = {"min_word_len": 3, "max_word_len": 5}
TASKS = {"chain_sum": SUM, "spell_backward": SPELL, "number_sorting": SORT}


def task_rows(tasks, size, seed):
    """Training rows alone."""
    return task_split(tasks, size, 0, seed)[0]


def questions(rows):
    return {row["prompt"] for row in rows}


def test_rows_take_the_tasks_in_turn_and_no_question_twice():
    rows = task_rows(TASKS, 301, seed=5)
    assert [row["task"] for row in rows] == [list(TASKS)[i % 3] for i in range(301)]
    assert len(questions(rows)) == 301
    for row in rows:
        assert set(row) == {"prompt", "answer", "task", "entry"}
        assert row["prompt"] == row["entry"]["question"]
        assert row["answer"] == row["entry"]["answer"]


def test_the_options_are_applied():
    for row in task_rows(TASKS, 60, seed=1):
        facts = row["entry"]["metadata"]
        if row["task"] == "chain_sum":
            left, _, right = facts["expression"].split()
            assert 0 <= int(left) <= 9 and 0 <= int(right) <= 9
        elif row["task"] == "spell_backward":
            assert 3 <= len(facts["word"]) <= 5
            assert row["answer"] == "".join(reversed(facts["word"]))
        else:
            assert 3 <= len(facts["original_numbers"]) <= 4


def test_rows_are_json_and_reasoning_gym_scores_them_as_its_own():
    rows = task_rows(TASKS, 90, seed=2)
    stored = json.loads(json.dumps(rows, allow_nan=False))
    assert stored == rows
    for row in stored:
        scored = reasoning_gym.create_dataset(row["task"], **TASKS[row["task"]]).score_answer
        assert scored(row["answer"], row["entry"]) == 1
        assert scored("no", row["entry"]) < 0.5


def test_numpy_tuples_sets_and_odd_keys_become_json():
    numpy = pytest.importorskip("numpy")
    value = {1: (numpy.float64(0.5), numpy.int64(3)), "s": set("bcadgfeh"), "n": [None, True, numpy.str_("x")]}
    clean = _json_clean({**value, "m": numpy.eye(2), "t": numpy.bool_(True)}, "t")
    assert clean == {
        "1": [0.5, 3],
        "s": list("abcdefgh"),
        "n": [None, True, "x"],
        "m": [[1.0, 0.0], [0.0, 1.0]],
        "t": True,
    }
    kinds = [type(part) for part in (*clean["1"], *clean["n"], clean["t"])]
    assert kinds == [float, int, type(None), bool, str, bool]
    with pytest.raises(ValueError, match="task 't': its entry contains a complex"):
        _json_clean([1j], "t")


def test_the_seed_decides_and_fewer_rows_are_the_first_of_more():
    assert task_rows(TASKS, 40, seed=3) == task_rows(TASKS, 90, seed=3)[:40]
    assert task_rows(TASKS, 40, seed=3) != task_rows(TASKS, 40, seed=4)


def test_the_seed_decides_in_another_process_too():
    code = (
        "import json; from grape_rl.data.tasks import task_split; "
        f"print(json.dumps(task_split({TASKS!r}, 30, 0, 3)[0]))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == task_rows(TASKS, 30, seed=3)


def test_neighboring_seeds_share_no_more_than_chance():
    many = {"number_sorting": SORT}  # 2 · (100³ + 100⁴) questions: 1 in 10⁶ at most
    assert not questions(task_rows(many, 300, seed=0)) & questions(task_rows(many, 300, seed=1))


def test_all_questions_of_a_small_task_are_found_and_not_one_more():
    few = {"chain_sum": SUM}  # 10 · 10 pairs of digits, plus and minus
    rows = task_rows(few, 200, seed=0)
    expected = {f"{a} {sign} {b}" for a in range(10) for b in range(10) for sign in "+-"}
    assert {row["entry"]["metadata"]["expression"] for row in rows} == expected
    with pytest.raises(ValueError, match="201 distinct questions are required, but these options give only 200"):
        task_rows(few, 201, seed=0)
    two = {"spell_backward": SPELL, "chain_sum": SUM}
    assert len(task_rows(two, 401, seed=0)) == 401, "201 of the one and 200 of the other"
    with pytest.raises(ValueError, match="'chain_sum': 201 distinct questions are required"):
        task_rows(two, 403, seed=0)


def test_the_split_has_no_question_on_both_sides_and_its_test_stays():
    train, test = task_split(TASKS, 200, 60, seed=1)
    assert (len(train), len(test)) == (200, 60)
    assert not questions(train) & questions(test)
    assert {row["task"] for row in test} == set(TASKS) == {row["task"] for row in train}
    assert task_split(TASKS, 20, 60, seed=1)[1] == test
    assert task_split(TASKS, 20, 60, seed=2)[1] != test
    everything, nothing = task_split(TASKS, 20, 0, seed=1)
    assert nothing == [] and everything == test[:20]
    with pytest.raises(ValueError, match="only 200"):
        task_split({"chain_sum": SUM}, 150, 60, seed=1)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"chain_sums": {}}, "reasoning-gym has no task 'chain_sums'; did you mean 'chain_sum'?"),
        ({"chain_sum": {"max_digit": 1}}, "task 'chain_sum' has no option 'max_digit'; it has"),
        ({"chain_sum": {"max_digit": 1}}, "did you mean 'max_digits'?"),
        ({"chain_sum": {"seed": 1}}, "task 'chain_sum' has no option 'seed'"),
        ({"chain_sum": {"min_terms": 9}}, "max_terms must be >= min_terms"),
        ({"chain_sum": {"min_terms": "two"}}, "task 'chain_sum' with {'min_terms': 'two'}:"),
        ({"spell_backward": {"min_word_len": 90, "max_word_len": 91}}, "task 'spell_backward' with"),
        ({"rearc": {}}, "task 'rearc': reasoning-gym cannot score its entries as JSON"),
        ({}, "no tasks are named"),
    ],
)
def test_an_invalid_task_gives_a_one_line_error(tasks, message):
    with pytest.raises(ValueError) as error:
        task_rows(tasks, 3, seed=0)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_invalid_sizes_are_refused():
    with pytest.raises(ValueError, match="train_size is 0"):
        task_rows(TASKS, 0, seed=0)
    for train_size, test_size in ((0, 5), (5, -1)):
        with pytest.raises(ValueError, match="train_size"):
            task_split(TASKS, train_size, test_size, seed=0)


def test_without_reasoning_gym_the_error_names_the_package_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(ValueError, match=r"pip install 'grape-rl\[tasks\]'"):
        task_rows(TASKS, 3, seed=0)


def test_importing_tasks_loads_no_heavy_library():
    code = "import sys, grape_rl.data.tasks; print({'reasoning_gym', 'torch', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_a_task_of_a_given_size_repeats_its_questions_in_turn_and_none_of_them_is_held_out() -> None:
    train, test = task_split({"chain_sum": {**SUM, "size": 5}, "spell_backward": SPELL}, 40, 12, seed=3)
    sums = [row["prompt"] for row in train if row["task"] == "chain_sum"]
    assert len(sums) == 20 and len(set(sums)) == 5 and sums == sums[:5] * 4
    assert len({row["prompt"] for row in train if row["task"] == "spell_backward"}) == 20
    assert not {row["prompt"] for row in test} & {row["prompt"] for row in train}
    assert [row["task"] for row in test].count("chain_sum") == 6


@pytest.mark.parametrize("size", [0, -1, 2.5, "many"])
def test_a_size_that_is_not_a_count_is_refused(size: object) -> None:
    with pytest.raises(ValueError, match=r"'chain_sum': size is .*; it must be a whole number of questions"):
        task_split({"chain_sum": {**SUM, "size": size}}, 10, 2, seed=0)
