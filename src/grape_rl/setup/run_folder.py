"""A run's folder: which run may use it, and atomic writes."""

import os
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from grape_rl.config.config import Config
from grape_rl.schema import parsed, validated
from grape_rl.training.checkpoint import checkpoints

REFERENCE_FOLDER = "reference"
"""Subfolder of a run that caches the reference's log-probs of data rows."""

CHANGEABLE = (
    "steps", "output", "device", "tokens_per_microbatch", "generation_batch_size", "log_kl", "checkpoint_every",
    "keep_checkpoints", "reference_cache", "reward.failure_limit", "reward.critic_cache", "reward.canary_every",
    *(f"reward.critics.*.{name}" for name in (
        "base_url", "api_key", "concurrency", "requests_per_minute", "tokens_per_minute", "call_timeout_s",
        "total_timeout_s", "deadline_s", "prompt_price", "completion_price", "cost_cap",
    )),
    *(f"reward.critics.*.stub.{name}" for name in ("delay_s", "concurrency", "faults.*", "fault_seed")),
)  # fmt: skip
"""Settings that may change when a run is resumed: they change memory use, paths or logging, but no result. The stub's
faults are among them, because a critic's failures should change no result. A star stands for any name."""

LEFTOVERS = {"config.yaml", "rollouts", "warnings.jsonl", "held_out.json", REFERENCE_FOLDER}
"""Files of a run that failed before its first step. Another run may use such a folder."""


def resumable(config: Config, resume: bool) -> Path | None:
    """The checkpoint to resume from; None for a run that starts at the first step.

    Raises:
        ValueError: the folder is a file, contains another run, or has no run to resume; or the run to resume had other
            settings.
    """
    folder = config.folder
    saved = folder / "config.yaml"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is a file; name a folder with --output")
    if not resume:
        if folder.exists() and any(path.name not in LEFTOVERS for path in folder.iterdir()):
            raise ValueError(f"{folder}: contains another run; name a new folder with --output, or --resume that run")
        return None
    if not saved.is_file():
        raise ValueError(f"{folder}: contains no run to resume")
    before = _flat(validated(Config, parsed(saved), str(saved), {}).model_dump())
    after = _flat(config.model_dump())
    changed = [key for key in dict.fromkeys([*after, *before]) if before.get(key) != after.get(key)]
    if fixed := [key for key in changed if not _is_changeable(key)]:
        raise ValueError(f"{folder}: was run with another {', '.join(fixed)}; resume it with the same configuration")
    saved_checkpoints = checkpoints(folder / "checkpoints")
    return saved_checkpoints[-1] if saved_checkpoints else None


def write(path: Path, text: str) -> None:
    """Write a file atomically: the whole text, or nothing."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _is_changeable(key: str) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in CHANGEABLE)


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
