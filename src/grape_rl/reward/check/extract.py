"""What a check reads out of a text: the part that a pattern captures, and numbers as people write them."""

import re
from fractions import Fraction
from typing import Any

_NUMBER = re.compile(
    r"""
    (?<![\w])                              # not inside a word or another number
    (?: (?<![\w)%.]) (?P<sign>[-+−]) [$€£]? )?  # a sign, unless it stands between two operands
    (?P<digits>
        (?: [0-9]{1,3} (?: ,[0-9]{3} )+ (?![0-9]) | [0-9]+ ) (?: \.[0-9]+ )?
      | \.[0-9]+
    )
    (?: [eE] (?P<exponent> [-+]?[0-9]{1,3} ) (?![0-9]) )?
    (?: [ ]?/[ ]? (?P<over> [0-9]+ (?: \.[0-9]+ )? ) )?
    """,
    re.VERBOSE,
)


def extracted(pattern: str | None, text: str) -> str | None:
    r"""The part of a text that an answer stands in: the last match of the pattern, as a final answer comes last.

    Of a pattern with groups, the first group that took part; of one without, the whole match; without a pattern, the
    whole text. White space at the ends is dropped. None where nothing matches.

    >>> extracted(r"Answer: (\w+)", "Answer: 4. No, Answer: 5")
    '5'
    """
    if pattern is None:
        return text.strip()
    found = [match for match in re.finditer(pattern, text) if match[0]]
    if not found:
        return None
    return next((group for group in found[-1].groups() if group is not None), found[-1][0]).strip()


def numbers(text: str) -> tuple[Fraction, ...]:
    """The numbers in a text, exactly: 1,200  -$3.50  50%  3/4  1e3  .5

    A percent or currency sign is dropped, so 50% is 50. What is over 0, or too long to read, is no number.

    >>> [str(x) for x in numbers("from $1,200.50 to -3/4, or 1e3")]
    ['2401/2', '-3/4', '1000']
    """
    found: list[Fraction] = []
    for match in _NUMBER.finditer(text):
        mantissa = match["digits"].replace(",", "")
        try:  # int() refuses more than 4,300 digits with a ValueError
            value = Fraction(f"{mantissa}e{match['exponent'] or 0}") / Fraction(match["over"] or 1)
        except (ValueError, ZeroDivisionError):
            continue
        found.append(-value if match["sign"] in ("-", "−") else value)
    return tuple(found)


def gold_text(gold: Any, pattern: str | None) -> str:
    """The part of what a data row gives as the right answer that ``extracted`` finds there.

    Raises:
        ValueError: it is neither text nor a number (a NaN is none), or there is nothing.
    """
    if isinstance(gold, bool) or not isinstance(gold, (str, int, float)) or gold != gold:
        raise ValueError(f"the gold answer {gold!r} is neither text nor a number")
    text = extracted(pattern, str(gold))
    if text is None:
        raise ValueError(f"gold_extract {pattern!r} finds nothing in the gold answer {gold!r}")
    if not text:
        raise ValueError(f"no gold answer in {gold!r}")
    return text


def gold_number(gold: Any, pattern: str | None) -> Fraction:
    """The number in the gold text.

    Raises:
        ValueError: there is not exactly one.
    """
    text = gold_text(gold, pattern)
    found = numbers(text)
    if len(found) != 1:
        hint = "; name the one that counts with gold_extract" if found else ""
        raise ValueError(f"the gold answer {text!r} has {len(found)} numbers and should have one{hint}")
    return found[0]
