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
    if len(words) != 1:
        raise ValueError(f"name one method to explain, not {words or 'none'}")
    print(explanation(words[0]))


def explanation(method: str) -> str:
    """The page of a method, in lines of up to 100 columns."""
    from grape_rl.algorithms import method_named
    from grape_rl.cli import method_text

    row = method_named(method)
    derived = method_text.derivation(row.page)
    lines = [method_text.wrapped(f"{row.name}: {row.summary}"), "", method_text.equation(row, indent=2)]
    lines += ["", method_text.wrapped(f"paper: {row.paper}", hanging=7)]
    lines += [method_text.wrapped(f"needs: {method_text.needs(row)}", hanging=7), "", derived]
    if where := method_text.symbols(row.equation + derived):
        lines += ["", method_text.wrapped(f"({where})", hanging=1)]
    lines += ["", "It runs, in this order, with these options (--options.NAME VALUE):"]
    for function in method_text.parts(row):
        lines += ["", f"  {function.__name__}  {method_text.place(function)}"]
        lines.append(method_text.wrapped(method_text.summary(function), indent=4))
        for settings, meaning in method_text.option_lines(row, function):
            lines += [f"      {setting}" for setting in settings]
            lines += [method_text.wrapped(meaning, indent=10)] if meaning else []
    lines += ["", "Try it:", f"  {method_text.command(row.name)}"]
    return "\n".join(lines)
