"""Result files: JSON Lines with one record a run, each appended whole, so that a benchmark can stop and resume."""

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
RUN_KEY = ("method", "seed", "set")
"""The fields that identify a run of a benchmark: the method, the seed, and the settings under test."""


def read_records(path: Path) -> list[Record]:
    """Records of a result file; none if the file does not exist. An incomplete last line of a killed run is ignored.

    Raises:
        ValueError: a line before the last is not JSON.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    records: list[Record] = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise ValueError(f"{path}, line {number}: not JSON; only the last line may be incomplete") from None
    return records


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Append one record to the file in a single write. An incomplete line at the end of the file is removed first."""
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
    """Copy of the data with floats rounded to five digits, more than any measurement has; NaN and infinity are null.

    >>> rounded({"kl": [0.123456789, 3], "reward": math.nan})
    {'kl': [0.12346, 3], 'reward': None}
    """
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list | tuple) else value


def run_key(record: Mapping[str, Any]) -> str:
    """Identity of a run as text: equal for equal runs."""
    return json.dumps([record[name] for name in RUN_KEY], sort_keys=True)


def environment() -> dict[str, str | int]:
    """Date, machine and versions of a measurement, the field ``where`` of a record."""
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
