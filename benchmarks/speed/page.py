"""The records of the comparison as tables of Markdown, and the page that they go into."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from measured import Record
from speed.rows import ROWS, START_GOAL, STARTS, Row
from tables import inserted, markdown

BY_NAME: Mapping[str, Row] = {row.name: row for row in ROWS}
NONE = "–"
UNMEASURED = "not yet measured"
SIDES = ("peer", "ours")


def latest(found: Sequence[Record]) -> dict[str, list[Record]]:
    """The records of each row's last run in the file, by the row's name."""
    last = {record["row"]: record["run"] for record in found}
    return {name: [r for r in found if r["row"] == name and r["run"] == run] for name, run in last.items()}


def middle(done: Sequence[Record], side: str, name: str = "seconds") -> float | None:
    """The median over the turns of a side's medians over its steps; None where it did not run or does not say."""
    told = [record[side][name] for record in done if record.get(side) and record[side].get(name)]
    return statistics.median(statistics.median(each) for each in told) if told else None


def peak(done: Sequence[Record], side: str) -> float | None:
    """The most bytes that a side held in any turn."""
    return max((record[side]["peak"] for record in done if record.get(side)), default=None)


def ratios(done: Sequence[Record]) -> list[float]:
    """How often as fast as TRL each turn was, turn by turn; none where TRL did not run."""
    turns = [[record] for record in done if record.get("peer")]
    return [(middle(each, "peer") or 0) / (middle(each, "ours") or 1) for each in turns]


def floor(done: Sequence[Record]) -> float | None:
    """The seconds that a step's operations take at the machine's matrix rate."""
    operations, rate = middle(done, "ours", "operations"), best(done, "matrix_rate")
    return operations / rate if operations and rate else None


def best(done: Sequence[Record], name: str) -> float | None:
    """The highest rate that was measured in any turn."""
    return max((record["machine"][name] for record in done if record.get("machine")), default=None)


def speed(done: Sequence[Record], side: str, sampled: bool) -> float | None:
    """Tokens a second: those that a GRPO step samples, or all that a step of another method reads."""
    count = middle(done, side, "length" if sampled else "tokens")
    seconds = middle(done, side)
    rows = BY_NAME[done[0]["row"]].per_step * BY_NAME[done[0]["row"]].group if sampled else 1
    return count * rows / seconds if count and seconds else None


def table(found: Sequence[Record], rows: Sequence[Row]) -> str:
    """A line a row: the seconds of both sides, the ratio against its goal, and the floor."""
    runs = latest(found)
    columns = ["work", "TRL", "ours", "ratio", "(turns)", "goal", "floor", "share of floor"]
    return markdown(columns, [_times(row, runs.get(row.name, [])) for row in rows])


def _times(row: Row, done: Sequence[Record]) -> list[str]:
    goal = number(row.ratio, "≥ {:g}×")
    if not done:
        return [row.title, UNMEASURED, UNMEASURED, NONE, NONE, goal, NONE, NONE]
    turns, least, ours = ratios(done), floor(done), middle(done, "ours")
    return [
        row.title + ("*" if any(record["unlike"] for record in done) else ""),
        number(middle(done, "peer"), "{:.3g} s"),
        number(ours, "{:.3g} s"),
        number(statistics.median(turns) if turns else None, "**{:.2f}×**"),
        f"{min(turns):.2f} – {max(turns):.2f}" if turns else NONE,
        goal,
        number(least, "{:.3g} s"),
        number(least / ours if least and ours else None, "{:.0%}"),
    ]


def memory_table(found: Sequence[Record], rows: Sequence[Row]) -> str:
    """A line a row: the memory of both sides, how long their responses were, and tokens a second."""
    runs = latest(found)
    columns = ["work", "memory: TRL", "ours", "goal", "length: TRL", "ours", "tokens/s: TRL", "ours"]
    return markdown(columns, [_sizes(row, runs.get(row.name, [])) for row in rows])


def _sizes(row: Row, done: Sequence[Record]) -> list[str]:
    goal, sampled = number(row.gigabytes, "≤ {:g} GB"), row.method == "grpo"
    held = [number(peak(done, side), "{:.2f} GB", 1e9) for side in SIDES] if done else [UNMEASURED] * 2
    lengths = [number(middle(done, side, "length"), "{:.1f}") for side in SIDES]
    rates = [number(speed(done, side, sampled) if done else None, "{:,.0f}") for side in SIDES]
    return [row.title, *held, goal, *lengths, *rates]


def parts_table(found: Sequence[Record], rows: Sequence[Row]) -> str:
    """A line a row: sampling against the memory's bandwidth, and the update against the matrix rate."""
    columns = ["work", "on", "sampling", "bound by memory", "times the bound", "update", "of the matrix rate",
               "matrix rate", "bandwidth"]  # fmt: skip
    runs = latest(found)
    return markdown(columns, [_parts(row, runs.get(row.name, [])) for row in rows])


