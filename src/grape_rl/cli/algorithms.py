"""``grape algorithms``: the table of methods."""

from collections.abc import Iterator, Sequence

from grape_rl.cli.arguments import parsed_arguments

HELP = """usage: grape algorithms [--markdown]

List every method by family, with its summary, equation, requirements and paper.

options:
  --markdown  print docs/methods.md: one table per family"""

PAGE = """# Methods

Every method is a row of one table, and the equation in the row is the function that runs. A method's name links to its
derivation. `grape explain METHOD` prints the derivation with the method's functions, options and a command to try.
`grape algorithms --markdown > docs/methods.md` writes this page.

{symbols}
"""

ONLINE_SUMMARY = "The loss of NAME, any method above that learns from pairs, on pairs of the policy's own responses."
ONLINE_EQUATION = "y_1 … y_G ~ π_θ(·|x);  w = argmax_i R_i, l = argmin_i R_i;  L of (y_w, y_l) as in NAME"
"""One entry for all online methods: they differ from their offline forms in the source of their pairs alone."""


def main(arguments: Sequence[str]) -> None:
    """Print each method of the table."""
    if "--help" in arguments or "-h" in arguments:
        print(HELP)
        return
    words, flags, _ = parsed_arguments(arguments, flags=["markdown"])
    if words:
        raise ValueError(f"grape algorithms takes no METHOD, got {words[0]!r}; try grape explain {words[0]}")
    print("\n".join(_markdown() if flags.get("markdown") else _listing()))


def _listing() -> Iterator[str]:
    from grape_rl.algorithms import FAMILIES
    from grape_rl.cli.method_text import equation_text, needs, wrapped
    from grape_rl.table.online import ONLINE_PAPER

    for family, methods in FAMILIES.items():
        yield family
        for method in methods:
            if not method.online_of:
                yield "\n" + wrapped(f"{method.name}: {method.summary}", indent=2, hanging=4)
                yield equation_text(method, indent=6)
                yield wrapped(f"needs {needs(method)}", indent=6, hanging=2)
                yield wrapped(method.paper, indent=6, hanging=2)
        if any(method.online_of for method in methods):
            yield "\n" + wrapped(f"online_NAME: {ONLINE_SUMMARY}", indent=2, hanging=4)
            yield wrapped(ONLINE_EQUATION, indent=6, hanging=4)
            yield wrapped(f"needs {needs(methods[0])}, or none, as NAME does", indent=6, hanging=2)
            yield wrapped(ONLINE_PAPER, indent=6, hanging=2)
        yield ""
    yield "'grape explain METHOD' shows a method's derivation, functions and options, and a command to try."


def _markdown() -> Iterator[str]:
    from grape_rl.algorithms import ALGORITHMS, FAMILIES
    from grape_rl.cli.method_text import legend, needs
    from grape_rl.table.online import ONLINE_PAPER

    symbols = legend(" ".join(method.equation for method in ALGORITHMS.values())).replace("|", "\\|")
    yield PAGE.format(symbols=f"{symbols}.")
    for family, methods in FAMILIES.items():
        yield f"## {family}\n\n| method | summary | equation | needs | paper |\n|---|---|---|---|---|"
        for method in methods:
            if not method.online_of:
                yield _table_row(method.name, method.page, method.summary, method.equation, needs(method), method.paper)
        if any(method.online_of for method in methods):
            first = methods[0]
            requirements = f"{needs(first)}, or none, as NAME does"
            yield _table_row("online_NAME", first.page, ONLINE_SUMMARY, ONLINE_EQUATION, requirements, ONLINE_PAPER)
        yield ""


def _table_row(name: str, page: str, summary: str, equation: str, requirements: str, paper: str) -> str:
    """A method as a row of a Markdown table."""
    from grape_rl.method_checks import SEPARATOR

    equations = "<br>".join(f"`{part}`" for part in equation.split(SEPARATOR))
    cells = [f"[`{name}`](../src/grape_rl/derivations/{page}.md)", summary, equations, requirements, paper]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
