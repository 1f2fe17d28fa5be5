"""``grape convert``: convert a rubric dataset to a rubric file and rows, or a rubric to rows of a dataset."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from grape_rl.cli.arguments import listed, parsed_arguments

HELP = """usage: grape convert DATA --from FORMAT --output FOLDER [--drop] [--split NAME]
       grape convert RUBRIC --data ROWS --to FORMAT --output FILE [--drop] [--allow NAME[,NAME]]

The first form writes FOLDER/rubric.yaml, and FOLDER/rows.jsonl, whose rows hold their own items. DATA is a file of rows
or a dataset of the Hub, NAME[:CONFIGURATION]. The second form writes the items that a rubric has for each row, as rows
of a dataset.

FORMAT   healthbench, rar, openrubrics, biggen, or grape: items as in a rubric file, in a column named items
--drop   drop and count what cannot be converted: invalid rows, or items that the format cannot represent
--split  the split of a dataset of the Hub (default: train)
--data   rows that the rubric grades
--allow  Python files and modules that the rubric may call, separated by commas
"""


def main(arguments: Sequence[str]) -> None:
    """Convert, and print the files written and the number of dropped rows or items."""
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
    (_import if "from" in own else _export)(words[0], own)


def _import(source: str, own: Mapping[str, str | bool]) -> None:
    import yaml

    from grape_rl.data.rows import read_rows
    from grape_rl.rubric_tools.convert.conversion import import_rows, layout_of

    format, folder = str(own["from"]), Path(str(own["output"]))
    layout_of(format)
    try:
        converted = import_rows(read_rows(source, str(own.get("split", "train"))), format, bool(own.get("drop")))
    except ValueError as error:
        raise ValueError(_with_source(source, error)) from None
    assert converted.rubric
    files = [folder / "rubric.yaml", folder / "rows.jsonl"]
    if existing := [str(file) for file in files if file.exists()]:
        raise ValueError(f"{existing[0]} exists already: name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    _write(files[1], converted.rows)
    head = f"# Rubrics of {source}, which each row of rows.jsonl holds.\n"
    files[0].write_text(head + yaml.safe_dump(dict(converted.rubric), sort_keys=False, allow_unicode=True), "utf-8")
    print(f"written: {files[0]} ({_counted(converted.rubric['categories'], 'category')})")
    print(f"written: {files[1]} ({_counted(converted.rows, 'row')})")
    _print_dropped(converted.dropped)
    print(f"\ngrape lint {files[0]} --data {files[1]}")
    print(f"grape score --rubric {files[0]} --data RESPONSES.jsonl --critics CRITICS.yaml")
    print(f"grape train grape --reward.rubric {files[0]} --data.source {files[1]} --reward.critics '{{default: …}}'")


def _export(source: str, own: Mapping[str, str | bool]) -> None:
    from grape_rl.data.rows import read_rows
    from grape_rl.reward.rubric import load_rubric
    from grape_rl.rubric_tools.convert.conversion import export_rows, layout_of

    format, data, output = str(own["to"]), str(own["data"]), Path(str(own["output"]))
    layout_of(format)
    rubric = load_rubric(source, listed(own.get("allow", "")))
    try:
        converted = export_rows(rubric, read_rows(data), format, bool(own.get("drop")))
    except ValueError as error:
        raise ValueError(_with_source(data, error)) from None
    if output.exists():
        raise ValueError(f"{output} exists already: name another file")
    _write(output, converted.rows)
    print(f"written: {output} ({_counted(converted.rows, 'row')})")
    _print_dropped(converted.dropped)


def _counted(things: Collection[Any], name: str) -> str:
    plural = name[:-1] + "ies" if name.endswith("y") else name + "s"
    return f"{len(things)} {name if len(things) == 1 else plural}"


def _with_source(source: str, error: ValueError) -> str:
    message = str(error)
    return message if message.startswith(f"{source}:") else f"{source}: {message}"


def _write(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    try:
        text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: a row has a value that JSON cannot represent: {error}") from None
    file.write_text(text, encoding="utf-8")


def _print_dropped(dropped: Mapping[str, int]) -> None:
    for reason, count in sorted(dropped.items(), key=lambda entry: -entry[1]):
        print(f"dropped: {count} × {reason}")
