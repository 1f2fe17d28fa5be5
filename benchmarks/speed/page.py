"""The tables of the comparison with TRL, and their place in benchmarks/README.md."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from result_file import Record
from speed.workloads import START_GOAL, STARTS, WORKLOADS, Workload
from tables import inserted, markdown

BY_NAME: Mapping[str, Workload] = {workload.name: workload for workload in WORKLOADS}
NONE = "–"
UNMEASURED = "not yet measured"
SIDES = ("peer", "ours")


def latest(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records of the last run of each workload, by the workload's name (the field ``row`` of a record)."""
    last = {record["row"]: record["run"] for record in records}
    return {name: [r for r in records if r["row"] == name and r["run"] == run] for name, run in last.items()}


def median(turns: Sequence[Record], side: str, name: str = "seconds") -> float | None:
    """Median over turns of a side's medians over steps; None if the side did not run or lacks the measurement."""
    steps = [record[side][name] for record in turns if record.get(side) and record[side].get(name)]
    return statistics.median(statistics.median(values) for values in steps) if steps else None


def peak(turns: Sequence[Record], side: str) -> float | None:
    """Largest peak memory of a side over all turns, in bytes."""
    return max((record[side]["peak"] for record in turns if record.get(side)), default=None)


def ratios(turns: Sequence[Record]) -> list[float]:
    """Speed relative to TRL of each turn; empty if TRL did not run."""
    compared = [[record] for record in turns if record.get("peer")]
    return [(median(one, "peer") or 0) / (median(one, "ours") or 1) for one in compared]


def floor(turns: Sequence[Record]) -> float | None:
    """Lower bound on the seconds of a step: its operations at the machine's matrix rate."""
    operations, rate = median(turns, "ours", "operations"), best(turns, "matrix_rate")
    return operations / rate if operations and rate else None


def best(turns: Sequence[Record], name: str) -> float | None:
    """Highest rate of the machine over all turns."""
    return max((record["machine"][name] for record in turns if record.get("machine")), default=None)


def speed(turns: Sequence[Record], side: str, sampled: bool) -> float | None:
    """Tokens per second: sampled tokens of a GRPO step, or all tokens that a step of another method reads."""
    count = median(turns, side, "length" if sampled else "tokens")
    seconds = median(turns, side)
    workload = BY_NAME[turns[0]["row"]]
    rows = workload.per_step * workload.group if sampled else 1
    return count * rows / seconds if count and seconds else None


def table(records: Sequence[Record], workloads: Sequence[Workload]) -> str:
    """Table with a line a workload: the seconds of both sides, the ratio and its goal, and the lower bound."""
    runs = latest(records)
    columns = ["work", "TRL", "ours", "ratio", "(turns)", "goal", "floor", "share of floor"]
    return markdown(columns, [_times(workload, runs.get(workload.name, [])) for workload in workloads])


def _times(workload: Workload, turns: Sequence[Record]) -> list[str]:
    goal = number(workload.ratio, "≥ {:g}×")
    if not turns:
        return [workload.title, UNMEASURED, UNMEASURED, NONE, NONE, goal, NONE, NONE]
    relative, bound, ours = ratios(turns), floor(turns), median(turns, "ours")
    return [
        workload.title + ("*" if any(record["unlike"] for record in turns) else ""),
        number(median(turns, "peer"), "{:.3g} s"),
        number(ours, "{:.3g} s"),
        number(statistics.median(relative) if relative else None, "**{:.2f}×**"),
        f"{min(relative):.2f} – {max(relative):.2f}" if relative else NONE,
        goal,
        number(bound, "{:.3g} s"),
        number(bound / ours if bound and ours else None, "{:.0%}"),
    ]


def memory_table(records: Sequence[Record], workloads: Sequence[Workload]) -> str:
    """Table with a line a workload: peak memory, mean response length and tokens per second of both sides."""
    runs = latest(records)
    columns = ["work", "memory: TRL", "ours", "goal", "length: TRL", "ours", "tokens/s: TRL", "ours"]
    return markdown(columns, [_sizes(workload, runs.get(workload.name, [])) for workload in workloads])


def _sizes(workload: Workload, turns: Sequence[Record]) -> list[str]:
    goal, sampled = number(workload.gigabytes, "≤ {:g} GB"), workload.method == "grpo"
    memory = [number(peak(turns, side), "{:.2f} GB", 1e9) for side in SIDES] if turns else [UNMEASURED] * 2
    lengths = [number(median(turns, side, "length"), "{:.1f}") for side in SIDES]
    rates = [number(speed(turns, side, sampled) if turns else None, "{:,.0f}") for side in SIDES]
    return [workload.title, *memory, goal, *lengths, *rates]


def parts_table(records: Sequence[Record], workloads: Sequence[Workload]) -> str:
    """Table with a line a workload: sampling against the memory bandwidth, and the update against the matrix rate."""
    columns = ["work", "on", "sampling", "bound by memory", "times the bound", "update", "of the matrix rate",
               "matrix rate", "bandwidth"]  # fmt: skip
    runs = latest(records)
    return markdown(columns, [_parts(workload, runs.get(workload.name, [])) for workload in workloads])


