"""The display of a run: a live bar on a terminal, one plain line per step anywhere else, and tables of results."""

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from io import StringIO

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.measure import Measurement
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

HEADLINE = {"reward": ".3f", "loss": ".3f", "accuracy": ".3f", "kl": ".4f", "entropy": ".2f", "length": ".1f"}
"""Metrics on the display, in order, with their number formats."""

PLAIN_WIDTH = 100
"""Width of a table without a terminal, so that logs look the same everywhere."""


def duration(seconds: float | int) -> str:
    """Seconds as ``minutes:seconds``, or ``hours:minutes:seconds`` from one hour on.

    >>> duration(83), duration(3723)
    ('1:23', '1:02:03')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def short(number: float | int) -> str:
    """A count in two to four digits.

    >>> short(8.25), short(812), short(4100), short(2_500_000)
    ('8.2', '812', '4.1k', '2.5M')
    """
    if number < 9.95:
        return f"{number:.1f}"
    if number < 999.5:
        return f"{number:.0f}"
    return f"{number / 1e3:.1f}k" if number < 999_950 else f"{number / 1e6:.1f}M"


class Throughput:
    """Speed over the last ten steps: enough to be steady, and few enough to forget the slow first step."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._started = self._last = clock()
        self._steps: deque[tuple[float, float]] = deque(maxlen=10)

    def step(self, tokens: float | int) -> None:
        """Record that a step with ``tokens`` tokens (NaN if unknown) ends now."""
        now = self._clock()
        self._steps.append((now - self._last, tokens))
        self._last = now

    @property
    def elapsed(self) -> float:
        """Seconds since the first step began."""
        return self._clock() - self._started

    @property
    def step_seconds(self) -> float:
        """Mean seconds of a step; NaN before the first."""
        return sum(seconds for seconds, _ in self._steps) / len(self._steps) if self._steps else math.nan

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second over the steps with a known number of tokens; NaN without any."""
        counted = [(seconds, tokens) for seconds, tokens in self._steps if math.isfinite(tokens)]
        seconds = sum(seconds for seconds, _ in counted)
        return sum(tokens for _, tokens in counted) / seconds if seconds > 0 else math.nan


def format_headline(metrics: Mapping[str, float | int], tokens_per_second: float | int) -> list[str]:
    """The ``HEADLINE`` metrics as ``name value``, then the speed unless it is NaN.

    >>> format_headline({"length": 9.81, "kl": 0.0031, "pairs": 3}, 4100)
    ['kl 0.0031', 'length 9.8', '4.1k tok/s']
    """
    shown = [f"{name} {metrics[name]:{form}}" for name, form in HEADLINE.items() if name in metrics]
    return shown if math.isnan(tokens_per_second) else [*shown, f"{short(tokens_per_second)} tok/s"]


class Lines:
    """One plain line per step on the console, warnings on stderr: for pipes, notebooks and CI."""

    def __init__(self, phase: str, total: int, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._phase, self._total, self._console = phase, total, console
        self._speed = Throughput(clock)

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def step(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Display a finished step."""
        self._speed.step(metrics.get("tokens", math.nan))
        left = duration(self._speed.step_seconds * (self._total - step))
        shown = format_headline(metrics, self._speed.tokens_per_second)
        line = "  ".join([self._phase, f"{step}/{self._total}", *shown, f"left {left}"])
        print(line, file=self._console.file, flush=True)

    def warning(self, message: str) -> None:
        """Display a warning."""
        print(f"warning: {message}", file=sys.stderr, flush=True)


