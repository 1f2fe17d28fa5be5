"""From people's labels to calibrated confidence: `grape calibrate`, the file, the rubric, and `grape score --human`.

The critic errs by a plan: on `right` its accuracy is its confidence squared, on `tone` a constant.
"""

import csv
import json
import random

import pytest
import torch
import yaml
from server import Server, verdict

from grape_rl.cli import main
from grape_rl.reward.critic.reply import Reply
from grape_rl.reward.rubric import load_rubric
from small_runs import lines

RUBRIC = {
    "schema": "grape-rubric/1",
    "categories": {
        "all": {
            "items": [
                {"id": "brief", "weight": 1, "check": {"type": "length", "max_tokens": 50}},
                {"id": "right", "weight": 3, "judge": {"criterion": "It is right: ${row.gold}."}},
                {"id": "tone", "judge": {"criterion": "Its tone.", "labels": {"rude": 0, "cool": 0.5, "kind": 1}}},
                {"id": "rare", "weight": -1, "judge": {"criterion": "It is rare."}},
            ]
        }
    },
}
ROWS, PROMPTS = 240, 80


def planned():
    """Rows with people's labels, and the critic's answer for each row and item: label, and confidence out of 20."""
    draw = random.Random(0)
    rows, says = [], {}
    for i in range(ROWS):
        truth = {"right": draw.choice(["no", "yes"]), "tone": draw.choice(["rude", "cool", "kind"])}
        sure = draw.randint(10, 20)
        other = {"no": "yes", "yes": "no"}[truth["right"]]
        says[i, "right"] = (truth["right"] if draw.random() < (sure / 20) ** 2 else other, sure)
        kept = draw.random() < 0.7
        says[i, "tone"] = (truth["tone"] if kept else draw.choice(["rude", "cool", "kind"]), 20)
        says[i, "rare"] = ("no", 15)
        human = dict(truth) | ({"rare": draw.choice([0, 0.2, True])} if i < 12 else {})
        rows.append({"prompt": f"p{i % PROMPTS}", "response": f"r{i}", "gold": f"g{i}", "human": human})
    return rows, says


@pytest.fixture(scope="module")
def plan():
    return planned()


@pytest.fixture
def folder(tmp_path, plan):
    """A folder with a rubric, data, and the critics' settings."""
    (tmp_path / "rubric.yaml").write_text(yaml.safe_dump(RUBRIC, sort_keys=False))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in plan[0]))
    (tmp_path / "critics.yaml").write_text("default: {base_url: 'http://127.0.0.1:9/v1', model: stub}\n")
    return tmp_path


@pytest.fixture
def asked(plan, monkeypatch):
    """The calls to the planned critic, which runs in this process: a server takes a minute for so many."""
    calls = []

    class Planned:
        name, concurrency, deadline_s = "planned", 8, None

        def __init__(self, endpoint, limiter):
            pass

        async def reply(self, messages, schema, labels, seed, items=1):
            calls.append(messages)
            return Reply(verdict(*_said(plan[1], messages))["content"], prompt_tokens=100, completion_tokens=10)

        async def close(self):
            pass

    monkeypatch.setattr("grape_rl.reward.critic.endpoint.Client", Planned)
    return calls


def _said(says, messages):
    text = messages[1]["content"]
    i = int(text.split("response begins\nr")[1].split("\n")[0])
    return says[i, "right" if "It is right: g" in text else "tone" if "tone" in text else "rare"]


def grape(folder, command, capsys, **more):
    named = {"rubric": "rubric.yaml", "data": "rows.jsonl", "critics": "critics.yaml"} | more
    texts = {"human", "method", "fewest", "failure_limit"}
    words = [w for k, v in named.items() for w in (f"--{k}", str(v) if k in texts else str(folder / v))]
    capsys.readouterr()
    code = main([command, *words])
    said, complaint = capsys.readouterr()
    return code, said, complaint


def line(said, item):
    return next(each.split() for each in said.splitlines() if each.split()[:1] == [item])


