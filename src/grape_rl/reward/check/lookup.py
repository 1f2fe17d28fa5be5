"""Lookups, ``${row.x}``: placeholders in rubric texts that are replaced by a column of the data row.

A lookup only reads a column. It never evaluates code.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

_LOOKUP = re.compile(r"\$\{row((?:\.[^{}.]+)+)\}")


def lookups(text: str) -> tuple[str, ...]:
    """The lookups in a text, as written.

    Raises:
        ValueError: a ``${`` that does not begin a lookup.

    >>> lookups("${row.answer} of ${row.meta.unit}")
    ('${row.answer}', '${row.meta.unit}')
    """
    stray = re.search(r"\$\{[^}]*\}?", _LOOKUP.sub(" ", text))
    if stray:
        raise ValueError(f"{stray[0]!r} is not a lookup: write ${{row.NAME}}, where NAME is a column")
    return tuple(match[0] for match in _LOOKUP.finditer(text))


def lookup_value(lookup: str, row: Mapping[str, Any]) -> Any:
    """The value of a lookup in a row.

    Raises:
        ValueError: the row has no such column.
    """
    value: Any = row
    for name in lookup[len("${row.") : -1].split("."):
        if not isinstance(value, Mapping) or name not in value:
            columns = ", ".join(map(str, row)) or "no columns"
            raise ValueError(f"{lookup}: no {name!r} in the row, which has {columns}")
        value = value[name]
    return value


def filled(text: str, row: Mapping[str, Any], quoted: Callable[[str], str] | None = None) -> Any:
    """A text with its lookups replaced by their values. Lookups inside a value are not replaced.

    A text that consists of one lookup becomes the value itself, of any type. With ``quoted``, every value is inserted
    as text, after that function is applied to it.

    >>> filled("${row.n}", {"n": 3}), filled("at most ${row.n}", {"n": 3})
    (3, 'at most 3')
    """
    whole = _LOOKUP.fullmatch(text)
    if whole and quoted is None:
        return lookup_value(text, row)

    def replacement(match: re.Match[str]) -> str:
        value = lookup_value(match[0], row)
        if value is None:
            raise ValueError(f"{match[0]} is empty in this row")
        return quoted(str(value)) if quoted else str(value)

    return _LOOKUP.sub(replacement, text)
