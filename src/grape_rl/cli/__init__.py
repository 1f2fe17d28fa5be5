"""The ``grape`` command. Each subcommand is a module beside this one, imported only when it is called."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "demo": ("demo", "train a small model by SFT and GRAPE on built-in tasks: no download, a few minutes"),
    "train": ("train", "train a model by any method: grape train METHOD [--config FILE] [--KEY VALUE ...]"),
    "algorithms": ("algorithms", "the table of methods"),
    "explain": ("explain", "one method: the functions that it runs, its options, a command"),
    "lint": ("lint", "check a rubric file, and the data that it is to grade"),
    "convert": ("convert", "rubric datasets to a rubric file and rows, and back"),
    "score": ("score", "grade existing responses by a rubric, without training"),
    "calibrate": ("calibrate", "fit what critics' confidence is worth to people's labels"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0, 2 for bad input, 1 for a run that had to stop."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    name, *rest = arguments
    if name == "--version":
        from importlib.metadata import version

        print(version("grape-rl"))
        return 0
    if name not in COMMANDS:
        from difflib import get_close_matches

        near = get_close_matches(name, COMMANDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(COMMANDS)}"
        print(f"error: unknown command {name!r}{hint}", file=sys.stderr)
        return 2
    try:
        import_module(f"grape_rl.cli.{COMMANDS[name][0]}").main(rest)
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


def usage() -> str:
    """What ``grape --help`` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: grape COMMAND ...",
            "",
            "Post-training for language models: rewards from rubrics, every method a row of one table.",
            "",
            *lines,
            "",
            "grape COMMAND --help tells more. GRAPE_TRACEBACK=1 shows where in the code an error arose.",
        ]
    )
