"""The run's metrics and warnings: one JSON object a line, kept whole through a kill and a resume, and shown."""

import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from grape_rl.training.display import Display, display_for

METRICS = "metrics.jsonl"
WARNINGS = "warnings.jsonl"


def _parsed(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Each whole line of a file with the object in it. A last line that a kill broke off is left out."""
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
            raise ValueError(f"{path}, line {number}: not a JSON object, though only the last line may be broken")
    return objects


def _rewind(path: Path, phase: str, step: int) -> list[dict[str, Any]]:
    """Drop a phase's lines after ``step``, and a broken last line, at one stroke. Returns what is left of the phase."""
    kept = [(line, told) for line, told in _parsed(path) if told.get("phase") != phase or told["step"] <= step]
    content = b"".join(line + b"\n" for line, _ in kept)
    if path.exists() and path.read_bytes() != content:
        aside = path.with_name(path.name + ".tmp")
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    return [told for _, told in kept if told.get("phase") == phase]


def _append(path: Path, told: Mapping[str, Any]) -> None:
    # Opened, written and closed for each line: nothing waits in a buffer when the process is killed.
    with path.open("ab") as file:
        file.write(json.dumps(told, ensure_ascii=False, allow_nan=False).encode() + b"\n")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """A run's metrics, one dict a step: ``phase``, ``step``, ``time`` (seconds), then the step's metrics in order.

    NaN stands for a number that was not finite. A last line that a kill broke off is left out; a run that has logged
    no step yet gives an empty list.

    Raises:
        ValueError: there is no such folder, or a line before the last is not a JSON object.
    """
    if not folder.is_dir():
        raise ValueError(f"no run in {folder}: expected a folder with {METRICS}")
    lines = [told for _, told in _parsed(folder / METRICS)]
    return [{name: math.nan if value is None else value for name, value in told.items()} for told in lines]


class Log:
    """One phase's log, as a context manager: each step and warning goes to a file in ``folder`` and onto the display.

    A step is a line of ``metrics.jsonl``, ``{"phase": "grape", "step": 12, "time": 80.5, "reward": 0.51, ...}``: steps
    count from 1, ``time`` is the seconds spent in the phase, and a number that is not finite is null. A warning is a
    line of ``warnings.jsonl``, with ``key`` and ``message`` in place of the metrics.

    Entering it with ``start`` steps done drops the phase's lines of later steps, so that the files of a run
    killed and resumed equal those of one that never was, times aside. Log a step before saving its checkpoint: then no
    resume can miss its line. In a distributed run one process logs.

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
        self._began = clock()

    def __enter__(self) -> "Log":
        self._folder.mkdir(parents=True, exist_ok=True)
        done = _rewind(self._folder / METRICS, self._phase, self._step)
        self._counts.update(told["key"] for told in _rewind(self._folder / WARNINGS, self._phase, self._step))
        self._began = self._clock() - (done[-1]["time"] if done else 0)
        self._display.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._display.__exit__(*error)
        if self._counts:
            counts = ", ".join(f"{key} {count}" for key, count in self._counts.items())
            self._display.warning(f"counts of {self._phase}: {counts}")

    def _told(self, step: int) -> dict[str, Any]:
        return {"phase": self._phase, "step": step, "time": round(self._clock() - self._began, 3)}

    def step(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Log and show a step that has ended. ``tokens``, where it is a metric, gives the speed shown.

        Raises:
            ValueError: ``step`` is not the one after the last, is beyond the total, or a metric is named ``phase``,
                ``step`` or ``time``.
        """
        if step != self._step + 1 or step > self._total:
            raise ValueError(f"phase {self._phase!r}: step {step} after step {self._step} of {self._total}")
        told = self._told(step)
        if taken := told.keys() & metrics.keys():
            raise ValueError(f"phase {self._phase!r}, step {step}: a metric may not be named {sorted(taken)[0]!r}")
        numbers = {name: float(value) for name, value in metrics.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        _append(self._folder / METRICS, told | finite)
        self._step = step
        self._display.step(step, numbers)

    def warn(self, key: str, message: str) -> None:
        """Log a warning of the step under way; show it if it is the first of its ``key``. Leaving shows each count."""
        _append(self._folder / WARNINGS, self._told(self._step + 1) | {"key": key, "message": message})
        self._counts[key] += 1
        if key not in self._shown:
            self._shown.add(key)
            self._display.warning(message)
