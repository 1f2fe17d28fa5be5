"""``grape train METHOD``: one run."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from grape_rl.cli.arguments import parsed_arguments

HELP = """usage: grape train METHOD [--config FILE] [--KEY VALUE ...] [--resume] [--dry-run]

Train a model. METHOD is a name that 'grape algorithms' lists, or a method of your own: FILE.py:NAME or
package.module:NAME. 'grape train METHOD --help' adds the method's own options at the end.

options:
  --config FILE  read settings from a YAML or JSON file; 'demo' is the method's built-in example
  --KEY VALUE    set a setting by its dotted name; it overrides the file:
                 --steps 50 --sampling.temperature 0.7 --options.kl 0.01
  --resume       continue from the last checkpoint in the output folder
  --dry-run      print all settings and an estimate of memory and time, and exit

"""


def main(arguments: Sequence[str]) -> None:
    """Train, print the held-out results and the paths of the run and the model."""
    if not arguments or "--help" in arguments or "-h" in arguments:
        print_help(next((word for word in arguments[:1] if not word.startswith("-")), None))
        return
    from grape_rl.cli.settings import text_settings

    words, flags, settings = parsed_arguments(
        arguments, ["resume", "dry_run"], settings=True, known=["config"], texts=text_settings()
    )
    if len(words) != 1:
        raise ValueError(f"grape train takes one METHOD, got {', '.join(words) or 'none'}; see grape algorithms")
    from grape_rl.cli.results import print_held_out
    from grape_rl.cli.settings import run_summary
    from grape_rl.config.files import dump
    from grape_rl.run import train
    from grape_rl.training.checkpoint import checkpoints

    config = resolve_config(words[0], str(flags["config"]) if "config" in flags else None, settings)
    if flags.get("dry_run"):
        print(dump(config) + "\n" + run_summary(config), flush=True)
        print(cost_line(config))
        return
    print(run_summary(config), flush=True)
    if flags.get("resume") and not checkpoints(config.folder / "checkpoints"):
        print(f"{config.folder} has no checkpoint yet: starting from the first step")
    run = train(config, resume=bool(flags.get("resume")))
    print_held_out(run.evaluations)
    print(f"run: {run.folder}\nmodel: {run.model}")


def print_help(name: str | None) -> None:
    """Print the help, with the options of the named method last, since only these require importing the methods."""
    print(HELP + (files("grape_rl.cli") / "settings.txt").read_text(encoding="utf-8"), end="", flush=True)
    if name:
        from grape_rl.algorithms import method_named
        from grape_rl.cli.method_text import options_help

        print("\n" + options_help(method_named(name)))


def resolve_config(method: str, file: str | None, settings: dict[str, Any]) -> Any:
    """The configuration of a run: the settings of ``file`` ("demo" or a path), overridden by ``settings``.

    Raises:
        ValueError: an unknown method, or an error in the file or the settings.
    """
    from grape_rl.algorithms import method_named
    from grape_rl.config.files import from_file, merge
    from grape_rl.validation import load_config

    method_named(method)
    data = from_file(demo_config(method) if file == "demo" else Path(file), method) if file else {"method": method}
    return load_config(merge(data, settings), file or "settings")


def cost_line(config: Any) -> str:
    """One line with the estimated memory and time of a run, or with the reason why there is no estimate."""
    from grape_rl.estimate.plan import estimated
    from grape_rl.model.load import no_progress_bars

    try:
        with no_progress_bars():
            return f"estimate: {estimated(config)}"
    except Exception as error:  # a dry run must print the settings even where the estimate fails
        return f"estimate: none, since {' '.join(str(error).split()) or type(error).__name__}"


DEMOS = {
    "prompts": "tasks",
    "demonstrations": "sft",
    "pairs": "preferences",
    "labeled responses": "preferences",
    "solutions": "process_reward_model",
}
"""Demo configurations for a user's own method, by the unit that its source reads."""


def demo_config(name: str) -> Path:
    """The configuration file of a method's demo on the built-in tasks.

    Raises:
        ValueError: there is no such method, or it is a user's own that learns from a kind of data without a demo.
    """
    from grape_rl.algorithms import method_named
    from grape_rl.cli.method_text import is_built_in

    method = method_named(name)
    page = method.page if is_built_in(method) else DEMOS.get(method.source.unit)
    if page is None:
        raise ValueError(f"{name}: no demo for a method that learns from {method.source.unit}: set --config FILE")
    return Path(str(files("grape_rl") / "configs" / "demo" / f"{page}.yaml"))
