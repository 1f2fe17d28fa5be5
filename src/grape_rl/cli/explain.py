"""``grape explain METHOD``: what a method is, how it is derived, what it is made of, and how to run it."""

from collections.abc import Sequence

from grape_rl.cli.arguments import parsed_arguments

HELP = """usage: grape explain METHOD

The method's equation, its derivation in short, the functions that it runs with their files, their options with
defaults (and, where the row's is another than the function's own, that one), and a command."""


def main(arguments: Sequence[str]) -> None:
    """Print one row of the table in full."""
    if not arguments or "--help" in arguments or "-h" in arguments:
        print(HELP)
        return
    words, _, _ = parsed_arguments(arguments)
    from grape_rl.algorithms import ALGORITHMS
    from grape_rl.schema import nearest

    if len(words) != 1:
        raise ValueError(f"name one method to explain, not {words or 'none'}")
    if words[0] not in ALGORITHMS:
        raise ValueError(f"unknown method {words[0]!r}{nearest(words[0], ALGORITHMS)}")
    print(explanation(words[0]))


def explanation(method: str) -> str:
    """The page of a method, in lines of up to 100 columns."""
    from grape_rl.algorithms import ALGORITHMS
    from grape_rl.cli import method_text

    row = ALGORITHMS[method]
    derived = described.derivation(row.page)
    lines = [described.wrapped(f"{row.name}: {row.summary}"), "", described.equation(row, indent=2)]
    lines += ["", described.wrapped(f"paper: {row.paper}", hanging=7)]
    lines += [described.wrapped(f"needs: {described.needs(row)}", hanging=7), "", derived]
    if where := described.symbols(row.equation + derived):
        lines += ["", described.wrapped(f"({where})", hanging=1)]
    lines += ["", "It runs, in this order, with these options (--options.NAME VALUE):"]
    for function in described.parts(row):
        lines += ["", f"  {function.__name__}  {described.place(function)}"]
        lines.append(described.wrapped(described.summary(function), indent=4))
        for settings, meaning in described.option_lines(row, function):
            lines += [f"      {setting}" for setting in settings]
            lines += [described.wrapped(meaning, indent=10)] if meaning else []
    lines += ["", "Try it:", f"  {described.command(row.name)}"]
    return "\n".join(lines)
