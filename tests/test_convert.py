"""``grape convert`` from the command line, and what lint says there."""

import json

import pytest
import yaml

from grape_rl.cli import main
from small_runs import lines, written

RAR = {
    "question": "What dose, Zoë?",
    "reference_answer": "5 mg",
    "rubric": [{"title": "dose", "description": "Essential Criteria: Names the dose.", "weight": 5}],
}
RUBRIC = """
schema: grape-rubric/1
categories:
  all:
    items:
      - {id: right, weight: 4, check: {type: exact, gold: a}}
      - {id: kind, weight: 3, judge: {criterion: "Is kind to ${row.reader}."}}
"""


@pytest.fixture
def grape(capsys):
    """Runs a command line: its exit code, what it said and its complaint."""

    def run(*arguments):
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        return code, *capsys.readouterr()

    return run


def test_in(grape, tmp_path):
    data, out = written(tmp_path / "d.jsonl", [RAR, {**RAR, "rubric": []}]), tmp_path / "new" / "out"
    code, said, told = grape("convert", data, "--from", "rar", "--output", out)
    assert (code, said) == (2, "") and not out.exists()
    assert told == f"error: {data}: row 1: rubric: should be a list of {{title, description, weight}} but is []\n"
    code, said, told = grape("convert", data, "--from", "rar", "--output", out, "--drop")
    assert (code, told) == (0, "")
    assert said.splitlines()[:3] == [
        f"written: {out}/rubric.yaml (1 category)",
        f"written: {out}/rows.jsonl (1 row)",
        "dropped: 1 × invalid rows",
    ]
    assert f"grape lint {out}/rubric.yaml --data {out}/rows.jsonl" in said
    assert all(f"grape {command} " in said for command in ("score", "train"))
    assert yaml.safe_load((out / "rubric.yaml").read_text()) == {
        "schema": "grape-rubric/1",
        "categories": {"all": {"row_items": {"from": "${row.rubric}", "format": "rar"}}},
    }
    assert "Zoë" in (out / "rows.jsonl").read_text(encoding="utf-8")
    (row,) = lines(out / "rows.jsonl")
    assert row == {"prompt": RAR["question"], "reference_answer": "5 mg", "rubric": RAR["rubric"]}
    code, told, _ = grape("lint", out / "rubric.yaml", "--data", out / "rows.jsonl")
    assert code == 0 and told.endswith("no problems found\n")
    assert "row/…" in told and "items of ${row.rubric}" in told
    code, _, told = grape("convert", data, "--from", "rar", "--output", out, "--drop")
    assert code == 2 and f"{out}/rubric.yaml exists already: name another folder" in told


def test_out(grape, tmp_path):
    (tmp_path / "r.yaml").write_text(RUBRIC)
    data, out = written(tmp_path / "d.jsonl", [{"prompt": "p", "reader": "Ann"}]), tmp_path / "out.jsonl"
    given = ("convert", tmp_path / "r.yaml", "--data", data, "--to", "healthbench", "--output", out)
    code, said, told = grape(*given)
    assert (code, said) == (2, "") and not out.exists()
    complaint = (
        "row 0: item 'right' is graded by exact, not by a critic, which healthbench cannot represent; use --drop to"
    )
    assert told.startswith(f"error: {data}: {complaint}") and told.count("\n") == 1
    code, said, _ = grape(*given, "--drop")
    assert code == 0
    assert said == f"written: {out} (1 row)\ndropped: 1 × items: 'right' is graded by exact, not by a critic\n"
    (row,) = lines(out)
    assert row["rubrics"] == [{"criterion": "Is kind to Ann.", "points": 3, "tags": []}]
    code, _, told = grape(*given, "--drop")
    assert code == 2 and "out.jsonl exists already: name another file" in told


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["d.jsonl"], "grape convert needs one file, --output, and one of --from FORMAT and --to FORMAT"),
        (["--from", "rar", "--output", "o"], "grape convert needs one file"),
        (["d.jsonl", "--from", "rar"], "grape convert needs one file"),
        (["d.jsonl", "--from", "rar", "--to", "rar", "--output", "o"], "and one of --from FORMAT and --to FORMAT"),
        (["r.yaml", "--to", "rar", "--output", "o"], "name the rows with --data"),
        (["d.jsonl", "--from", "rar", "--output", "o", "--data", "x"], "--data goes with --to"),
        (["r.yaml", "--to", "rar", "--output", "o", "--data", "d.jsonl", "--split", "x"], "--split goes with --from"),
        (["d.jsonl", "--from", "rarr", "--output", "o"], "unknown format 'rarr'; did you mean 'rar'?"),
        (
            ["r.yaml", "--to", "rarr", "--output", "o", "--data", "d.jsonl"],
            "unknown format 'rarr'; did you mean 'rar'?",
        ),
        (["none.jsonl", "--from", "rar", "--output", "o"], "none.jsonl: no such file"),
        (["d.jsonl", "--from", "rar", "--output", "o", "--split", "test"], "a file has no splits"),
        (["none.yaml", "--to", "rar", "--output", "o", "--data", "d.jsonl"], "none.yaml: cannot be read"),
    ],
)
def test_bad_command_lines(grape, tmp_path, monkeypatch, arguments, complaint):
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "d.jsonl", [RAR])
    (tmp_path / "r.yaml").write_text(RUBRIC)
    code, said, told = grape("convert", *arguments)
    assert (code, said) == (2, "") and complaint in told and told.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_lint_prints_what_it_finds(grape, tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(RUBRIC)
    assert grape("lint", file)[0] == 0
    file.write_text(RUBRIC + "      - {id: brief, judge: {criterion: Is short and sweet.}}\n    when: {language: no}\n")
    code, said, told = grape("lint", file)
    assert (code, told) == (1, f"error: {file}: 2 problems found\n")
    assert "kind" in said and "no problems found" not in said
    assert said.splitlines()[:2] == [
        "category 'all', when language: YAML reads the unquoted no as False: put it in quotes if it is text",
        "category 'all', item 'brief': asks for two things ('short and sweet') but gets one verdict: split it into "
        "two items",
    ]
    data = written(tmp_path / "d.jsonl", [{"prompt": "p", "reader": "Ann", "language": "no"}])
    code, said, told = grape("lint", file, "--data", data)
    assert code == 2 and "such as 'no': put it in quotes" in said and "belongs to no category" in told


def test_a_row_that_json_cannot_hold(grape, tmp_path):
    (tmp_path / "d.jsonl").write_text(json.dumps({**RAR, "x": float("nan")}) + "\n")
    code, _, told = grape("convert", tmp_path / "d.jsonl", "--from", "rar", "--output", tmp_path / "o")
    assert code == 2 and "a row has a value that JSON cannot represent" in told and not list((tmp_path / "o").iterdir())
