"""``grape explain METHOD``: what a method is made of, and how to run it."""

import inspect
from collections.abc import Sequence
from dataclasses import replace

from grape_rl.cli.algorithms import needs
from grape_rl.cli.arguments import parsed_arguments

HELP = """usage: grape explain METHOD

The method's equation, the functions that it runs with their files, its options with defaults (and, where the row's is
another than the function's own, that one), and a command."""


def main(arguments: Sequence[str]) -> None:
    """Print one row of the table in full."""
    if not arguments or "--help" in arguments or "-h" in arguments:
        print(HELP)
        return
    words, _, _ = parsed_arguments(arguments)
    from grape_rl.algorithms import ALGORITHMS
    from grape_rl.methods import options
    from grape_rl.reward.strict import nearest

    if len(words) != 1:
        raise ValueError(f"name one method to explain, not {words or 'none'}")
    if words[0] not in ALGORITHMS:
        raise ValueError(f"unknown method {words[0]!r}{nearest(words[0], ALGORITHMS)}")
    row = ALGORITHMS[words[0]]
    print(
        f"{row.name}: {row.summary}\n\n  {row.equation}\n\n{row.paper}\nneeds: {needs(row)}\n\nIt runs, in this order:"
    )
    for function in row.functions:
        plain = inspect.unwrap(function)
        first = (inspect.getdoc(plain) or "").split("\n\n")[0].replace("\n", " ")
        print(f"  {plain.__module__}.{plain.__name__}\n      {first}")
    print("\nOptions (--options.NAME VALUE):")
    own = options(replace(row, defaults={}))
    for name, (kind, default) in options(row).items():
        other = f"; the function's own default is {own[name][1]}" if name in row.defaults else ""
        told = default if str(default).isprintable() else repr(default)
        print(f"  {name} = {told}  ({_kind(kind)}{other})")
    print(f"\nTry it:\n  {command(row.name)}")


def command(method: str) -> str:
    """A command that runs the method on the built-in tasks."""
    start = "" if method == "sft" else "grape train sft --config demo && "
    return f"{start}grape train {method} --config demo"


def _kind(kind: object) -> str:
    kind = getattr(kind, "__origin__", kind) if hasattr(kind, "__metadata__") else kind
    choices = getattr(kind, "__args__", None)
    return " | ".join(map(str, choices)) if choices else getattr(kind, "__name__", str(kind))
