"""``${row.x}``: a column of the data row, put into the text of a check. A look-up, never an evaluation."""

import re
from collections.abc import Callable, Mapping
from typing import Any

_LOOKUP = re.compile(r"\$\{row((?:\.[^{}.]+)+)\}")


def lookups(text: str) -> tuple[str, ...]:
    """The look-ups in a text, as written.

    Raises:
        ValueError: a ``${`` that starts no look-up.

    >>> lookups("${row.answer} of ${row.meta.unit}")
    ('${row.answer}', '${row.meta.unit}')
    """
    stray = re.search(r"\$\{[^}]*\}?", _LOOKUP.sub(" ", text))
    if stray:
        raise ValueError(f"{stray[0]!r} is no look-up: write ${{row.NAME}}, with the name of a column")
    return tuple(match[0] for match in _LOOKUP.finditer(text))


def looked_up(lookup: str, row: Mapping[str, Any]) -> Any:
    """What a look-up finds in a row.

    Raises:
        ValueError: there is no such column.
    """
    value: Any = row
    for name in lookup[len("${row.") : -1].split("."):
        if not isinstance(value, Mapping) or name not in value:
            raise ValueError(f"{lookup}: no {name!r} in the row, which has {', '.join(map(str, row)) or 'no columns'}")
        value = value[name]
    return value


def filled(text: str, row: Mapping[str, Any], quoted: Callable[[str], str] | None = None) -> Any:
    """A text with its look-ups filled in, once: what is filled in is not looked at again.

    A text that is one look-up and nothing else becomes the value itself, of whatever type. With ``quoted`` every value
    goes in as text, through that function.

    >>> filled("${row.n}", {"n": 3}), filled("at most ${row.n}", {"n": 3})
    (3, 'at most 3')
    """
    whole = _LOOKUP.fullmatch(text)
    if whole and quoted is None:
        return looked_up(text, row)

    def value(match: re.Match[str]) -> str:
        found = looked_up(match[0], row)
        if found is None:
            raise ValueError(f"{match[0]} is empty in this row")
        return quoted(str(found)) if quoted else str(found)

    return _LOOKUP.sub(value, text)
