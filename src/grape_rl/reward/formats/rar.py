"""Rubrics as Rewards (RaR) rubrics: a list of ``{title, description, weight}`` with binary criteria."""

import re
from typing import Any

from grape_rl.reward.formats.parsing import binary_item, entries, field_text, field_weight, slug, unique

_PREFIX = re.compile(r"^\s*(?:essential|important|optional|pitfall)\s+criteri(?:a|on)\s*:\s*", re.IGNORECASE)


def rar_items(value: Any) -> list[dict[str, Any]]:
    """The items of a RaR rubric. The title becomes the id; a prefix such as "Essential Criteria:" is removed.

    A negative weight is a pitfall, as in RaR: the description names what a response should not do. ("Pitfall Criteria:
    Does not mention the dose" lowers the reward of a response that does not mention the dose.)

    Raises:
        ValueError: an entry has no description, no weight, or weight 0.

    >>> rar_items([{"title": "The Dose", "description": "Essential Criteria: Names it.", "weight": 5}])[0]["id"]
    'the-dose'
    """
    items: list[dict[str, Any]] = []
    for index, entry in enumerate(entries(value, "{title, description, weight}")):
        where = f"[{index}]: "
        title = entry.get("title")
        if title is not None and not isinstance(title, str):
            raise ValueError(f"{where}title should be text but is {title!r:.80}")
        criterion = _PREFIX.sub("", field_text(entry, "description", where))
        if not criterion:
            raise ValueError(f"{where}description has only its prefix, without a criterion")
        weight = field_weight(entry, "weight", where)
        items.append(binary_item(slug(title or "") or f"criterion-{index + 1}", weight, criterion))
    names = unique(item["id"] for item in items)
    return [{**item, "id": name} for item, name in zip(items, names, strict=True)]