class Bar:
    """A live bar with the headline metrics below and warnings above. At the end one line of it remains."""

    def __init__(
        self, phase: str, total: int, start: int, console: Console, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._phase, self._total, self._console = phase, total, console
        self._speed = Throughput(clock)
        self._step, self._shown, self._left = start, "", ""
        self._live = Live(get_renderable=self._frame, console=console, refresh_per_second=4, transient=True)

    def _frame(self) -> Group:
        # Always two lines, because a frame of varying height makes the terminal jump.
        row = Table.grid(padding=(0, 2), expand=True)
        for ratio in (None, 1, None, None, None):
            row.add_column(ratio=ratio, no_wrap=True)
        row.add_row(
            Text(self._phase),
            ProgressBar(total=self._total, completed=self._step),
            Text(f"{self._step}/{self._total}"),
            Text(duration(self._speed.elapsed)),
            Text(self._left),
        )
        return Group(row, Text(self._shown, no_wrap=True, overflow="ellipsis"))

    def __enter__(self) -> "Bar":
        self._live.start(refresh=True)
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()
        parts = [self._phase, f"{self._step}/{self._total}", self._shown, f"took {duration(self._speed.elapsed)}"]
        self._console.print(Text("  ".join(part for part in parts if part)))

    def step(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Display a finished step."""
        self._speed.step(metrics.get("tokens", math.nan))
        self._step = step
        self._shown = "  ".join(format_headline(metrics, self._speed.tokens_per_second))
        self._left = f"left {duration(self._speed.step_seconds * (self._total - step))}"
        self._live.refresh()

    def warning(self, message: str) -> None:
        """Display a warning."""
        self._console.print(Text(f"warning: {message}", style="yellow"))


Display = Lines | Bar
"""A context manager that displays steps and warnings."""


def stdout_console() -> Console:
    """A console on stdout. It is a terminal only if stdout is one, so that a CI that forces colors gets plain text."""
    return Console(force_terminal=None if sys.stdout.isatty() else False)


def display_for(
    phase: str,
    total: int,
    start: int = 0,
    console: Console | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Display:
    """A display for ``console`` (stdout by default): a live bar on a terminal, else plain lines.

    ``start`` of ``total`` steps are already done. ``clock`` returns seconds.

    Raises:
        ValueError: ``total`` is below 1, or ``start`` is not in [0, total].
    """
    if not (total >= 1 and 0 <= start <= total):
        raise ValueError(f"phase {phase!r}: {start} of {total} steps done; expected at least 1 step, and 0 to all done")
    console = console or stdout_console()
    if console.is_terminal and console.is_interactive:
        return Bar(phase, total, start, console, clock)
    return Lines(phase, total, console, clock)


def _cell(value: str | float | int) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.3f}"
    return str(value)


def _numeric(value: str | float | int) -> bool:
    return not isinstance(value, str) or not any(letter.isalpha() for letter in value)


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str | float | int]], console: Console | None = None
) -> None:
    """Print a table of results, with the width of the terminal, or as plain text of 100 columns. No text is cut off.

    Floats have three decimals, and NaN is a dash. A column of numbers, or of text without letters such as
    ``0.51 ± 0.02``, is aligned to the right. Long text is wrapped; if that does not suffice, the table is wider.

    Raises:
        ValueError: the number of cells of a row differs from the number of columns.
    """
    for number, row in enumerate(rows):
        if len(row) != len(columns):
            raise ValueError(f"table {title!r}, row {number}: {len(row)} cells; expected {len(columns)}, one a column")
    console = console or stdout_console()
    live = console.is_terminal
    grid = Table(box=box.SIMPLE_HEAD if live else None, pad_edge=live)
    cells = [[Text(_cell(value)) for value in row] for row in rows]
    for index, name in enumerate(columns):
        if all(_numeric(row[index]) for row in rows):
            widest = max(Text(name).cell_len, *(row[index].cell_len for row in cells), 1)
            grid.add_column(Text(name), justify="right", no_wrap=True, min_width=widest)
        else:
            grid.add_column(Text(name), overflow="fold")
    for row in cells:
        grid.add_row(*row)

    # Rich crops to the width of its console, so the table is rendered on a console that is wide enough.
    least = Measurement.get(console, console.options.update_width(10_000), grid).minimum
    width = max(console.width if live else PLAIN_WIDTH, least)
    page = Console(file=StringIO(), width=width, force_terminal=live, force_jupyter=False, no_color=console.no_color)
    with page.capture() as text:
        page.print(Text(title, style="italic"))
        page.print(grid)
    print("\n".join(line.rstrip() for line in text.get().splitlines()), file=console.file, flush=True)
