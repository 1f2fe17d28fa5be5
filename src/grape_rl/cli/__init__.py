"""The ``grape`` command. Each subcommand is a module of this package, imported only when it is called."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "demo": "train a small model with SFT, then GRAPE, on built-in tasks: no download, a few minutes",
    "train": "train a model with any method",
    "algorithms": "list the methods",
    "explain": "show one method: equation, derivation, functions, options, a command to try",
    "lint": "check a rubric file, alone or against the data that it will grade",
    "convert": "convert rubric datasets to a rubric file and data rows, and back",
    "score": "grade existing responses with a rubric, without training",
    "calibrate": "fit the confidence of critics to human labels",
}
"""Summaries of the subcommands by name. Each name is also the name of the subcommand's module."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code: 0, 2 for bad input, 1 for any other failure, 130 for Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        return 0 if arguments else 2
    name, *rest = arguments
    if name == "--version":
        from importlib.metadata import version

        print(version("grape-rl"))
        return 0
    if name not in COMMANDS:
        from difflib import get_close_matches

        near = get_close_matches(name, COMMANDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; commands: {', '.join(COMMANDS)}"
        print(f"error: unknown command {name!r}{hint}", file=sys.stderr)
        return 2
    try:
        import_module(f"grape_rl.cli.{name}").main(rest)
    except BrokenPipeError:
        return 1
    except (ValueError, RuntimeError, OSError) as error:
        if os.environ.get("GRAPE_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


def overview() -> str:
    """The text of ``grape --help``."""
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "usage: grape COMMAND [OPTIONS]",
            "",
            "Post-training for language models. Rewards come from rubrics; every method is a row of one table.",
            "",
            "commands:",
            *(f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items()),
            "",
            "Run 'grape COMMAND --help' for the options of a command.",
            "Set GRAPE_TRACEBACK=1 to get the traceback of an error.",
        ]
    )
