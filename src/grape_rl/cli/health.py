"""The item table of ``grape score``: printed, and written as JSON or CSV."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from grape_rl.reward.canary import Canary
from grape_rl.rollout.records import json_number
from grape_rl.rubric_tools.item_health import MIN_RESPONSES, ItemHealth
from grape_rl.training.display import short, table


def print_health(title: str, items: Sequence[ItemHealth]) -> None:
    """Print each item's statistics, the critics' usage, and the flags."""
    columns = ["category", "item", "n", "mean", "spread", "flat", "confidence", "signal", "missing"]
    lines = [
        [i.category, i.item, i.graded, i.mean, i.spread, i.flat, _confidence(i), i.share, _missing(i)] for i in items
    ]
    table(title, columns, lines)
    if all(item.spread != item.spread for item in items):
        print("spread, flat and signal need two graded responses to one prompt, and no prompt has them")
    if any(item.cost or item.tokens for item in items):
        lines = [[item.category, item.item, f"{item.cost:.4g}", short(item.tokens)] for item in items]
        table("critic usage", ["category", "item", "cost", "tokens"], lines)
    if flags := [[item.category, item.item, flag.kind, flag.detail] for item in items for flag in item.flags]:
        table("flags", ["category", "item", "flag", "detail"], flags)
    elif all(item.graded < MIN_RESPONSES for item in items):
        print(f"no flags: they need {MIN_RESPONSES} graded responses or more")


def print_canaries(results: Sequence[Canary]) -> None:
    """Print the number of canaries that fooled a critic, by item, and the first finding of each item."""
    by_item: dict[tuple[str, str], list[Canary]] = {}
    for canary in results:
        by_item.setdefault((canary.category, canary.item), []).append(canary)
    lines: list[list[str | float | int]] = []
    for (category, item), tried in by_item.items():
        counts = [sum(canary.verdict.missing for canary in tried), sum(canary.fooled for canary in tried)]
        lines.append([category, item, len(tried), *counts])
    table("canaries: responses without content", ["category", "item", "tried", "missing", "fooled"], lines)
    reported: set[tuple[str, str]] = set()
    for canary in results:
        if (canary.fooled or canary.verdict.missing) and (canary.category, canary.item) not in reported:
            reported.add((canary.category, canary.item))
            print(f"- {canary.finding}")


def write_table(path: Path, items: Sequence[ItemHealth], extra: Mapping[str, Mapping[str, float | int]]) -> None:
    """Write the item table, one record per item, as JSON or CSV by the suffix.

    ``extra`` has further fields by ``category/item``. A NaN is written as null in JSON, and as an empty field in CSV.
    """
    extra_names = list(dict.fromkeys(name for fields in extra.values() for name in fields))
    records: list[dict[str, Any]] = []
    for item in items:
        extra_fields = extra.get(f"{item.category}/{item.item}", {})
        fields = asdict(item) | {name: extra_fields.get(name) for name in extra_names}
        records.append({name: json_number(value) for name, value in fields.items()})
    if path.suffix == ".json":
        path.write_text(json.dumps(records, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return
    for record in records:
        record["missing"] = ", ".join(f"{status} {count}" for status, count in record["missing"].items())
        record["flags"] = "; ".join(f"{flag['kind']}: {flag['detail']}" for flag in record["flags"])
    text = io.StringIO()
    lines = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    lines.writeheader()
    lines.writerows(records)
    path.write_text(text.getvalue(), encoding="utf-8")


def _confidence(item: ItemHealth) -> str:
    return f"{item.confidence:.2f} ± {item.confidence_spread:.2f}" if item.graded else "-"


def _missing(item: ItemHealth) -> str:
    counts = {**item.missing, **({"policy_fault": item.policy_fault} if item.policy_fault else {})}
    return ", ".join(f"{status} {count}" for status, count in counts.items()) or "-"
