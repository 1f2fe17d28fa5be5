"""The display with a clock set by hand: plain lines to the letter, the live bar's frames, tables that lose nothing."""

import io
import math
import re
from collections.abc import Mapping

import pytest
from rich.console import Console

from grape_rl.training.display import Bar, Display, Lines, Throughput, display_for, duration, short, table

STEP = {"tokens": 4100, "length": 9.81, "reward": 0.5117, "entropy": 0.838, "kl": 0.00312, "clipped": 0.2}


class Clock:
    """A clock that stands still until told."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def plain() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=40)


def terminal(width: int = 100) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, force_interactive=True, width=width, color_system=None)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def without_codes(written: str) -> str:
    return re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", written)


def walk(display: Display, clock: Clock, steps: list[tuple[float, Mapping[str, float | int]]], first: int = 1) -> None:
    for step, (seconds, metrics) in enumerate(steps, first):
        clock.now += seconds
        display.step(step, metrics)


def test_a_plain_line_is_exact(capsys: pytest.CaptureFixture[str]) -> None:
    clock, console = Clock(), plain()
    with display_for("grape", 84, 0, console, clock) as shown:
        assert isinstance(shown, Lines)
        walk(shown, clock, [(1.0, STEP)])
        shown.warning("the critic [timed out]")
    line = "grape  1/84  reward 0.512  kl 0.0031  entropy 0.84  length 9.8  4.1k tok/s  left 1:23\n"
    assert text(console) == line
    assert capsys.readouterr() == ("", "warning: the critic [timed out]\n")


def test_a_plain_line_leaves_at_once_for_whoever_reads_the_pipe() -> None:
    pipe = io.BytesIO()
    with display_for("sft", 1, 0, Console(file=io.TextIOWrapper(pipe, newline="\n"), force_terminal=False)) as shown:
        shown.step(1, {"loss": 1.0})
        assert pipe.getvalue() == b"sft  1/1  loss 1.000  left 0:00\n"


def test_only_metrics_that_are_present_are_shown_and_nan_is_seen() -> None:
    clock, console = Clock(), plain()
    with display_for("sft", 2, 0, console, clock) as shown:
        walk(shown, clock, [(2.0, {"loss": 2.25, "entropy": 1.5, "tokens": 100}), (2.0, {"loss": math.nan})])
    first, second = text(console).splitlines()
    assert first == "sft  1/2  loss 2.250  entropy 1.50  50 tok/s  left 0:02"
    assert second == "sft  2/2  loss nan  50 tok/s  left 0:00"


def test_without_tokens_or_without_time_passing_no_speed_is_shown() -> None:
    clock, console = Clock(), plain()
    with display_for("sft", 3, 0, console, clock) as shown:
        walk(shown, clock, [(0.0, {"tokens": 10}), (1.0, {"tokens": math.nan})])
    assert text(console) == "sft  1/3  left 0:00\nsft  2/3  left 0:00\n"


def test_pace_is_of_the_last_ten_steps_and_forgets_a_slow_first() -> None:
    clock = Clock()
    pace = Throughput(clock)
    assert math.isnan(pace.step_seconds) and math.isnan(pace.tokens_per_second)
    durations, tokens = [300.0] + [2.0] * 9 + [4.0], [7.0] + [10.0] * 9 + [30.0]
    for seconds, count in zip(durations, tokens, strict=True):
        clock.now += seconds
        pace.step(count)
    # The last ten: nine of 2 s and 10 tokens, one of 4 s and 30 tokens.
    assert pace.step_seconds == pytest.approx(22 / 10)
    assert pace.tokens_per_second == pytest.approx(120 / 22)
    assert pace.elapsed == pytest.approx(322)


def test_a_step_without_tokens_counts_neither_its_time_nor_its_tokens_in_the_speed() -> None:
    clock = Clock()
    pace = Throughput(clock)
    for seconds, count in [(1.0, 10.0), (9.0, math.nan), (1.0, 20.0)]:
        clock.now += seconds
        pace.step(count)
    assert pace.tokens_per_second == pytest.approx(15)
    assert pace.step_seconds == pytest.approx(11 / 3)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0:00"), (59.6, "1:00"), (60, "1:00"), (3599.7, "1:00:00"), (90_000, "25:00:00")]
)
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0, "0.0"), (9.94, "9.9"), (9.96, "10"), (999.4, "999"), (999.6, "1.0k"), (999_940, "999.9k"), (999_960, "1.0M")],
)
def test_short_counts_round_to_the_next_unit(number: float, shown: str) -> None:
    assert short(number) == shown


def test_a_terminal_sees_frames_and_a_final_line() -> None:
    clock, console = Clock(), terminal()
    with display_for("grape", 200, 10, console, clock) as shown:
        assert isinstance(shown, Bar)
        walk(shown, clock, [(1.0, STEP), (1.0, STEP)], first=11)
        shown.warning("the critic [timed out]")
    written = without_codes(text(console))
    for frame in ("10/200", "11/200", "12/200"):
        assert frame in written
    assert re.search(r"grape +━+[ ╸━╺]* +12/200 +0:02 +left 3:08", written)
    headline = "reward 0.512  kl 0.0031  entropy 0.84  length 9.8  4.1k tok/s"
    assert f"\n{headline}" in written
    assert "warning: the critic [timed out]" in written
    assert written.rstrip("\n").splitlines()[-1].strip() == f"grape  12/200  {headline}  took 0:02"
    # The cursor is hidden while the bar lives and given back after.
    assert text(console).count("\x1b[?25l") == 1 and text(console).rindex("\x1b[?25h") > text(console).rindex("left")


def screen(written: str, height: int = 60) -> list[str]:
    """What a terminal shows after ``written``: an emulator of just the codes rich needs."""
    lines, row, column = [""] * height, 0, 0
    for code in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", written):
        if code == "\r":
            column = 0
        elif code == "\n":
            row, column = row + 1, 0
        elif code in ("\x1b[1A", "\x1b[A"):
            row -= 1
        elif code == "\x1b[2K":
            lines[row] = ""
        elif code.startswith("\x1b["):
            assert code in ("\x1b[?25l", "\x1b[?25h"), code
        else:
            line = lines[row].ljust(column)
            lines[row], column = line[:column] + code + line[column + len(code) :], column + len(code)
    return [line.rstrip() for line in lines]


@pytest.mark.parametrize("width", [30, 100])
def test_the_screen_keeps_the_warnings_and_the_final_line_alone(width: int) -> None:
    clock, console = Clock(), terminal(width)
    with display_for("sft", 2, 0, console, clock) as shown:
        walk(shown, clock, [(1.0, {"loss": 2.0, "entropy": 1.0, "tokens": 5})])
        assert [line for line in screen(text(console)) if line][1].startswith("loss 2.000  entropy 1.00")
        shown.warning("something odd")
        walk(shown, clock, [(1.0, {"loss": 1.0})], first=2)
    left = [line for line in screen(text(console)) if line]
    assert left[0] == "warning: something odd"
    assert " ".join(" ".join(left[1:]).split()) == "sft 2/2 loss 1.000 5.0 tok/s took 0:02"


def test_the_bar_is_taken_down_when_the_run_fails() -> None:
    clock, console = Clock(), terminal()
    with pytest.raises(KeyboardInterrupt), display_for("sft", 9, 0, console, clock) as shown:
        walk(shown, clock, [(1.0, {"loss": 2.0})])
        raise KeyboardInterrupt
    assert [line for line in screen(text(console)) if line] == ["sft  1/9  loss 2.000  took 0:01"]


def test_a_bar_without_a_step_still_ends_clean() -> None:
    console = terminal()
    with display_for("sft", 9, 9, console, Clock()):
        pass
    assert [line for line in screen(text(console)) if line] == ["sft  9/9  took 0:00"]


def test_forced_colors_do_not_make_a_pipe_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TTY_INTERACTIVE", "1")
    with display_for("sft", 1) as shown:
        shown.step(1, {"loss": 1.0})
    table("Results", ["method", "reward"], [["grape", 0.5]])
    assert "\x1b" not in capsys.readouterr().out


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(display_for("sft", 1, 0, Console(file=io.StringIO(), force_terminal=True)), Lines)


@pytest.mark.parametrize(("total", "start"), [(0, 0), (5, 6), (5, -1)])
def test_impossible_steps_are_refused(total: int, start: int) -> None:
    with pytest.raises(ValueError, match="steps done"):
        display_for("sft", total, start, plain())


def test_a_plain_table_is_exact() -> None:
    console = plain()
    rows = [["grape [ours]", 0.5123, 12, "0.51 ± 0.02"], ["sft", math.nan, 9000, "-"]]
    table("Final reward", ["method", "reward", "tokens", "seeds"], rows, console)
    assert text(console) == (
        "Final reward\n"
        "method        reward  tokens        seeds\n"
        "grape [ours]   0.512      12  0.51 ± 0.02\n"
        "sft                -    9000            -\n"
    )


def test_a_plain_table_is_a_hundred_wide_and_loses_no_text() -> None:
    console = plain()
    note = " ".join(f"word{number}" for number in range(40))
    table("Notes", ["method", "note", "reward"], [["grape", note, 0.5], ["sft", "x" * 150, 0.25]], console)
    lines = text(console).splitlines()
    assert (
        max(map(len, lines)) == 6 + 2 + 150 + 2 + 6
    )  # 150 x without a gap are not broken up: the table widens to hold them

    console = plain()
    table("Notes", ["method", "note", "reward"], [["grape", note, 0.5]], console)
    lines = text(console).splitlines()
    assert 90 <= max(map(len, lines)) <= 100
    assert re.findall(r"word\d+", text(console)) == note.split()
    assert "…" not in text(console)


def test_numbers_with_their_spread_stay_whole_beside_long_text() -> None:
    console = plain()
    table("Seeds", ["note", *"abcdef"], [["word " * 40, *["0.512 ± 0.021"] * 6]], console)
    assert text(console).count("word") == 40
    assert text(console).splitlines()[2].endswith("  ".join(["0.512 ± 0.021"] * 6))
    assert max(map(len, text(console).splitlines())) <= 100


def test_a_long_name_beside_long_text_is_folded_not_cut() -> None:
    console = plain()
    table("Models", ["model", "note"], [["x" * 60, "word " * 40]], console)
    assert text(console).count("x") == 60 and text(console).count("word") == 40
    assert max(map(len, text(console).splitlines())) <= 100


@pytest.mark.parametrize("heading", ["c", "a longer heading than its numbers"])
@pytest.mark.parametrize("width", [0, 20])
def test_many_numbers_are_never_cut_even_on_a_narrow_terminal(heading: str, width: int) -> None:
    console = terminal(width) if width else plain()
    headings = [f"{heading} {n}" for n in range(20)]
    table("Wide", headings, [["0.512 ± 0.021"] * 20], console)
    assert text(console).count("0.512 ± 0.021") == 20
    assert all(name in text(console) for name in headings)


def test_a_table_on_a_terminal_has_its_width_and_styles() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=60)
    table("Final", ["method", "note"], [["grape", "word " * 30]], console)
    assert "\x1b[1m" in text(console)
    assert max(map(len, without_codes(text(console)).splitlines())) <= 60


def test_a_row_with_too_few_cells_is_named() -> None:
    with pytest.raises(ValueError, match="row 1: 1 cells; expected 2"):
        table("Final", ["a", "b"], [["x", 1], ["y"]], plain())


def test_a_table_without_rows_is_its_heading() -> None:
    console = plain()
    table("Nothing yet", ["method", "reward"], [], console)
    assert text(console) == "Nothing yet\nmethod  reward\n"
