"""``grape explain METHOD``: one method in full."""

from collections.abc import Sequence

from grape_rl.cli.arguments import parsed_arguments

HELP = """usage: grape explain METHOD

Show one method: its equation and derivation, the functions that it runs with their source files, its options with
their defaults, and a command to try.

METHOD is a name that 'grape algorithms' lists, or a method of your own: FILE.py:NAME or package.module:NAME."""


def main(arguments: Sequence[str]) -> None:
    """Print one method in full."""
    if not arguments or "--help" in arguments or "-h" in arguments:
        print(HELP)
        return
    words, _, _ = parsed_arguments(arguments)
    if len(words) != 1:
        raise ValueError(f"grape explain takes one METHOD, got {', '.join(words) or 'none'}")
    print(explanation(words[0]))


def explanation(name: str) -> str:
    """The text of ``grape explain``, in lines of up to 100 columns."""
    from grape_rl.algorithms import method_named
    from grape_rl.cli import method_text

    method = method_named(name)
    derivation = method_text.derivation(method)
    lines = [method_text.wrapped(f"{method.name}: {method.summary}"), "", method_text.equation_text(method, indent=2)]
    lines += ["", *([method_text.wrapped(f"paper: {method.paper}", hanging=7)] if method.paper else [])]
    lines += [method_text.wrapped(f"needs: {method_text.needs(method)}", hanging=7)]
    lines += ["", derivation] if derivation else []
    if symbols := method_text.legend(method.equation + derivation):
        lines += ["", method_text.wrapped(f"({symbols})", hanging=1)]
    lines += ["", "Functions in the order they run, with their options (set by --options.NAME VALUE):"]
    for function in method_text.functions_in_order(method):
        lines += ["", f"  {function.__name__}  {method_text.source_line(function)}"]
        if summary := method_text.first_paragraph(function):
            lines.append(method_text.wrapped(summary, indent=4))
        for settings, meaning in method_text.option_lines(method, function):
            lines += [f"      {setting}" for setting in settings]
            lines += [method_text.wrapped(meaning, indent=10)] if meaning else []
    lines += ["", "Try it:", f"  {method_text.demo_command(name)}"]
    return "\n".join(lines)