def _parts(workload: Workload, turns: Sequence[Record]) -> list[str]:
    if not turns:
        return [workload.title, UNMEASURED, *[NONE] * 7]
    rate, width = best(turns, "matrix_rate"), best(turns, "bandwidth")
    sampling, update = (median(turns, "ours", f"{name}_seconds") for name in ("sample", "update"))
    read, operations = median(turns, "ours", "decode_bytes"), median(turns, "ours", "update_operations")
    bound = read / width if read and width else None
    return [
        workload.title,
        turns[0]["machine"]["device"],
        number(sampling, "{:.3g} s"),
        number(bound, "{:.3g} s"),
        number(sampling / bound if sampling and bound else None, "{:.1f}×"),
        number(update, "{:.3g} s"),
        number(operations / rate / update if operations and rate and update else None, "{:.0%}"),
        number(rate, "{:,.0f} GFLOP/s", 1e9),
        number(width, "{:,.0f} GB/s", 1e9),
    ]


def starts_table(records: Sequence[Record]) -> str:
    """Table with a line a command: the start-up time and peak memory of both sides."""
    runs = latest(records)
    rows = []
    for name, (ours, peer) in STARTS.items():
        turns = runs.get(name, [])
        seconds = [number(median(turns, side), "{:.2f} s") if turns else UNMEASURED for side in SIDES]
        memory = [number(peak(turns, side), "{:.0f} MB", 1e6) for side in SIDES]
        rows.append([f"`{ours}`, TRL: `{peer}`", *seconds, f"< {START_GOAL:g} s", *memory])
    return markdown(["command", "TRL", "ours", "goal", "memory: TRL", "ours"], rows)


def number(value: float | None, form: str, unit: float = 1.0) -> str:
    """Formatted value, divided by its unit; a dash for None.

    >>> number(2.5e9, "{:.1f} GB", 1e9), number(None, "{:g}")
    ('2.5 GB', '–')
    """
    return NONE if value is None else form.format(value / unit)


def measured_where(where: Record) -> str:
    """Date, machine and versions of a record's field ``where``, as text."""
    machine = f"{where['threads']} thread{'s' * (where['threads'] != 1)} of {where['cores']} cores ({where['machine']})"
    return f"{where['date']}, {machine}, torch {where['torch']}, Python {where['python']}"


def origin(records: Sequence[Record]) -> str:
    """Dates, machines and versions of the displayed records, without repetition; and the notes on unequal work."""
    shown = [record for turns in latest(records).values() for record in turns]
    origins: dict[str, None] = {}
    for record in shown:
        sides = [record[side] for side in ("ours", "peer") if record.get(side)]
        versions = {name: v for side in sides for name, v in side.get("versions", {}).items() if name != "torch"}
        if versions:  # imports and commands have none
            text = ", ".join(f"{name} {version}" for name, version in versions.items())
            origins[f"{measured_where(record['where'])}, {text}"] = None
    unlike = dict.fromkeys(f"\\* {record['unlike']}.\n" for record in shown if record["unlike"])
    return "\n".join([*([f"Measured: {'; '.join(origins)}.\n"] if origins else []), *unlike])


def summary(turns: Sequence[Record]) -> str:
    """The turns of one workload in a line or two, for the terminal."""
    name, relative = turns[0]["row"], ratios(turns)
    text = f"{name}: ours {number(median(turns, 'ours'), '{:.3g} s')}, {number(peak(turns, 'ours'), '{:.2f} GB', 1e9)}"
    if relative:
        text += f"; TRL {number(median(turns, 'peer'), '{:.3g} s')}, {number(peak(turns, 'peer'), '{:.2f} GB', 1e9)}"
        text += f"; ratio {statistics.median(relative):.2f}"
    if name in BY_NAME:
        bound, ours = floor(turns), median(turns, "ours")
        lengths = [median(turns, side, "length") for side in ("ours", "peer")]
        text += f"; floor {number(bound, '{:.3g} s')} ({number(bound / ours if bound and ours else None, '{:.0%}')})"
        if lengths[0] and lengths[1] and abs(lengths[0] / lengths[1] - 1) > 0.01:
            rates = [speed(turns, side, sampled=True) or 0 for side in ("ours", "peer")]
            text += f"; lengths differ, {lengths[0]:.1f} and {lengths[1]:.1f}"
            text += f": ratio of tokens/s {rates[0] / rates[1]:.2f}"
    return "\n".join([text, *(record["unlike"] for record in turns if record["unlike"])])


def report(records: Sequence[Record], page: Path) -> None:
    """Write the tables into the page, whose own text stays as it is."""
    text = page.read_text(encoding="utf-8")
    cpu, gpu = [w for w in WORKLOADS if not w.gpu], [w for w in WORKLOADS if w.gpu]
    places = {
        "vs_trl": "\n".join([table(records, cpu), memory_table(records, cpu), origin(records)]),
        "starts": starts_table(records),
        "parts": parts_table(records, cpu),
        "gpu": "\n".join(build(records, gpu) for build in (table, memory_table, parts_table)),
    }
    for name, tables in places.items():
        text = inserted(text, name, tables)
    page.write_text(text, encoding="utf-8")
    print(page)
