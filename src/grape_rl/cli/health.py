"""The item table of ``grape score``: each item's health, printed, and as data."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from grape_rl.reward.canary import Canary
from grape_rl.rollout.records import json_number
from grape_rl.rubric_tools.item_health import FEWEST, ItemHealth
from grape_rl.training.display import short, table


def print_health(title: str, items: Sequence[ItemHealth]) -> None:
    """What the responses say of each item, what grading it took, and what looks wrong."""
    heads = ["category", "item", "n", "mean", "spread", "flat", "confidence", "signal", "missing"]
    lines = [
        [of.category, of.item, of.graded, of.mean, of.spread, of.flat, _sure(of), of.share, _counts(of)] for of in items
    ]
    table(title, heads, lines)
    if all(of.spread != of.spread for of in items):
        print("spread, flat and signal compare responses to one prompt, and no prompt has two graded ones")
    if any(of.cost or of.tokens for of in items):
        lines = [[of.category, of.item, f"{of.cost:.4g}", short(of.tokens)] for of in items]
        table("what the critics took", ["category", "item", "cost", "tokens"], lines)
    if flags := [[of.category, of.item, each.kind, each.detail] for of in items for each in of.flags]:
        table("to look at", ["category", "item", "flag", "why"], flags)
    elif all(of.graded < FEWEST for of in items):
        print(f"nothing is flagged on fewer than {FEWEST} graded responses")


def print_canaries(found: Sequence[Canary]) -> None:
    """What the critics gave for responses that say nothing, item by item, and of each the first that fooled one."""
    of = dict.fromkeys((each.category, each.item) for each in found)
    lines: list[list[str | float | int]] = []
    for category, item in of:
        those = [each for each in found if (each.category, each.item) == (category, item)]
        counts = [sum(each.verdict.missing for each in those), sum(each.fooled for each in those)]
        lines.append([category, item, len(those), *counts])
    table("canaries: responses that say nothing", ["category", "item", "tried", "missing", "fooled"], lines)
    told: set[tuple[str, str]] = set()
    for each in found:
        if (each.fooled or each.verdict.missing) and (each.category, each.item) not in told:
            told.add((each.category, each.item))
            print(f"- {each.finding}")


def write_table(path: Path, items: Sequence[ItemHealth], more: Mapping[str, Mapping[str, float | int]]) -> None:
    """The table as data, one record an item, with ``more`` fields by ``category/item``: JSON or CSV, by the suffix.

    A number that nothing tells is null, or empty.
    """
    extra = list(dict.fromkeys(name for fields in more.values() for name in fields))
    records: list[dict[str, Any]] = []
    for of in items:
        fields = asdict(of) | {name: more.get(f"{of.category}/{of.item}", {}).get(name) for name in extra}
        records.append({name: json_number(value) for name, value in fields.items()})
    if path.suffix == ".json":
        path.write_text(json.dumps(records, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return
    for record in records:
        record["missing"] = ", ".join(f"{status} {count}" for status, count in record["missing"].items())
        record["flags"] = "; ".join(f"{each['kind']}: {each['detail']}" for each in record["flags"])
    text = io.StringIO()
    lines = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    lines.writeheader()
    lines.writerows(records)
    path.write_text(text.getvalue(), encoding="utf-8")


def _sure(of: ItemHealth) -> str:
    return f"{of.confidence:.2f} ± {of.confidence_spread:.2f}" if of.graded else "-"


def _counts(of: ItemHealth) -> str:
    told = {**of.missing, **({"policy_fault": of.policy_fault} if of.policy_fault else {})}
    return ", ".join(f"{status} {count}" for status, count in told.items()) or "-"
