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
    from grape_rl.cli.described import equation, needs, wrapped

    for family, rows in FAMILIES.items():
        yield family
        for row in rows:
            yield "\n" + wrapped(f"{row.name}: {row.summary}", indent=2, hanging=4)
            yield equation(row, indent=6)
            yield wrapped(f"needs {needs(row)}", indent=6, hanging=2)
            yield wrapped(row.paper, indent=6, hanging=2)
        yield ""
    yield "grape explain METHOD tells its derivation, its functions, its options and a command."


def _markdown() -> Iterator[str]:
    from grape_rl.algorithms import ALGORITHMS, FAMILIES
    from grape_rl.cli.described import needs, symbols

    yield PAGE.format(symbols=f"{symbols(' '.join(row.equation for row in ALGORITHMS.values()))}.".replace("|", "\\|"))
    for family, rows in FAMILIES.items():
        yield f"## {family}\n\n| method | what it does | equation | needs | paper |\n|---|---|---|---|---|"
        for row in rows:
            name = f"[`{row.name}`](../src/grape_rl/derivations/{row.page}.md)"
            parts = "<br>".join(f"`{part}`" for part in row.equation.split(";  "))
            cells = [name, row.summary, parts, needs(row), row.paper]
            yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
        yield ""
