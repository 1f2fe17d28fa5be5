"""Answers extracted from text: the part that a pattern captures, and numbers in their usual notations."""

import re
from fractions import Fraction
from typing import Any

_NUMBER = re.compile(
    r"""
    (?<![\w])                              # not inside a word or another number
    (?: (?<![\w)%.]) (?P<sign>[-+−]) [$€£]? )?  # a sign, but not an operator between two operands
    (?P<digits>
        (?: [0-9]{1,3} (?: ,[0-9]{3} )+ (?![0-9]) | [0-9]+ ) (?: \.[0-9]+ )?
      | \.[0-9]+
    )
    (?: [eE] (?P<exponent> [-+]?[0-9]{1,3} ) (?![0-9]) )?
    (?: [ ]?/[ ]? (?P<over> [0-9]+ (?: \.[0-9]+ )? ) )?
    """,
    re.VERBOSE,
)


def extract_text(pattern: str | None, text: str) -> str | None:
    r"""The answer in a text: the last match of the pattern, since a final answer comes last.

    For a pattern with groups, the first group that took part in the match; otherwise the whole match. Without a
    pattern, the whole text. Surrounding white space is stripped. None if nothing matches.

    >>> extract_text(r"Answer: (\w+)", "Answer: 4. No, Answer: 5")
    '5'
    """
    if pattern is None:
        return text.strip()
    matches = [match for match in re.finditer(pattern, text) if match[0]]
    if not matches:
        return None
    return next((group for group in matches[-1].groups() if group is not None), matches[-1][0]).strip()


def parse_numbers(text: str) -> tuple[Fraction, ...]:
    """The numbers in a text, as exact fractions: 1,200  -$3.50  50%  3/4  1e3  .5

    Percent and currency signs are dropped, so 50% is 50. A division by 0, and a number too long to parse, are skipped.

    >>> [str(x) for x in parse_numbers("from $1,200.50 to -3/4, or 1e3")]
    ['2401/2', '-3/4', '1000']
    """
    values: list[Fraction] = []
    for match in _NUMBER.finditer(text):
        mantissa = match["digits"].replace(",", "")
        try:  # int() raises ValueError for more than 4,300 digits
            value = Fraction(f"{mantissa}e{match['exponent'] or 0}") / Fraction(match["over"] or 1)
        except (ValueError, ZeroDivisionError):
            continue
        values.append(-value if match["sign"] in ("-", "−") else value)
    return tuple(values)


def gold_text(gold: Any, pattern: str | None) -> str:
    """The gold answer of a data row as text, extracted by ``pattern`` (see ``extract_text``).

    Raises:
        ValueError: the gold answer is neither text nor a number (NaN is no number), or nothing is extracted.
    """
    if isinstance(gold, bool) or not isinstance(gold, (str, int, float)) or gold != gold:
        raise ValueError(f"the gold answer {gold!r} is neither text nor a number")
    text = extract_text(pattern, str(gold))
    if text is None:
        raise ValueError(f"gold_extract {pattern!r} finds nothing in the gold answer {gold!r}")
    if not text:
        raise ValueError(f"no gold answer in {gold!r}")
    return text


def gold_number(gold: Any, pattern: str | None) -> Fraction:
    """The number in the gold text.

    Raises:
        ValueError: the gold text does not contain exactly one number.
    """
    text = gold_text(gold, pattern)
    values = parse_numbers(text)
    if len(values) != 1:
        hint = "; select one with gold_extract" if values else ""
        raise ValueError(f"the gold answer {text!r} has {len(values)} numbers and should have one{hint}")
    return values[0]
