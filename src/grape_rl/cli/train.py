"""``grape train METHOD``: one run."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from grape_rl.cli.arguments import parsed_arguments

HELP = """usage: grape train METHOD [--config FILE] [--KEY VALUE ...] [--resume] [--dry-run]

METHOD    a row of the table: see grape algorithms
--config  a YAML file; "demo" is the built-in one of the method, on the built-in tasks
--KEY     any setting, by its dotted name, over the file: --steps 50 --sampling.temperature 0.7 --options.kl 0.01
--resume  go on from the last checkpoint of the run in the output folder
--dry-run print the settings, what follows from them, and an estimate of memory and time, and stop

"""


def main(arguments: Sequence[str]) -> None:
    """Train, print the held-out results, and say where the run lies."""
    if not arguments or "--help" in arguments or "-h" in arguments:
        print(HELP + (files("grape_rl.cli") / "settings.txt").read_text(encoding="utf-8"), end="")
        return
    from grape_rl.cli.settings import text_settings

    words, own, given = parsed_arguments(
        arguments, ["resume", "dry_run"], settings=True, known=["config"], texts=text_settings()
    )
    if len(words) != 1:
        raise ValueError(f"name one method to train by, not {words or 'none'}: see grape algorithms")
    from grape_rl.cli.results import print_held_out
    from grape_rl.cli.settings import derived
    from grape_rl.config.files import dump
    from grape_rl.run import train
    from grape_rl.training.checkpoint import checkpoints

    config = resolved(words[0], str(own["config"]) if "config" in own else None, given)
    if own.get("dry_run"):
        print(dump(config) + "\n" + derived(config), flush=True)
        print(estimate(config))
        return
    print(derived(config), flush=True)
    if own.get("resume") and not checkpoints(config.folder / "checkpoints"):
        print(f"{config.folder} has no checkpoint yet: starting from the first step")
    run = train(config, resume=bool(own.get("resume")))
    print_held_out(run.evaluations)
    print(f"run: {run.folder}\nmodel: {run.model}")


def resolved(method: str, file: str | None, given: dict[str, Any]) -> Any:
    """The configuration of a method: the file's settings, with those of the command line over them.

    Raises:
        ValueError: an unknown method, or anything wrong in the file or the settings.
    """
    from grape_rl.algorithms import method_named
    from grape_rl.config.files import from_file, merge
    from grape_rl.validation import load_config

    method_named(method)
    data = from_file(demo_config(method) if file == "demo" else Path(file), method) if file else {"method": method}
    return load_config(merge(data, given), file or "settings")


def estimate(config: Any) -> str:
    """The run's estimate as a line; or why there is none, since settings can be right without one."""
    from grape_rl.estimate.plan import estimated
    from grape_rl.model.load import no_progress_bars

    try:
        with no_progress_bars():
            return f"estimate: {estimated(config)}"
    except Exception as error:  # nothing that an estimate lacks may stop what was asked for
        return f"estimate: none, since {' '.join(str(error).split()) or type(error).__name__}"


def demo_config(method: str) -> Path:
    """The built-in configuration file of a method on the built-in tasks."""
    from grape_rl.algorithms import method_named

    return Path(str(files("grape_rl") / "configs" / "demo" / f"{method_named(method).page}.yaml"))
