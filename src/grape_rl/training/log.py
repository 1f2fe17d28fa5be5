"""The log of a run: metrics and warnings as JSON Lines, consistent after a kill and a resume, and on the display."""

import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from grape_rl.training.display import Display, display_for
from grape_rl.training.metrics import describe_metric

METRICS_FILE = "metrics.jsonl"
WARNINGS_FILE = "warnings.jsonl"
UNDOCUMENTED = "undocumented_metric"
"""Key of the warning about a metric without a meaning."""


def _parsed(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Each complete line of a file with its object, without a last line that a kill cut off."""
    lines = [line for line in path.read_bytes().split(b"\n") if line.strip()] if path.exists() else []
    objects: list[tuple[bytes, dict[str, Any]]] = []
    for number, line in enumerate(lines, 1):
        try:
            parsed = json.loads(line)
        except ValueError:
            parsed = None
        if isinstance(parsed, dict):
            objects.append((line, parsed))
        elif number < len(lines):
            raise ValueError(f"{path}, line {number}: not a JSON object; only the last line may be incomplete")
    return objects


def _rewind(path: Path, phase: str, step: int) -> list[dict[str, Any]]:
    """Drop a phase's lines after ``step``, and an incomplete last line, atomically. Returns the phase's other lines."""
    lines = [(line, entry) for line, entry in _parsed(path) if entry.get("phase") != phase or entry["step"] <= step]
    content = b"".join(line + b"\n" for line, _ in lines)
    if path.exists() and path.read_bytes() != content:
        temporary = path.with_name(path.name + ".tmp")
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    return [entry for _, entry in lines if entry.get("phase") == phase]


def _append(path: Path, entry: Mapping[str, Any]) -> None:
    # The file is closed after each line, so that no buffer is lost if the process is killed.
    with path.open("ab") as file:
        file.write(json.dumps(entry, ensure_ascii=False, allow_nan=False).encode() + b"\n")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """A run's metrics, one dict for each step: ``phase``, ``step``, ``time`` (seconds), then the metrics in order.

    A number that was not finite is NaN. A last line that a kill cut off is ignored. Without a logged step, the list is
    empty.

    Raises:
        ValueError: there is no such folder, or a line before the last is not a JSON object.
    """
    if not folder.is_dir():
        raise ValueError(f"no run in {folder}: expected a folder with {METRICS_FILE}")
    lines = [entry for _, entry in _parsed(folder / METRICS_FILE)]
    return [{name: math.nan if value is None else value for name, value in entry.items()} for entry in lines]


class Log:
    """The log of one phase, as a context manager. Steps and warnings are appended to files in ``folder`` and displayed.

    A step is a line of ``metrics.jsonl``, ``{"phase": "grape", "step": 12, "time": 80.5, "reward": 0.51, ...}``: steps
    count from 1, ``time`` is the seconds spent in the phase, and a number that is not finite is null. A warning is a
    line of ``warnings.jsonl``, with ``key`` and ``message`` instead of metrics.

    Entering the log with ``start`` steps done drops the phase's lines of later steps. So the files of a resumed run
    equal those of an uninterrupted run, except for times. Log a step before its checkpoint is saved, so that a resumed
    run never lacks its line. In a distributed run, only one process logs.

    Every metric must have a meaning in ``grape_rl.training.metrics.METRICS``. One without is logged, with a warning.

    Raises:
        ValueError: ``total`` is below 1, ``start`` is not in [0, total], or a file is broken before its last line.
    """

    def __init__(
        self,
        folder: Path,
        phase: str,
        total: int,
        start: int = 0,
        display: Display | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._phase, self._total, self._step, self._clock = folder, phase, total, start, clock
        self._display = display or display_for(phase, total, start, clock=clock)
        self._counts: Counter[str] = Counter()
        self._shown: set[str] = set()
        self._documented: set[str] = set()
        self._began = clock()

    def __enter__(self) -> "Log":
        self._folder.mkdir(parents=True, exist_ok=True)
        done = _rewind(self._folder / METRICS_FILE, self._phase, self._step)
        self._counts.update(entry["key"] for entry in _rewind(self._folder / WARNINGS_FILE, self._phase, self._step))
        self._began = self._clock() - (done[-1]["time"] if done else 0)
        self._display.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._display.__exit__(*error)
        if self._counts:
            counts = ", ".join(f"{key} {count}" for key, count in self._counts.items())
            self._display.warning(f"counts of {self._phase}: {counts}")

    def _entry(self, step: int) -> dict[str, Any]:
        return {"phase": self._phase, "step": step, "time": round(self._clock() - self._began, 3)}

    def step(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Log and display a finished step. The displayed speed is computed from the metric ``tokens``.

        Raises:
            ValueError: ``step`` is not the next one, is above the total, or a metric is named ``phase``, ``step`` or
                ``time``.
        """
        if step != self._step + 1 or step > self._total:
            raise ValueError(f"phase {self._phase!r}: step {step} after step {self._step} of {self._total}")
        entry = self._entry(step)
        if taken := entry.keys() & metrics.keys():
            raise ValueError(f"phase {self._phase!r}, step {step}: a metric may not be named {sorted(taken)[0]!r}")
        for name in metrics:
            if name not in self._documented and describe_metric(name) is None:
                self.warn(UNDOCUMENTED, f"metric {name!r} has no meaning: add it to METRICS in training/metrics.py")
            self._documented.add(name)
        numbers = {name: float(value) for name, value in metrics.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        _append(self._folder / METRICS_FILE, entry | finite)
        self._step = step
        self._display.step(step, numbers)

    def warn(self, key: str, message: str) -> None:
        """Log a warning of the current step. The first of a ``key`` is displayed, and at the end each key's count."""
        _append(self._folder / WARNINGS_FILE, self._entry(self._step + 1) | {"key": key, "message": message})
        self._counts[key] += 1
        if key not in self._shown:
            self._shown.add(key)
            self._display.warning(message)
