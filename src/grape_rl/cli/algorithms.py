"""``grape algorithms``: the table of methods."""

from collections.abc import Sequence

from grape_rl.cli.arguments import parsed_arguments

HELP = """usage: grape algorithms

Every method, by family: what it does, and its equation."""


def main(arguments: Sequence[str]) -> None:
    """Print each row of the table."""
    if "--help" in arguments or "-h" in arguments:
        print(HELP)
        return
    words, _, _ = parsed_arguments(arguments)
    if words:
        raise ValueError(f"grape algorithms takes no words, and got {words[0]!r}; try grape explain {words[0]}")
    from grape_rl.algorithms import ALGORITHMS, FAMILIES

    width = max(map(len, ALGORITHMS)) + 2
    for family, rows in FAMILIES.items():
        print(f"{family}\n")
        for row in rows:
            print(f"  {row.name:<{width}}{row.summary}\n  {'':<{width}}{row.equation}")
        print()
    print("grape explain METHOD tells its paper, what it needs, its functions, its options and a command.")


def needs(row: object) -> str:
    """What the method needs of the user, in words."""
    from grape_rl.methods import Algorithm, Labels, Preferences, Responses, chosen_options, objective

    assert isinstance(row, Algorithm)
    if isinstance(row.source, Labels):
        return "prompts, each with a completion and a label that says whether it is desirable; or pairs"
    if isinstance(row.source, Preferences):
        read = objective(row, chosen_options(row, {})).reads
        rewards = ", each with a reward" if "chosen_reward" in read else ""
        return f"prompts, each with a chosen and a rejected response{rewards}"
    if not isinstance(row.source, Responses):
        return "prompts with completions"
    group = row.source.smallest_group
    return "prompts, a reward" + (f", at least {group} responses a prompt" if group > 1 else "")
