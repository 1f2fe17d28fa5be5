"""A run's folder: who may write into it, and how."""

import os
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from grape_rl.config import Config, loaded
from grape_rl.schema import parsed
from grape_rl.training.checkpoint import checkpoints

REFERENCE = "reference"
"""The folder in a run's own that keeps the reference's log-probs of data rows."""

FREE = (
    "steps", "output", "device", "tokens_per_microbatch", "generation_batch_size", "log_kl", "checkpoint_every",
    "keep_checkpoints", "reference_cache", "reward.failure_limit", "reward.critic_cache", "reward.canary_every",
    *(f"reward.critics.*.{name}" for name in (
        "base_url", "api_key", "concurrency", "requests_per_minute", "tokens_per_minute", "call_timeout_s",
        "total_timeout_s", "prompt_price", "completion_price", "cost_cap",
    )),
    *(f"reward.critics.*.stub.{name}" for name in ("delay_s", "concurrency", "faults.*", "fault_seed")),
)  # fmt: skip
"""What may change when a run is resumed: memory, place and bookkeeping, which change no result, and a critic's way of
failing, which ought to change none. A star stands for a name."""


def resumable(config: Config, resume: bool) -> Path | None:
    """The checkpoint to go on from, if any; refuses a folder that holds another run."""
    folder = config.folder
    saved = folder / "config.yaml"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is a file; name a folder with --output")
    if not resume:
        # A run that failed before its first step has left no more than these, and may be tried again.
        barren = {"config.yaml", "rollouts", "warnings.jsonl", "held_out.json", REFERENCE}
        if folder.exists() and any(path.name not in barren for path in folder.iterdir()):
            raise ValueError(f"{folder}: holds another run; name a new folder with --output, or --resume that run")
        return None
    if not saved.is_file():
        raise ValueError(f"{folder}: holds no run to resume")
    before, after = _flat(loaded(parsed(saved), str(saved)).model_dump()), _flat(config.model_dump())
    both = dict.fromkeys([*after, *before])
    if changed := [key for key in both if before.get(key) != after.get(key) and not _free(key)]:
        raise ValueError(f"{folder}: was run with another {', '.join(changed)}; resume it with the same configuration")
    found = checkpoints(folder / "checkpoints")
    return found[-1] if found else None


def _free(key: str) -> bool:
    return any(fnmatchcase(key, each) for each in FREE)


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    out: dict[str, Any] = {}
    for key, value in data.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return out


def write(path: Path, text: str) -> None:
    """Whole or not at all."""
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)
