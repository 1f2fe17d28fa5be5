"""``grape lint RUBRIC``: validate a rubric file, find likely mistakes, and check that it can grade some data."""

from collections.abc import Sequence
from pathlib import Path

from grape_rl.cli.arguments import listed, parsed_arguments

HELP = """usage: grape lint RUBRIC [--data FILE] [--allow NAME[,NAME]]

RUBRIC   a rubric file (YAML or JSON)
--data   rows to grade: each must belong to one category, and have the columns that its items look up
--allow  Python files and modules that the rubric may call, separated by commas

Prints each likely mistake with its place and a remedy, and then exits with 1: criteria that ask for two things, items
with the same or the opposite meaning, categories that match no row, and more.
"""


def main(arguments: Sequence[str]) -> None:
    """Load the rubric and its reward models, check it against the data, and print its items and likely mistakes.

    Raises:
        ValueError: the rubric or the data is invalid.
        RuntimeError: there are likely mistakes.
    """
    if not arguments or "--help" in arguments or "-h" in arguments:
        print(HELP)
        return
    words, own, _ = parsed_arguments(arguments, known=["data", "allow"])
    if len(words) != 1:
        raise ValueError(f"grape lint needs one rubric file, not {words or 'none'}")
    from grape_rl.data.rows import read_rows
    from grape_rl.model.forward import ForwardContext
    from grape_rl.reward.grading import rubric_models
    from grape_rl.reward.row_items import PREFIX
    from grape_rl.reward.rubric import category_name, check_rows, load_rubric
    from grape_rl.rubric_tools.lint.lint import bare_words, lint
    from grape_rl.setup.policy import device
    from grape_rl.training.display import table

    # Findings.
    rubric = load_rubric(words[0], listed(own.get("allow", "")))
    data_rows = read_rows(str(own["data"])) if "data" in own else None
    findings = list(dict.fromkeys([*bare_words(Path(words[0])), *lint(rubric, data_rows)]))
    for finding in findings:
        print(f"{finding.place}: {finding.message}")

    # Rows and reward models, which raise if they are invalid.
    counts = dict.fromkeys(rubric.categories, "")
    if data_rows:
        check_rows(rubric, data_rows)
        if rubric.classify is None or rubric.classify.critic is None:
            categories = [category_name(rubric, row) for row in data_rows]
            counts = {name: str(categories.count(name)) for name in rubric.categories}
    rubric_models(rubric, data_rows or [], device("cpu"), ForwardContext(tokens_per_microbatch=8192))

    # The table of items.
    lines = [
        [name, item.id, f"{item.weight:g}", item.role, item.grader, counts[name]]
        for name, category in rubric.categories.items()
        for item in category.items
    ]
    lines += [
        [name, f"{PREFIX}…", "", "", f"items of {category.row_items.column}", counts[name]]
        for name, category in rubric.categories.items()
        if category.row_items
    ]
    table(words[0], ["category", "item", "weight", "role", "grader", "rows"], lines)
    if findings:
        raise RuntimeError(f"{words[0]}: {len(findings)} {'problem' if len(findings) == 1 else 'problems'} found")
    print("no problems found")
