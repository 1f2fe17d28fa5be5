"""Results as they were measured: one line of JSON a run, appended whole, so that a benchmark may stop and go on."""

import json
import math
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

Record = dict[str, Any]
KEY = ("method", "seed", "set")
"""What tells one run of a benchmark from another: the method, the seed, and the settings that were tried on it."""


def records(path: Path) -> list[Record]:
    """The results of a file; none if it is not there. A last line that a kill broke off is left out.

    Raises:
        ValueError: a line before the last is not JSON.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    found: list[Record] = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise ValueError(f"{path}, line {number}: not JSON, though only the last line may be broken") from None
    return found


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add one result to the file, in one write. What a kill left of a line at its end goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(rounded(record), ensure_ascii=False, allow_nan=False) + "\n"
    whole = path.read_bytes().rfind(b"\n") + 1 if path.is_file() else 0
    with path.open("ab") as file:
        if file.tell() > whole:
            file.truncate(whole)
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def rounded(value: Any) -> Any:
    """The same data with floats of five digits, which is more than any of them is known to; not finite is null.

    >>> rounded({"kl": [0.123456789, 3], "reward": math.nan})
    {'kl': [0.12346, 3], 'reward': None}
    """
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list | tuple) else value


def key(record: Mapping[str, Any]) -> str:
    """What the run is, as text: equal for equal runs."""
    return json.dumps([record[name] for name in KEY], sort_keys=True)


def where() -> dict[str, str | int]:
    """When, and on what, a result was measured."""
    cpuinfo = Path("/proc/cpuinfo")
    names = [line for line in cpuinfo.read_text().splitlines() if "model name" in line] if cpuinfo.is_file() else []
    return {
        "date": time.strftime("%-d %B %Y"),
        "machine": names[0].split(":")[1].strip() if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
