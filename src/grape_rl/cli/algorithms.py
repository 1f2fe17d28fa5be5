"""``grape algorithms``: the table of methods."""

from collections.abc import Sequence

from grape_rl.cli.arguments import parsed_arguments

HELP = """usage: grape algorithms

Every method: its equation, its paper, and what it needs."""


def main(arguments: Sequence[str]) -> None:
    """Print each row of the table."""
    if "--help" in arguments or "-h" in arguments:
        print(HELP)
        return
    words, _, _ = parsed_arguments(arguments)
    if words:
        raise ValueError(f"grape algorithms takes no words, and got {words[0]!r}; try grape explain {words[0]}")
    from grape_rl.algorithms import ALGORITHMS

    for row in ALGORITHMS.values():
        print(f"{row.name}\n  {row.summary}\n  {row.equation}\n  needs: {needs(row)}\n  {row.paper}\n")
    print("grape explain METHOD tells the functions, the options and a command.")


def needs(row: object) -> str:
    """What the method needs of the user, in words."""
    from grape_rl.algorithms import Algorithm, Preferences, Responses, chosen_options, objective

    assert isinstance(row, Algorithm)
    if isinstance(row.source, Preferences):
        read = {name for term in objective(row, chosen_options(row, {})).terms for name in term.parameters}
        rewards = ", each with a reward" if "chosen_reward" in read else ""
        return f"prompts, each with a chosen and a rejected response{rewards}"
    if not isinstance(row.source, Responses):
        return "prompts with completions"
    group = row.source.smallest_group
    return "prompts, a reward" + (f", at least {group} responses a prompt" if group > 1 else "")
