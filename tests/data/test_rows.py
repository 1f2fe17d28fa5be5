"""Rows from files and from a fake of the Hub, and their normalized form."""

import csv
import json
import subprocess
import sys

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from grape_rl.data.rows import read_rows, require_columns, with_prompts
from grape_rl.schema import did_you_mean

ROWS = [
    {"question": "1 + 1?", "answer": "2"},
    {"question": "Ünï\u2028?", "answer": "3"},
    {"question": "c", "answer": "4"},
]


def written(folder, kind, rows=ROWS):
    path = folder / f"data.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8")
    elif kind == "json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


def assert_message(error, *parts):
    """Assert that the message is one line and contains the parts."""
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "csv"])
def test_each_kind_of_file_gives_its_rows_in_order_and_at_most_limit(tmp_path, kind):
    path = written(tmp_path, kind)
    assert read_rows(path) == ROWS
    assert read_rows(str(path), limit=2) == ROWS[:2]
    assert read_rows(path, limit=9) == ROWS


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
def test_a_byte_order_mark_is_ignored(tmp_path, kind):
    path = written(tmp_path, kind)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_rows(path) == ROWS


def test_the_suffix_may_be_upper_case(tmp_path):
    assert read_rows(written(tmp_path, "jsonl").rename(tmp_path / "DATA.JSONL")) == ROWS


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_messages_survive_each_kind_that_nests(tmp_path, kind):
    rows = [{"prompt": [{"role": "user", "content": "hi"}], "n": 1}]
    assert read_rows(written(tmp_path, kind, rows)) == rows


def test_jsonl_errors_name_file_and_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n\n{"a": \n', encoding="utf-8")
    with pytest.raises(ValueError) as error:
        read_rows(path)
    assert_message(error, f"{path}:3: not JSON")
    assert read_rows(path, limit=1) == [{"a": 1}], "rows after the limit are not read"
    path.write_text('{"a": 1}\n[2]\n', encoding="utf-8")
    with pytest.raises(ValueError) as error:
        read_rows(path)
    assert_message(error, f"{path}:2:", "[2]")
    path.write_bytes(b'{"a": 1}\n{"a": "\xff"}\n')
    with pytest.raises(ValueError) as error:
        read_rows(path)
    assert_message(error, f"{path}:2:")


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("a.json", '{"a": 1}\n{"a": 2}\n', "rename it to .jsonl"),
        ("a.json", '{"a": 1}', "a list of objects; got dict"),
        ("a.json", "[1]", "row 0: expected an object"),
        ("a.json", "[", "not JSON"),
        ("a.csv", "a,b\n1,2\n3\n", "a.csv:3: 1 cells for 2 columns"),
        ("a.csv", "a,b\n1,2,3\n", "a.csv:2: 3 cells for 2 columns"),
        ("a.csv", "a,a\n1,2\n", "duplicate column names: a, a"),
        ("a.csv", 'a,b\n1,"2\n', "not CSV"),
        ("a.parquet", "no", "not Parquet"),
        ("a.txt", "a", "unsupported file type; the supported types are .jsonl, .json, .parquet, .csv"),
        ("a.jsonl", "\n", "no rows"),
        ("a.json", "[]", "no rows"),
        ("a.csv", "a,b\n", "no rows"),
        ("a.csv", "", "no rows"),
    ],
)
def test_a_malformed_file_gives_a_one_line_error(tmp_path, name, content, part):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError) as error:
        read_rows(path)
    assert_message(error, str(path), part)


def test_empty_parquet_has_no_rows(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"a": []}), path)
    with pytest.raises(ValueError, match="no rows"):
        read_rows(path)


def test_a_missing_file_suggests_the_nearest(tmp_path):
    written(tmp_path, "jsonl")
    with pytest.raises(ValueError) as error:
        read_rows(tmp_path / "date.jsonl")
    assert_message(error, "no such file", "did you mean 'data.jsonl'?")
    with pytest.raises(ValueError) as error:
        read_rows(tmp_path / "nowhere" / "data.jsonl")
    assert_message(error, "no such file", f"there is no folder {tmp_path / 'nowhere'}")
    with pytest.raises(ValueError, match="no such file"):
        read_rows(tmp_path / "no-suffix")
    with pytest.raises(ValueError, match="a folder"):
        read_rows(tmp_path)


def test_a_split_of_a_file_and_an_empty_limit_are_refused(tmp_path):
    path = written(tmp_path, "jsonl")
    with pytest.raises(ValueError, match="a file has no splits, but split 'test' was requested"):
        read_rows(path, split="test")
    with pytest.raises(ValueError, match="limit is 0"):
        read_rows(path, limit=0)


