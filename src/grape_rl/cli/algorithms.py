"""``grape algorithms``: the table of methods."""

from collections.abc import Sequence

from grape_rl.cli.arguments import parsed_arguments

HELP = """usage: grape algorithms

Every method, by family: what it does, and its equation."""

ONLINE = (
    "The loss of any NAME above that learns from pairs, on pairs of the policy's own responses.",
    "y_1 … y_G ~ π_θ(·|x);  w = argmax_i R_i, l = argmin_i R_i;  L of (y_w, y_l) as in NAME",
)
"""What the rows that differ from an offline one in their source alone are, told once for all of them."""


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
            if not row.online_of:
                print(f"  {row.name:<{width}}{row.summary}\n  {'':<{width}}{row.equation}")
        if any(row.online_of for row in rows):
            print(f"  {'online_NAME':<{width}}{ONLINE[0]}\n  {'':<{width}}{ONLINE[1]}")
        print()
    print("grape explain METHOD tells its paper, what it needs, its functions, its options and a command.")


def needs(row: object) -> str:
    """What the method needs of the user, in words."""
    from grape_rl.methods import Algorithm, Comparisons, Preferences, Sampled, Steps, chosen_options, objective

    assert isinstance(row, Algorithm)
    if isinstance(row.source, Preferences):
        read = {name for term in objective(row, chosen_options(row, {})).terms for name in term.parameters}
        rewards = ", each with a reward" if "chosen_reward" in read else ""
        return f"prompts, each with a chosen and a rejected response{rewards}"
    if isinstance(row.source, Comparisons):
        return "prompts, each with a chosen and a rejected response"
    if isinstance(row.source, Steps):
        return "prompts, each with the steps of a solution and a label (right or wrong) for every step"
    if not isinstance(row.source, Sampled):
        return "prompts with completions"
    group = row.source.smallest_group
    return "prompts, a reward" + (f", at least {group} responses a prompt" if group > 1 else "")
