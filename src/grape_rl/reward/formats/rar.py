"""The rubrics of Rubrics as Rewards: a list of ``{title, description, weight}``, where a description is met or not."""

import re
from typing import Any

from grape_rl.reward.formats.parsing import entries, field_text, field_weight, judged, slug, unique

_PREFIX = re.compile(r"^\s*(?:essential|important|optional|pitfall)\s+criteri(?:a|on)\s*:\s*", re.IGNORECASE)


def items(told: Any) -> list[dict[str, Any]]:
    """The items: the title becomes the id, and of the description goes what tells only how much it weighs.

    A negative weight is a pitfall, as there: what the description says is then what a response should not do. ("Pitfall
    Criteria: Does not mention the dose" takes off where the dose is not mentioned.)

    Raises:
        ValueError: an entry has no description, or no weight, or one of 0.

    >>> items([{"title": "The Dose", "description": "Essential Criteria: Names it.", "weight": 5}])[0]["id"]
    'the-dose'
    """
    found: list[dict[str, Any]] = []
    for index, entry in enumerate(entries(told, "{title, description, weight}")):
        where = f"[{index}]: "
        title = entry.get("title")
        if title is not None and not isinstance(title, str):
            raise ValueError(f"{where}title should be text, and is {title!r:.80}")
        criterion = _PREFIX.sub("", field_text(entry, "description", where))
        if not criterion:
            raise ValueError(f"{where}description says how much it weighs, and nothing to judge")
        weight = field_weight(entry, "weight", where)
        found.append(judged(slug(title or "") or f"criterion-{index + 1}", weight, criterion))
    names = unique(item["id"] for item in found)
    return [{**item, "id": name} for item, name in zip(found, names, strict=True)]