@pytest.mark.parametrize("method", ["isotonic", "platt"])
def test_from_people_s_labels_to_calibrated_confidence(folder, plan, asked, capsys, method):
    rows, says = plan
    # The rubric names a calibration that is yet to be made.
    told = yaml.safe_load((folder / "rubric.yaml").read_text())
    for item in told["categories"]["all"]["items"][1:]:
        item["judge"]["confidence"] = {"transform": "calibrated", "calibration": "calibration.json"}
    (folder / "rubric.yaml").write_text(yaml.safe_dump(told, sort_keys=False))
    with pytest.raises(ValueError, match=r"calibration.json: no such file; make it with grape calibrate"):
        load_rubric(folder / "rubric.yaml")

    code, said, complaint = grape(folder, "calibrate", capsys, output="calibration.json", method=method)
    assert code == 0, complaint
    assert "492 calls, 0 of them answered by the cache" in said
    assert "fewer than 30 labels, so no curve of its own: all/rare" in said
    right, tone, rare = (line(said, f"all/{item}") for item in ("right", "tone", "rare"))
    assert right[-1] == tone[-1] == "own" and rare[-1] == "critic's"
    # ECE before and after, on prompts not fitted to. Of 240 labels it is 0.05 by noise alone.
    assert float(right[8]) > 0.12 > 0.09 > float(right[9])
    assert float(tone[8]) > 0.15 > 0.09 > float(tone[9])
    accuracy = sum(says[i, "right"][0] == row["human"]["right"] for i, row in enumerate(rows)) / ROWS
    assert float(right[3]) == pytest.approx(accuracy, abs=6e-4)
    # Errors fall evenly on two labels of even shares: κ is 2 accuracy − 1. On three, drawn 0.3 of the time, it is 0.7.
    assert float(right[4]) == pytest.approx(2 * accuracy - 1, abs=0.02)
    assert float(tone[5]) < 0.7 < float(tone[7])

    rubric = load_rubric(folder / "rubric.yaml")
    judge = rubric.categories["all"].items[1].judge
    for sure in (0.55, 0.75, 0.95):
        assert float(judge.curve(torch.tensor(sure))) == pytest.approx(sure**2, abs=0.2)
    code, said, complaint = grape(folder, "score", capsys, human="human", table="t.csv", output="out.jsonl")
    assert code == 0, complaint
    beside = line(said.split("critics vs. human labels")[1], "all/right")
    assert float(beside[8]) < 0.09, "ECE of the confidence as the rubric now has it"
    assert float(beside[4]) == float(right[4])
    assert line(said.split("critics vs. human labels")[1], "all")[1] == str(2 * ROWS + 12)
    found = {v["item"]: v for v in lines(folder / "out.jsonl")[0]["verdicts"]}
    expected = float(judge.curve(torch.tensor(says[0, "right"][1] / 20)))
    assert found["right"]["confidence"] == pytest.approx(expected)
    assert lines(folder / "out.jsonl")[0]["human"].keys() == {"right", "tone", "rare"}
    with open(folder / "t.csv") as file:
        table = {row["item"]: row for row in csv.DictReader(file)}
    assert float(table["right"]["kappa"]) == pytest.approx(float(right[4]), abs=6e-4)
    assert table["brief"]["kappa"] == "" and table["brief"]["human_n"] == ""
    # Made anew, the curves are those of the confidence as told, not of the calibrated one.
    first = (folder / "calibration.json").read_text()
    assert grape(folder, "calibrate", capsys, output="calibration.json", method=method)[0] == 0
    assert (folder / "calibration.json").read_text() == first