def test_the_hub_gets_name_configuration_and_split(monkeypatch):
    requests = []

    def load_dataset(name, configuration, *, split):
        requests.append((name, configuration, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read_rows("openai/gsm8k:main", split="test") == ROWS
    assert read_rows("openai/gsm8k", limit=1) == ROWS[:1]
    assert read_rows("squad") == ROWS
    assert requests == [("openai/gsm8k", "main", "test"), ("openai/gsm8k", None, "train"), ("squad", None, "train")]


@pytest.mark.parametrize(
    "failure", [ConnectionError("no\n  network"), FileNotFoundError("no such dataset"), ValueError("Unknown split")]
)
def test_a_failure_of_the_hub_gives_a_one_line_error(monkeypatch, failure):
    def load_dataset(*_, **__):
        raise failure

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ValueError) as error:
        read_rows("openai/gsm9k", split="dev")
    assert_message(error, "openai/gsm9k", "'dev'", type(failure).__name__, " ".join(str(failure).split()))


def test_an_empty_split_and_an_invalid_dataset_name(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list([]))
    with pytest.raises(ValueError, match="openai/gsm8k: no rows"):
        read_rows("openai/gsm8k")
    for name in ("a/b/c", "s3://a/b", "a b", ":main", "a/b:"):
        with pytest.raises(ValueError, match="neither a file nor a dataset name"):
            read_rows(name)


def test_importing_rows_loads_no_heavy_library():
    heavy = "{'torch', 'transformers', 'datasets', 'pyarrow', 'numpy'}"
    code = f"import sys, grape_rl.data.rows; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_require_columns_names_the_missing_column_those_present_and_the_nearest():
    require_columns(ROWS, ["question", "answer"])
    with pytest.raises(ValueError) as error:
        require_columns([*ROWS, {"qestion": 1, "z": 2}], ["question"], "data.jsonl")
    assert_message(
        error, "data.jsonl: row 3 has no column 'question'", "it has 'qestion', 'z'; did you mean 'qestion'?"
    )
    with pytest.raises(ValueError, match=r"it has none$"):
        require_columns([{}], ["question"])


def test_did_you_mean_is_silent_where_nothing_is_near():
    assert did_you_mean("question", ["answer", "id"]) == ""


USER, ASSISTANT = {"role": "user", "content": "Sky?"}, {"role": "assistant", "content": "Blue."}


@pytest.mark.parametrize(
    ("row", "completion"),
    [
        ({"prompt": "The sky is"}, None),
        ({"prompt": [USER]}, None),
        ({"prompt": "The sky is", "completion": " blue."}, "completion"),
        ({"prompt": [USER], "completion": [ASSISTANT]}, "completion"),
        ({"prompt": [{"role": "system", "content": "Be terse."}, USER, ASSISTANT, USER]}, None),
    ],
)
def test_trl_types_load_unchanged(tmp_path, row, completion):
    row = {**row, "id": 7}
    assert with_prompts([row], "prompt", completion) == [row]
    for kind in ("jsonl", "json", "parquet"):
        assert with_prompts(read_rows(written(tmp_path, kind, [row])), "prompt", completion) == [row]


def test_named_columns_become_prompt_and_completion_and_the_input_row_is_unchanged():
    row = {"question": "a", "answer": "b", "id": 1}
    (new,) = with_prompts([row], "question", "answer")
    assert new == {"question": "a", "answer": "b", "id": 1, "prompt": "a", "completion": "b"}
    assert row == {"question": "a", "answer": "b", "id": 1}


def test_the_system_prompt_is_prepended():
    plain, messages = with_prompts([{"q": "a"}, {"q": [USER]}], "q", system="Be kind.")
    assert plain["prompt"] == "Be kind.\n\na"
    assert messages["prompt"] == [{"role": "system", "content": "Be kind."}, USER]
    assert messages["q"] == [USER], "the row's own list is not the one extended"
    with pytest.raises(ValueError, match="row 0: the prompt already has a system message"):
        with_prompts([{"q": [{"role": "system", "content": "x"}, USER]}], "q", system="Be kind.")


def test_keys_that_parquet_fills_in_are_dropped(tmp_path):
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    rows = [{"prompt": [USER, call, {"role": "tool", "content": "3"}]}]
    (new,) = with_prompts(read_rows(written(tmp_path, "parquet", rows)), "prompt")
    assert new["prompt"] == [
        USER,
        {"role": "assistant", "tool_calls": [{"name": "f"}]},
        {"role": "tool", "content": "3"},
    ]


@pytest.mark.parametrize(
    ("bad", "part"),
    [
        ({"prompt": ""}, "the prompt ('prompt') is empty"),
        ({"prompt": " \n"}, "the prompt ('prompt') is empty"),
        ({"prompt": []}, "has no messages"),
        ({"prompt": None}, "must be text or a list of messages; got None"),
        ({"prompt": 3}, "must be text or a list of messages; got 3"),
        ({"prompt": [{"from": "human", "value": "hi"}]}, "each have a 'role' and a 'content'"),
        ({"prompt": [{"role": "user", "content": None}]}, "each have a 'role' and a 'content'"),
        ({"prompt": [{"content": "hi"}]}, "each have a 'role' and a 'content'"),
        ({"prompt": ["hi"]}, "each have a 'role' and a 'content'"),
        ({"completion": None}, "the completion ('completion') must be text"),
        ({"completion": ""}, "the completion ('completion') is empty"),
        ({"completion": [ASSISTANT]}, "the prompt is plain text but the completion is messages"),
        ({"prompt": [USER]}, "the prompt is messages but the completion is plain text"),
        ({"prompt": [USER], "completion": [ASSISTANT, USER]}, "must begin and end with an assistant message"),
    ],
)
def test_a_bad_row_is_named(bad, part):
    good = {"prompt": "a", "completion": "b"}
    with pytest.raises(ValueError) as error:
        with_prompts([good, good, {**good, **bad}], "prompt", "completion", source="data.jsonl")
    assert_message(error, "data.jsonl: row 2", part)


def test_with_prompts_requires_its_columns():
    with pytest.raises(ValueError, match=r"row 0 has no column 'promt'.*did you mean 'prompt'"):
        with_prompts([{"prompt": "a"}], "promt")
