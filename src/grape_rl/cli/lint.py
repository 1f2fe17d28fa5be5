"""``grape lint RUBRIC``: whether a rubric file says what it should, and can grade some data."""

from collections.abc import Sequence
from pathlib import Path

from grape_rl.cli.arguments import listed, parsed_arguments

HELP = """usage: grape lint RUBRIC [--data FILE] [--allow NAME[,NAME]]

RUBRIC   a rubric file (YAML or JSON)
--data   rows that it is to grade: each must have one category, and the columns that its items look up
--allow  the Python files and modules that the rubric may call

What is likely a mistake is printed, each with its place and a remedy, and makes the exit code 1: criteria that ask for
two things, items that say the same or the opposite of another, categories that no row can have, and the like.
"""


def main(arguments: Sequence[str]) -> None:
    """Load the rubric and the reward models it names, try it on the data, and print its items and what is wrong."""
    if not arguments or "--help" in arguments or "-h" in arguments:
        print(HELP)
        return
    words, own, _ = parsed_arguments(arguments, known=["data", "allow"])
    if len(words) != 1:
        raise ValueError(f"name one rubric file, not {words or 'none'}")
    from grape_rl.data.rows import read_rows
    from grape_rl.reward.grading import rubric_models
    from grape_rl.reward.row_items import PREFIX
    from grape_rl.reward.rubric import category_name, check_rows, load_rubric
    from grape_rl.rubric_tools.lint.lint import bare_words, lint
    from grape_rl.setup.policy import device
    from grape_rl.training.display import table

    rubric = load_rubric(words[0], listed(own.get("allow", "")))
    counts = dict.fromkeys(rubric.categories, "")
    found = read_rows(str(own["data"])) if "data" in own else None
    faults = list(dict.fromkeys([*bare_words(Path(words[0])), *lint(rubric, found)]))
    for fault in faults:
        print(f"{fault.place}: {fault.complaint}")
    if found:
        check_rows(rubric, found)
        by_critic = rubric.classify is not None and rubric.classify.critic is not None
        homes = [] if by_critic else [category_name(rubric, row) for row in found]
        counts = {name: "" if by_critic else str(homes.count(name)) for name in rubric.categories}
    rubric_models(rubric, found or [], device("cpu"), 8192)
    lines = [
        [name, item.id, f"{item.weight:g}", item.role, item.grader, counts[name]]
        for name, part in rubric.categories.items()
        for item in part.items
    ]
    lines += [
        [name, f"{PREFIX}…", "", "", f"items of {part.row_items.column}", counts[name]]
        for name, part in rubric.categories.items()
        if part.row_items
    ]
    table(words[0], ["category", "item", "weight", "role", "check", "rows"], lines)
    if faults:
        raise RuntimeError(f"{words[0]}: {len(faults)} {'fault' if len(faults) == 1 else 'faults'} found")
    print("no fault found")