def test_chance_correction_after_calibration(folder, asked, capsys):
    assert grape(folder, "calibrate", capsys, output="calibration.json")[0] == 0
    (folder / "rows.jsonl").write_text("".join((folder / "rows.jsonl").read_text().splitlines(True)[:4]))
    told = yaml.safe_load((folder / "rubric.yaml").read_text())
    judge = told["categories"]["all"]["items"][2]["judge"]
    found = {}
    for transform in ("calibrated", "calibrated_chance_corrected"):
        judge["confidence"] = {"transform": transform, "calibration": "calibration.json"}
        (folder / "rubric.yaml").write_text(yaml.safe_dump(told, sort_keys=False))
        assert grape(folder, "score", capsys, output="out.jsonl")[0] == 0
        found[transform] = lines(folder / "out.jsonl")[3]["verdicts"][2]["confidence"]
    assert found["calibrated"] == pytest.approx(0.8, abs=0.05)  # 0.7, and a third of the rest
    assert found["calibrated_chance_corrected"] == pytest.approx((3 * found["calibrated"] - 1) / 2)


def test_the_table_as_json_and_the_plot(folder, asked, capsys, monkeypatch):
    (folder / "rows.jsonl").write_text("".join((folder / "rows.jsonl").read_text().splitlines(True)[:16]))
    more = {"human": "human", "plot": "p.png", "table": "t.json", "failure_limit": "0"}
    code, _, complaint = grape(folder, "score", capsys, **more)
    assert code == 0, complaint
    assert (folder / "p.png").read_bytes().startswith(b"\x89PNG")
    table = {each["item"]: each for each in json.loads((folder / "t.json").read_text())}
    assert table["brief"]["spread"] is None and table["brief"]["kappa"] is None and table["brief"]["missing"] == {}
    assert table["right"]["human_n"] == 16 and table["right"]["cost"] == 0
    assert table["right"]["tokens"] == 110 * 16, "what each call used"
    assert {flag["kind"] for flag in table["rare"]["flags"]} == {"unreachable", "constant confidence"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    before = len(asked)
    code, said, complaint = grape(folder, "score", capsys, **more)
    assert (code, said) == (2, "") and "not installed: pip install 'grape-rl[bench]'" in complaint
    assert len(asked) == before, "nothing is asked that cannot be drawn"


KNOTS = {"items": ["x"], "method": "isotonic", "knots": [[0.5, 0.4], [1, 0.9]], "n": 40, "ece_before": 0.1}
OF = {"critic": "default", "mode": "verbalized"}


@pytest.mark.parametrize(
    ("told", "complaint"),
    [
        ("{", "c.json: Expecting property name"),
        ({"schema": "grape-calibration/2", "curves": []}, "schema: Input should be 'grape-calibration/1'"),
        ({"curves": [{**KNOTS, "of": OF, "a": 1}]}, "method isotonic needs knots, and neither a nor b"),
        ({"curves": [{**KNOTS, "of": OF, "method": "platt"}]}, "method platt needs a and b, and no knots"),
        (
            {"curves": [{**KNOTS, "of": OF, "knots": [[0.5, 0.9], [1, 0.4]]}]},
            "the knots must have increasing",
        ),
        (
            {"curves": [{**KNOTS, "of": OF, "knots": [[1, 0.4], [1, 0.4]]}]},
            "the knots must have increasing",
        ),
        ({"curves": [{**KNOTS, "of": OF, "knots": [[0.5, 1.4]]}]}, "less than or equal to 1"),
        (
            {"curves": [{**KNOTS, "of": {**OF, "mode": "logprob"}}]},
            "the calibration has nothing for critic 'default' in",
        ),
        ({"curves": [{**KNOTS, "of": {**OF, "critic": "big"}}]}, "make it again with grape calibrate"),
        ({"curves": [{**KNOTS, "of": {**OF, "criterion": "It is nice."}}]}, "mode verbalized, on 'It is right"),
        ({"curves": [{**KNOTS, "of": OF}]}, None),
    ],
)
def test_a_calibration_is_loaded_with_the_rubric(folder, told, complaint):
    rubric = json.loads(json.dumps(RUBRIC))
    confidence = {"transform": "calibrated", "calibration": "c.json"}
    rubric["categories"]["all"]["items"][1]["judge"]["confidence"] = confidence
    (folder / "rubric.yaml").write_text(yaml.safe_dump(rubric))
    (folder / "c.json").write_text(
        told if isinstance(told, str) else json.dumps({"schema": "grape-calibration/1"} | told)
    )
    if complaint is None:
        judge = load_rubric(folder / "rubric.yaml").categories["all"].items[1].judge
        assert float(judge.for_row({"gold": "3"}).curve(torch.tensor(0.75))) == pytest.approx(0.65)
        del confidence["transform"]
        (folder / "rubric.yaml").write_text(yaml.safe_dump(rubric))
        complaint = "transform calibrated and a calibration file go together"
    with pytest.raises(ValueError) as error:
        load_rubric(folder / "rubric.yaml")
    assert complaint in str(error.value) and "\n" not in str(error.value) and "items[right].judge" in str(error.value)


def test_labels_in_separate_columns_and_as_numbers(folder, plan, capsys):
    """A table has a column for each item; 1.0 is yes, 0.2 is nearest to rude, and an empty cell is no label."""
    with open(folder / "rows.csv", "w", newline="") as file:
        names = ["prompt", "response", "gold", "by.right", "by.tone", "by.brief"]
        out = csv.DictWriter(file, names)
        out.writeheader()
        for i, row in enumerate(plan[0][:60]):
            score = {"rude": 0.2, "cool": 0.4, "kind": "kind"}[row["human"]["tone"]]
            right = float(row["human"]["right"] == "yes") if i % 2 else ""
            more = {"by.right": right, "by.tone": score, "by.brief": 1}
            out.writerow({k: row[k] for k in ("prompt", "response", "gold")} | more)
    with Server(lambda request, number: verdict(*_said(plan[1], request["messages"]))) as server:
        (folder / "critics.yaml").write_text(f"default: {{base_url: '{server.base_url}', model: stub}}\n")
        more = {"data": "rows.csv", "human": "by", "fewest": 50, "cache": "c.sqlite"}
        code, said, complaint = grape(folder, "calibrate", capsys, output="x.json", **more)
        assert code == 0 and len(server.requests) == 90, complaint
        again = grape(folder, "calibrate", capsys, output="y.json", **more)[1]
        assert "90 calls, 90 of them answered by the cache; 0 tokens, cost 0" in again
        assert len(server.requests) == 90 and (folder / "x.json").read_text() == (folder / "y.json").read_text()
    right, tone = line(said, "all/right"), line(said, "all/tone")
    assert (right[1], tone[1]) == ("30", "60") and right[-1] == "critic's"
    hits = sum(plan[1][i, "tone"][0] == row["human"]["tone"] for i, row in enumerate(plan[0][:60]))
    assert float(tone[3]) == pytest.approx(hits / 60, abs=6e-4)
    made = json.loads((folder / "x.json").read_text())
    assert sorted(sorted(curve["items"]) for curve in made["curves"]) == [["all/right", "all/tone"], ["all/tone"]]


@pytest.mark.parametrize(
    ("human", "complaint"),
    [
        (
            {"right": "maybe"},
            "row 0: the label of item 'right' is 'maybe', and should be one of no, yes, or a score in",
        ),
        ({"right": 1.5}, "is 1.5, and should be one of no, yes"),
        ({"rihgt": "no"}, "row 0: 'human' labels an unknown item 'rihgt'; did you mean 'right'?"),
        ("yes", "row 0: 'human' is 'yes', and should contain labels by item"),
        ({"brief": 1}, "no row has a human label of a judged item in 'human' or 'human.ITEM'"),
        ({"right": "no"}, "no critic has 30 labels, which a curve needs; nothing is written"),
    ],
)
def test_invalid_labels(folder, asked, capsys, human, complaint):
    row = {"prompt": "p", "response": "r1", "gold": "g", "human": human}
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    code, _, told = grape(folder, "calibrate", capsys, output="x.json")
    assert code == 2 and complaint in told and told.count("\n") == 1
    assert not (folder / "x.json").exists()
