"""Items that people grade: columns and files of labels, agreement, and runs that wait for them."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from grape_rl import train
from grape_rl.cli import main
from grape_rl.maths.grape import confidence_weighted
from grape_rl.reward.human_item import add_to_todo
from grape_rl.reward.pending_labels import Unlabeled, stop_for_labels
from grape_rl.reward.rubric import load_rubric
from grape_rl.reward.scores import rubric_scorer
from grape_rl.types import Response
from small_runs import lines, settings, told, weights, written

HEAD = "schema: grape-rubric/1\ncategories:\n  sums:\n    items:\n"


def load(tmp_path, human="{labels: labels.jsonl, low: 1, high: 5}", more=""):
    (tmp_path / "rubric.yaml").write_text(HEAD + f"      - {{id: kind, human: {human}}}\n" + more)
    return load_rubric(tmp_path / "rubric.yaml")


def label(score, response="r", **more):
    return {"prompt": "p", "response": response, "item": "kind", "score": score, **more}


def response(text="r", **row):
    return Response("p", text, row, 3, "stop")


def verdict(rubric, given):
    return rubric.categories["sums"].items[0].human.verdict("kind", given)


@pytest.mark.parametrize(
    ("told", "score", "status"),
    [
        (1, 0, "ok"), (5, 1, "ok"), (4, 0.75, "ok"), (4.0, 0.75, "ok"), ("4", 0.75, "ok"),
        (None, None, "unlabeled"), ("", None, "unlabeled"),
        (0.5, None, "infrastructure"), (6, None, "infrastructure"), ("four", None, "infrastructure"),
        (True, None, "infrastructure"), ("nan", None, "infrastructure"), ([4], None, "infrastructure"),
    ],
)  # fmt: skip
def test_a_column_of_stars(told, score, status, tmp_path):
    found = verdict(load(tmp_path, "{score: '${row.stars}', low: 1, high: 5}"), response(stars=told))
    assert found.status == status and found.reasoning and "${row.stars}" in found.provenance
    assert found.missing if score is None else (found.score, found.confidence) == (score, 1)


def test_labels_of_several_people(tmp_path):
    written(
        tmp_path / "labels.jsonl",
        [
            label(5, by="ada"), label(1, by="bob"), label(4, by="ada"), label(None, by="eve"),
            label(3, "other"), label(3, "other"), label(5, "split"), label(1, "split"), label(9, "wild"),
            label(5) | {"item": "else"}, label(5) | {"prompt": "q"}, label(None, "open"),
        ],
    )  # fmt: skip
    rubric = load(tmp_path)
    found = verdict(rubric, response())  # ada's 4, which is her last, and bob's 1: scores 0.75 and 0
    assert (found.score, found.reasoning) == (0.375, "ada 4, bob 1")
    assert found.confidence == 1 - 0.75
    assert (verdict(rubric, response("other")).score, verdict(rubric, response("other")).confidence) == (0.5, 1)
    assert (verdict(rubric, response("split")).score, verdict(rubric, response("split")).confidence) == (0.5, 0)
    wild = verdict(rubric, response("wild"))
    assert (wild.status, wild.reasoning) == ("infrastructure", "the label 9 is not in [1, 5]")
    assert [verdict(rubric, response(text)).status for text in ("open", "new")] == ["unlabeled"] * 2


@examples(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.randoms())
def test_agreement_is_within_bounds_and_the_order_of_labels_is_of_no_account(tmp_path_factory, scores, draw):
    folder = tmp_path_factory.mktemp("labels")
    seen = []
    for _ in range(2):
        written(folder / "labels.jsonl", [label(score) for score in scores])
        seen.append(verdict(load(folder, "{labels: labels.jsonl}"), response()))
        draw.shuffle(scores)
    assert (seen[0].score, seen[0].confidence) == (seen[1].score, seen[1].confidence)
    assert min(scores) <= seen[0].score <= max(scores) and 0 <= seen[0].confidence <= 1
    assert (seen[0].confidence == 1) == (max(scores) - min(scores) < 1e-12) or max(scores) - min(scores) < 1e-6
    farthest = max(abs(a - b) for a in scores for b in scores)
    assert seen[0].confidence >= 1 - farthest - 1e-12  # twice the standard deviation is at most the range


@pytest.mark.parametrize(
    ("human", "message"),
    [
        ("{low: 1}", "human: needs exactly one of score (a column) and labels (a file)"),
        ("{labels: l.jsonl, score: '${row.x}'}", "needs exactly one of score"),
        ("{labels: l.jsonl, low: 5, high: 5}", "low is 5; it must be below high, 5"),
        ("{labels: ../l.jsonl}", "human.labels: '../l.jsonl' should be the name of a .jsonl file"),
        ("{labels: l.csv}", "human.labels: 'l.csv' should be the name of a .jsonl file in the rubric's folder"),
        ("{score: stars}", "human.score: 'stars' should be a single lookup, such as ${row.stars}"),
        ("{scoer: '${row.x}'}", "human: unknown key 'scoer'; did you mean 'score'?"),
        ("{labels: l.jsonl, high: yes}", "human.high: Input should be a valid number"),
        ("{labels: l.jsonl}, check: {type: length, max_tokens: 1}", "needs exactly one of check, judge, rew"),
    ],
)  # fmt: skip
def test_what_a_rubric_says_wrongly_of_people(human, message, tmp_path):
    with pytest.raises(ValueError) as said:
        load(tmp_path, human)
    assert message in str(said.value) and "\n" not in str(said.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "labels.jsonl, line 2: not JSON: "),
        ("3", "labels.jsonl, line 2: should be a mapping but is 3"),
        (json.dumps(label(1) | {"scor": 2}), "line 2: unknown key 'scor'; did you mean 'score'?"),
        (json.dumps(label("5")), "line 2: score: Input should be a valid number"),
        (json.dumps(label(True)), "line 2: score: Input should be a valid number"),
        ('{"prompt": "p", "item": "kind", "score": 1}', "line 2: response: is missing"),
    ],
)
def test_a_line_that_is_no_label(line, message, tmp_path):
    (tmp_path / "labels.jsonl").write_text("\n" + line + "\n")
    with pytest.raises(ValueError) as said:
        load(tmp_path)
    assert message in str(said.value) and "\n" not in str(said.value)


def test_what_waits_is_listed_once_and_what_people_wrote_there_stays(tmp_path):
    todo = tmp_path / "labels.todo.jsonl"
    written(todo, [label(4, "a"), label(None, "b", by="bob"), label(2, "done"), label(None, "b")])
    written(tmp_path / "labels.jsonl", [label(2, "done"), label(None, "c")])
    add_to_todo(tmp_path / "labels.jsonl", [("p", "c", "kind"), ("p", "b", "kind"), ("p", "c", "kind")])
    wanted = [label(4, "a"), label(None, "b", by="bob"), label(None, "b"), label(None, "c")]
    assert lines(todo) == wanted
    add_to_todo(tmp_path / "labels.jsonl", [("p", "c", "kind")])
    assert lines(todo) == wanted and {each.name for each in tmp_path.iterdir()} == {"labels.jsonl", "labels.todo.jsonl"}


def test_a_run_s_scorer_stops_and_a_plain_one_does_not(tmp_path):
    rubric = load(tmp_path, "{labels: people.jsonl}", "      - {id: x, check: {type: regex, pattern: r}}\n")
    plain = rubric_scorer(rubric, confidence_weighted)
    batch, group = [response("r"), response("r"), response("s")], torch.tensor([0, 0, 0])
    assert [line[0].status for line in plain(batch, group).verdicts] == ["unlabeled"] * 3
    assert not (tmp_path / "people.todo.jsonl").exists()
    with pytest.raises(Unlabeled) as said:
        stop_for_labels(plain, rubric)(batch, group)
    assert str(said.value).startswith("2 verdicts need human labels: ") and "\n" not in str(said.value)
    assert f"from {tmp_path}/people.todo.jsonl to {tmp_path}/people.jsonl, and run with --resume" in str(said.value)
    assert lines(tmp_path / "people.todo.jsonl") == [label(None, "r"), label(None, "s")]
    written(tmp_path / "people.jsonl", [label(0.5, "r"), label(1, "s")])
    rubric = load(tmp_path, "{labels: people.jsonl}")
    scores = stop_for_labels(rubric_scorer(rubric, confidence_weighted), rubric)(batch, group)
    assert scores.reward.tolist() == [0.5, 0.5, 1]


def test_a_column_says_nothing_of_what_is_yet_to_be_sampled(tmp_path):
    wanted = settings(tmp_path, "grape")
    load(tmp_path, "{score: '${row.completion}', low: 0, high: 30}")
    with pytest.raises(
        ValueError, match=r"item 'kind' of category 'sums': the column \$\{row.completion\} scores responses of"
    ):
        train(wanted)


def test_grape_score_counts_what_has_no_label(tmp_path, capsys):
    written(tmp_path / "labels.jsonl", [label(5, "a")])
    load(tmp_path)
    data = written(
        tmp_path / "d.jsonl", [{"prompt": prompt, "response": text} for prompt, text in zip("pqr", "abc", strict=True)]
    )
    assert main(["score", "--rubric", str(tmp_path / "rubric.yaml"), "--data", str(data)]) == 0
    said = capsys.readouterr().out
    assert "unlabeled 2" in said and "mean reward 1.000 over 1 responses" in said
    assert not (tmp_path / "labels.todo.jsonl").exists()


def labeled(path):
    """What a person would say: even digits are liked. Moves what waits to the labels, and says how many lines."""
    todo = path.with_name("labels.todo.jsonl")
    found = [line | {"score": sum(c in "02468" for c in line["response"]) % 3 / 2} for line in lines(todo)]
    with path.open("a") as file:
        file.writelines(json.dumps(each) + "\n" for each in found)
    todo.unlink()
    return len(found)


def test_a_run_waits_for_people_and_goes_on_to_the_same_bits(tmp_path):
    wanted = settings(tmp_path, "grape") | {"steps": 2, "checkpoint_every": 1}
    wanted["data"] = wanted["data"] | {"held_out_rows": 2}
    (tmp_path / "rubric.yaml").write_text(
        HEAD + "      - {id: liked, weight: 2, human: {labels: labels.jsonl}}\n"
        "      - {id: brief, check: {type: length, max_tokens: 4}}\n"
    )
    stops, counts = 0, []
    while True:
        try:
            run = train(wanted, resume=stops > 0)
            break
        except Unlabeled:
            stops += 1
            assert stops < 10
            counts.append(labeled(tmp_path / "labels.jsonl"))
    assert stops >= 4 and min(counts) > 0, counts  # before the first step, and at each
    straight = train(wanted | {"output": str(tmp_path / "straight")})
    one, other = weights(run.model), weights(straight.model)
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert told(run) == told(straight)
    assert (run.folder / "held_out.json").read_bytes() == (straight.folder / "held_out.json").read_bytes()
    assert run.metrics[-1]["missing"] == 0 and run.metrics[0]["reward_std"] > 0
