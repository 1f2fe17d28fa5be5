"""``grape lint RUBRIC``: whether a rubric file says what it should, and can grade some data."""

from collections.abc import Sequence

from grape_rl.cli.arguments import listed, parsed_arguments

HELP = """usage: grape lint RUBRIC [--data FILE] [--allow NAME[,NAME]]

RUBRIC   a rubric file (YAML or JSON)
--data   rows that it is to grade: each must have one category, and the columns that its items look up
--allow  the Python files and modules that the rubric may call
"""


def main(arguments: Sequence[str]) -> None:
    """Load the rubric and the reward models it names, try it on the data, and print its items."""
    if not arguments or "--help" in arguments or "-h" in arguments:
        print(HELP)
        return
    words, own, _ = parsed_arguments(arguments, known=["data", "allow"])
    if len(words) != 1:
        raise ValueError(f"name one rubric file, not {words or 'none'}")
    from grape_rl.data.rows import rows
    from grape_rl.parts.policy import device
    from grape_rl.reward.grading import rubric_models
    from grape_rl.reward.rubric import category_name, check_rows, load_rubric
    from grape_rl.training.display import table

    rubric = load_rubric(words[0], listed(own.get("allow", "")))
    counts = dict.fromkeys(rubric.categories, "")
    found: list[dict[str, object]] = []
    if "data" in own:
        found = rows(str(own["data"]))
        check_rows(rubric, found)
        by_critic = rubric.classify is not None and rubric.classify.critic is not None
        homes = [] if by_critic else [category_name(rubric, row) for row in found]
        counts = {name: "" if by_critic else str(homes.count(name)) for name in rubric.categories}
        if unreached := [name for name, count in counts.items() if count == "0"]:
            raise ValueError(f"{words[0]}: no row of {own['data']} is of the category {unreached[0]!r}")
    rubric_models(rubric, found, device("cpu"), 8192)
    lines = [
        [
            category,
            item.id,
            f"{item.weight:g}",
            item.role,
            item.grader,
            counts[category],
        ]
        for category, part in rubric.categories.items()
        for item in part.items
    ]
    table(words[0], ["category", "item", "weight", "role", "check", "rows"], lines)
    print("no fault found")
