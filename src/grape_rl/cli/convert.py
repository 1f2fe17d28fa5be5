"""``grape convert``: datasets of rubrics brought in, and rubrics taken out."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from grape_rl.cli.arguments import listed, parsed_arguments

HELP = """usage: grape convert DATA --from FORMAT --output FOLDER [--drop] [--split NAME]
       grape convert RUBRIC --data ROWS --to FORMAT --output FILE [--drop] [--allow NAME[,NAME]]

The first writes FOLDER/rubric.yaml, and FOLDER/rows.jsonl whose rows bring their items along. DATA is a file of rows or
a dataset of the Hub, NAME[:CONFIGURATION]. The second writes the items that a rubric has for each row, as rows
of that form.

FORMAT   healthbench, rar, openrubrics, biggen, or grape: a rubric file's own items, in a column items
--drop   leave out what cannot be converted (rows that cannot be read; items that the form cannot hold), and count it
--split  which split of a dataset of the Hub (train)
--data   rows that the rubric is to grade
--allow  the Python files and modules that the rubric may call
"""


def main(arguments: Sequence[str]) -> None:
    """Convert, and say what was written and what was left out."""
    if not arguments or "--help" in arguments or "-h" in arguments:
        print(HELP)
        return
    words, own, _ = parsed_arguments(arguments, ["drop"], known=["from", "to", "data", "output", "allow", "split"])
    if len(words) != 1 or ("from" in own) == ("to" in own) or "output" not in own:
        raise ValueError("grape convert needs one file, --output, and one of --from FORMAT and --to FORMAT")
    if "to" in own and "data" not in own:
        raise ValueError("--to writes the items of each row: name the rows with --data")
    if "from" in own and (other := own.keys() & {"data", "allow"}):
        raise ValueError(f"--{min(other)} goes with --to; --from reads the rows of {words[0]}")
    if "to" in own and "split" in own:
        raise ValueError("--split goes with --from")
    (_bring if "from" in own else _take)(words[0], own)


def _bring(source: str, own: Mapping[str, str | bool]) -> None:
    import yaml

    from grape_rl.data.rows import read_rows
    from grape_rl.rubric_tools.convert.conversion import brought_in, layout_of

    form, folder = str(own["from"]), Path(str(own["output"]))
    layout_of(form)
    try:
        found = brought_in(read_rows(source, str(own.get("split", "train"))), form, bool(own.get("drop")))
    except ValueError as error:
        raise ValueError(_at(source, error)) from None
    assert found.rubric
    files = [folder / "rubric.yaml", folder / "rows.jsonl"]
    if there := [str(file) for file in files if file.exists()]:
        raise ValueError(f"{there[0]} is there already: name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    _write(files[1], found.rows)
    head = f"# The rubrics of {source}, which the rows of rows.jsonl bring along.\n"
    files[0].write_text(head + yaml.safe_dump(dict(found.rubric), sort_keys=False, allow_unicode=True), "utf-8")
    print(f"written: {files[0]} ({_several(found.rubric['categories'], 'category')})")
    print(f"written: {files[1]} ({_several(found.rows, 'row')})")
    _count(found.left_out)
    print(f"\ngrape lint {files[0]} --data {files[1]}")
    print(f"grape score --rubric {files[0]} --data RESPONSES.jsonl --critics CRITICS.yaml")
    print(f"grape train grape --reward.rubric {files[0]} --data.source {files[1]} --reward.critics '{{default: …}}'")


def _take(source: str, own: Mapping[str, str | bool]) -> None:
    from grape_rl.data.rows import read_rows
    from grape_rl.reward.rubric import load_rubric
    from grape_rl.rubric_tools.convert.conversion import layout_of, taken_out

    form, data, out = str(own["to"]), str(own["data"]), Path(str(own["output"]))
    layout_of(form)
    rubric = load_rubric(source, listed(own.get("allow", "")))
    try:
        found = taken_out(rubric, read_rows(data), form, bool(own.get("drop")))
    except ValueError as error:
        raise ValueError(_at(data, error)) from None
    if out.exists():
        raise ValueError(f"{out} is there already: name another file")
    _write(out, found.rows)
    print(f"written: {out} ({_several(found.rows, 'row')})")
    _count(found.left_out)


def _several(things: Collection[Any], name: str) -> str:
    many = name[:-1] + "ies" if name.endswith("y") else name + "s"
    return f"{len(things)} {name if len(things) == 1 else many}"


def _at(source: str, error: ValueError) -> str:
    told = str(error)
    return told if told.startswith(f"{source}:") else f"{source}: {told}"


def _write(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    try:
        text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: a row holds what JSON cannot: {error}") from None
    file.write_text(text, encoding="utf-8")


def _count(left_out: Mapping[str, int]) -> None:
    for what, count in sorted(left_out.items(), key=lambda each: -each[1]):
        print(f"left out: {count} × {what}")
