"""``grape algorithms``: the table of methods."""

from collections.abc import Iterator, Sequence

from grape_rl.cli.arguments import parsed_arguments

HELP = """usage: grape algorithms [--markdown]

Every method, by family: what it does, its equation, what it needs, and the paper.

--markdown  the same as a page of tables: docs/methods.md is that"""

PAGE = """# Methods

Every method is a row of one table, and the equation in it is the function that runs. Its name leads to how it is
derived; `grape explain METHOD` tells that too, with its functions, its options and a command.
`grape algorithms --markdown > docs/methods.md` writes this page.

{symbols}
"""

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
    words, own, _ = parsed_arguments(arguments, flags=["markdown"])
    if words:
        raise ValueError(f"grape algorithms takes no words, and got {words[0]!r}; try grape explain {words[0]}")
    print("\n".join(_markdown() if own.get("markdown") else _listing()))


def _listing() -> Iterator[str]:
    from grape_rl.algorithms import FAMILIES
    from grape_rl.cli.method_text import equation, needs, wrapped

    for family, rows in FAMILIES.items():
        yield family
        for row in rows:
            if not row.online_of:
                yield "\n" + wrapped(f"{row.name}: {row.summary}", indent=2, hanging=4)
                yield equation(row, indent=6)
                yield wrapped(f"needs {needs(row)}", indent=6, hanging=2)
                yield wrapped(row.paper, indent=6, hanging=2)
        if any(row.online_of for row in rows):
            yield "\n" + wrapped(f"online_NAME: {ONLINE[0]}", indent=2, hanging=4)
            yield wrapped(ONLINE[1], indent=6, hanging=4)
            yield wrapped(f"needs {needs(rows[0])}, or none, as NAME does", indent=6, hanging=2)
        yield ""
    yield "grape explain METHOD tells its derivation, its functions, its options and a command."


def _markdown() -> Iterator[str]:
    from grape_rl.algorithms import ALGORITHMS, FAMILIES
    from grape_rl.cli.method_text import needs, symbols

    yield PAGE.format(symbols=f"{symbols(' '.join(row.equation for row in ALGORITHMS.values()))}.".replace("|", "\\|"))
    for family, rows in FAMILIES.items():
        yield f"## {family}\n\n| method | what it does | equation | needs | paper |\n|---|---|---|---|---|"
        for row in rows:
            if not row.online_of:
                yield _line(row.name, row.page, row.summary, row.equation, needs(row), row.paper)
        if any(row.online_of for row in rows):
            papers = "; ".join(dict.fromkeys(row.paper.split(";")[0] for row in rows[:1]))
            yield _line("online_NAME", rows[0].page, *ONLINE, f"{needs(rows[0])}, or none, as NAME does", papers)
        yield ""


def _line(name: str, page: str, summary: str, equation: str, needs: str, paper: str) -> str:
    """A method as a line of a table."""
    parts = "<br>".join(f"`{part}`" for part in equation.split(";  "))
    cells = [f"[`{name}`](../src/grape_rl/derivations/{page}.md)", summary, parts, needs, paper]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
