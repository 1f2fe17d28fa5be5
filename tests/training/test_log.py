"""The log: what a kill leaves, what a resume makes of it, and what is refused."""

import io
import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from grape_rl.training.display import Lines
from grape_rl.training.log import Log, read_metrics


class Clock:
    """A clock that stands still until told."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def metrics(step: int) -> dict[str, float | int]:
    return {"reward": step / 8, "kl": math.nan if step == 3 else 0.5, "tokens": 10 * step}


def train(folder: Path, phase: str, steps: range, total: int = 6, clock: Clock | None = None) -> None:
    """Log the steps, each of 2 s; every even one warns before it ends."""
    clock = clock or Clock()
    with Log(folder, phase, total, start=steps.start - 1, clock=clock) as log:
        for step in steps:
            clock.now += 2
            if step % 2 == 0:
                log.warn("even", f"step {step} is even")
            log.step(step, metrics(step))


def told(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_a_step_in_order_with_null_for_what_is_not_finite(tmp_path: Path) -> None:
    clock = Clock()
    with Log(tmp_path / "run", "grape", 2, clock=clock) as log:
        clock.now += 1.23456
        log.step(1, {"z": 1, "a": math.inf, "m": math.nan})
    line = '{"phase": "grape", "step": 1, "time": 1.235, "z": 1.0, "a": null, "m": null}\n'
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == line
    (read,) = read_metrics(tmp_path / "run")
    assert list(read) == ["phase", "step", "time", "z", "a", "m"]
    assert read["z"] == 1.0 and math.isnan(read["a"]) and math.isnan(read["m"])


def test_each_line_is_on_disk_as_soon_as_its_step_is_logged(tmp_path: Path) -> None:
    with Log(tmp_path, "grape", 3) as log:
        for step in (1, 2, 3):
            log.warn("w", "x")
            log.step(step, {})
            assert len(told(tmp_path / "metrics.jsonl")) == len(told(tmp_path / "warnings.jsonl")) == step


def test_a_process_killed_outright_leaves_whole_lines(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from grape_rl.training.log import Log\n"
        "log = Log(Path(sys.argv[1]), 'grape', 9).__enter__()\n"
        "for step in (1, 2, 3): log.step(step, {'reward': 0.5})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True)
    assert ended.returncode == -9
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]


def test_every_way_to_cut_the_file_loses_at_most_the_line_cut(tmp_path: Path) -> None:
    train(tmp_path, "grape", range(1, 4))
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    ends = [end + 1 for end in range(len(whole)) if whole[end : end + 1] == b"\n"]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        # A line is whole once its closing brace is there, with or without its line end.
        assert len(read_metrics(tmp_path)) == sum(end - 1 <= cut for end in ends)


@pytest.mark.parametrize(("saved_at", "killed_at"), list(itertools.combinations_with_replacement(range(7), 2)))
def test_a_resumed_runs_files_equal_an_uninterrupted_ones(tmp_path: Path, saved_at: int, killed_at: int) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    for folder in (once, twice):
        train(folder, "sft", range(1, 3), total=2)
    train(once, "grape", range(1, 7))
    train(twice, "grape", range(1, killed_at + 1))
    for name in ("metrics.jsonl", "warnings.jsonl"):
        with (twice / name).open("a") as file:
            file.write('{"phase": "grape", "st')
    train(twice, "grape", range(saved_at + 1, 7), clock=Clock(7.0))
    # Times too: here every step takes 2 s, and a resumed phase's time goes on from its last kept line.
    for name in ("metrics.jsonl", "warnings.jsonl"):
        assert (twice / name).read_text() == (once / name).read_text()
        assert not (twice / f"{name}.tmp").exists()
    assert [line["time"] for line in told(once / "metrics.jsonl")] == [2, 4, 2, 4, 6, 8, 10, 12]


def test_a_kill_while_the_file_is_rewritten_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path, "grape", range(1, 7))
    path = tmp_path / "metrics.jsonl"
    before = path.read_bytes()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, "grape", range(3, 7))
    assert path.read_bytes() == before
    train(tmp_path, "grape", range(3, 7))
    assert path.read_bytes() == before and sorted(os.listdir(tmp_path)) == ["metrics.jsonl", "warnings.jsonl"]


def test_a_file_that_needs_no_cut_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path, "grape", range(1, 4))
    monkeypatch.setattr(os, "replace", lambda *_: pytest.fail("rewritten"))
    train(tmp_path, "grape", range(4, 7))
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_line_broken_before_the_last_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for broken in ('{"phase"', "7"):
        path.write_text(f'{{"phase": "sft", "step": 1}}\n{broken}\n{{"phase": "sft", "step": 3}}\n')
        with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: not a JSON object"):
            read_metrics(tmp_path)


def test_a_last_line_cut_inside_a_letter_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes('{"phase": "é'.encode()[:-1])
    assert read_metrics(tmp_path) == []


def test_a_run_without_steps_is_empty_and_no_run_is_an_error(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    with pytest.raises(ValueError, match="no run in"):
        read_metrics(tmp_path / "nowhere")


@pytest.mark.parametrize("step", [0, 1, 2, 4, 5])
def test_a_step_out_of_order_is_refused_and_not_written(tmp_path: Path, step: int) -> None:
    with Log(tmp_path, "grape", 4, start=2) as log:
        with pytest.raises(ValueError, match=f"step {step} after step 2 of 4"):
            log.step(step, {})
        log.step(3, {})
        log.step(4, {})
        with pytest.raises(ValueError, match="step 5 after step 4 of 4"):
            log.step(5, {})
    assert [line["step"] for line in read_metrics(tmp_path)] == [3, 4]


@pytest.mark.parametrize("name", ["phase", "step", "time"])
def test_a_metric_may_not_overwrite_the_lines_own_fields(tmp_path: Path, name: str) -> None:
    with Log(tmp_path, "grape", 4) as log:
        with pytest.raises(ValueError, match=f"may not be named '{name}'"):
            log.step(1, {name: 1.0})
        log.step(1, {})


def test_each_step_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Log(tmp_path, "sft", 9, start=7, clock=clock) as log:
        for step in (8, 9):
            clock.now += 1
            log.step(step, {"loss": step, "tokens": 20})
    shown = "sft  8/9  loss 8.000  20 tok/s  left 0:01\nsft  9/9  loss 9.000  20 tok/s  left 0:00\n"
    assert capsys.readouterr() == (shown, "")


def test_a_warning_is_shown_once_a_key_written_each_time_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    with Log(tmp_path, "grape", 4, clock=clock) as log:
        log.warn("timeout", "no answer to “a”")
        log.step(1, {})
        log.warn("timeout", "no answer to “b”")
        log.warn("cut", "cut off")
        clock.now += 1
    assert capsys.readouterr().err.splitlines() == [
        "warning: no answer to “a”",
        "warning: cut off",
        "warning: counts of grape: timeout 2, cut 1",
    ]
    assert told(tmp_path / "warnings.jsonl") == [
        {"phase": "grape", "step": 1, "time": 0.0, "key": "timeout", "message": "no answer to “a”"},
        {"phase": "grape", "step": 2, "time": 0.0, "key": "timeout", "message": "no answer to “b”"},
        {"phase": "grape", "step": 2, "time": 0.0, "key": "cut", "message": "cut off"},
    ]


def test_counts_go_on_through_a_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, "grape", range(1, 6))
    capsys.readouterr()
    train(tmp_path, "grape", range(4, 7))  # the warning of step 2 stands, that of step 4 is given again
    assert capsys.readouterr().err == "warning: step 4 is even\nwarning: counts of grape: even 3\n"


def test_an_error_in_the_run_passes_through_and_closes_the_display(tmp_path: Path) -> None:
    class Broken(Lines):
        closed = False

        def __exit__(self, *error: object) -> None:
            self.closed = True

        def step(self, step: int, metrics: Mapping[str, float | int]) -> None:
            raise OSError("the terminal is gone")

    display = Broken("grape", 4, Console(file=io.StringIO()))
    with pytest.raises(OSError, match="terminal is gone"), Log(tmp_path, "grape", 4, display=display) as log:
        log.step(1, {})
    assert display.closed and [line["step"] for line in read_metrics(tmp_path)] == [1]