def _parts(row: Row, done: Sequence[Record]) -> list[str]:
    if not done:
        return [row.title, UNMEASURED, *[NONE] * 7]
    rate, width = best(done, "matrix_rate"), best(done, "bandwidth")
    sampling, update = (middle(done, "ours", f"{name}_seconds") for name in ("sample", "update"))
    read, operations = middle(done, "ours", "decode_bytes"), middle(done, "ours", "update_operations")
    bound = read / width if read and width else None
    return [
        row.title,
        done[0]["machine"]["device"],
        number(sampling, "{:.3g} s"),
        number(bound, "{:.3g} s"),
        number(sampling / bound if sampling and bound else None, "{:.1f}×"),
        number(update, "{:.3g} s"),
        number(operations / rate / update if operations and rate and update else None, "{:.0%}"),
        number(rate, "{:,.0f} GFLOP/s", 1e9),
        number(width, "{:,.0f} GB/s", 1e9),
    ]


def starts_table(found: Sequence[Record]) -> str:
    """A line a command: how long both sides take to start."""
    runs = latest(found)
    rows = []
    for name, (ours, peer) in STARTS.items():
        done = runs.get(name, [])
        both = [number(middle(done, side), "{:.2f} s") if done else UNMEASURED for side in SIDES]
        held = [number(peak(done, side), "{:.0f} MB", 1e6) for side in SIDES]
        rows.append([f"`{ours}`, beside `{peer}`", *both, f"< {START_GOAL:g} s", *held])
    return markdown(["command", "TRL", "ours", "goal", "memory: TRL", "ours"], rows)


def number(value: float | None, form: str, unit: float = 1.0) -> str:
    """The value in its unit and form; a dash where there is none.

    >>> number(2.5e9, "{:.1f} GB", 1e9), number(None, "{:g}")
    ('2.5 GB', '–')
    """
    return NONE if value is None else form.format(value / unit)


def measured_where(of: Record) -> str:
    """When and on what a record was measured."""
    machine = f"{of['threads']} thread{'s' * (of['threads'] != 1)} of {of['cores']} cores ({of['machine']})"
    return f"{of['date']}, {machine}, torch {of['torch']}, Python {of['python']}"


def origin(found: Sequence[Record]) -> str:
    """When, where and with which versions the shown records were measured, each way once; and what was not alike."""
    shown = [record for done in latest(found).values() for record in done]
    ways: dict[str, None] = {}
    for record in shown:
        sides = [record[side] for side in ("ours", "peer") if record.get(side)]
        versions = {name: told for side in sides for name, told in side.get("versions", {}).items() if name != "torch"}
        if versions:  # an import says none
            told = ", ".join(f"{name} {version}" for name, version in versions.items())
            ways[f"{measured_where(record['where'])}, {told}"] = None
    unlike = dict.fromkeys(f"\\* {record['unlike']}.\n" for record in shown if record["unlike"])
    return "\n".join([*([f"Measured: {'; '.join(ways)}.\n"] if ways else []), *unlike])


def summary(done: Sequence[Record]) -> str:
    """The turns of one row in a line or two, for the terminal."""
    name, turns = done[0]["row"], ratios(done)
    text = f"{name}: ours {number(middle(done, 'ours'), '{:.3g} s')}, {number(peak(done, 'ours'), '{:.2f} GB', 1e9)}"
    if turns:
        text += f"; TRL {number(middle(done, 'peer'), '{:.3g} s')}, {number(peak(done, 'peer'), '{:.2f} GB', 1e9)}"
        text += f"; ratio {statistics.median(turns):.2f}"
    if name in BY_NAME:
        least, ours = floor(done), middle(done, "ours")
        lengths = [middle(done, side, "length") for side in ("ours", "peer")]
        text += f"; floor {number(least, '{:.3g} s')} ({number(least / ours if least and ours else None, '{:.0%}')})"
        if lengths[0] and lengths[1] and abs(lengths[0] / lengths[1] - 1) > 0.01:
            rates = [speed(done, side, sampled=True) or 0 for side in ("ours", "peer")]
            text += f"; lengths differ, {lengths[0]:.1f} and {lengths[1]:.1f}"
            text += f": ratio of tokens/s {rates[0] / rates[1]:.2f}"
    return "\n".join([text, *(record["unlike"] for record in done if record["unlike"])])


def report(found: Sequence[Record], page: Path) -> None:
    """Write the tables into the page, whose own text stays as it is."""
    text = page.read_text(encoding="utf-8")
    here, card = [row for row in ROWS if not row.gpu], [row for row in ROWS if row.gpu]
    places = {
        "vs_trl": "\n".join([table(found, here), memory_table(found, here), origin(found)]),
        "starts": starts_table(found),
        "parts": parts_table(found, here),
        "gpu": "\n".join(each(found, card) for each in (table, memory_table, parts_table)),
    }
    for name, tables in places.items():
        text = inserted(text, name, tables)
    page.write_text(text, encoding="utf-8")
    print(page)
