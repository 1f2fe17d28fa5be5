"""Post-training for language models: every method of the GRAPE paper as one row of one table, rewards from rubrics."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grape_rl.algorithms import ALGORITHMS
    from grape_rl.config.config import Config
    from grape_rl.run import Run, train

__all__ = ["ALGORITHMS", "Config", "Run", "train"]
_HOMES = {"ALGORITHMS": "algorithms", "Config": "config.config", "Run": "run", "train": "run"}


def __getattr__(name: str) -> Any:
    """The public names, loaded when first used, so that ``grape --help`` need not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'grape_rl' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"grape_rl.{_HOMES[name]}"), name)
