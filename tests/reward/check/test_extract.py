"""Answers and numbers extracted from text."""

import math
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grape_rl.reward.check.extract import extract_text, gold_number, parse_numbers


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        (None, "  a b\n", "a b"),
        ("A: (.*)", "A: 1\nA: 2 \n", "2"),  # the last, as a final answer comes last
        ("(.*)", "abc", "abc"),  # and not the empty match at the end
        (r"\d+", "1 22 x", "22"),  # without a group the whole match
        ("x(1)|y(2)", "x1 y2", "2"),  # the group that took part
        ("A: (.*)", "a: 1", None),
        ("A: (.*)", "A: ", ""),
    ],
)
def test_extract_text(pattern, text, found):
    assert extract_text(pattern, text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("72.", ["72"]),
        ("-28,800", ["-28800"]),
        ("$1,450,000.50", ["1450000.5"]),
        ("-$5 and $-5", ["-5", "-5"]),
        ("\N{MINUS SIGN}3", ["-3"]),
        ("+5", ["5"]),
        ("50%", ["50"]),
        ("3/4, 1 / 2", ["3/4", "1/2"]),
        ("1e3 1.5E-1", ["1000", "3/20"]),
        (".5 -.5", ["1/2", "-1/2"]),
        ("10-3", ["10", "3"]),
        ("(5)-3 50%-3", ["5", "3", "50", "3"]),
        ("x = -3", ["-3"]),
        ("- 5 apples", ["5"]),  # a list's dash is no sign
        ("1,20", ["1", "20"]),
        ("109,2000", ["109", "2000"]),
        ("12cm, 3rd", ["12", "3"]),
        ("R2D2 USD50", []),
        ("Rs.50", ["50"]),
        (r"**42** \boxed{43}", ["42", "43"]),
        ("1/0 inf nan none", []),
    ],
)
def test_notations_of_numbers(text, found):
    assert parse_numbers(text) == tuple(Fraction(number) for number in found)


@given(st.integers(), st.integers(0, 9), st.sampled_from(["{}", "${}", "({})", "it is {}.", "= {}%", "a\n{}\n"]))
def test_every_decimal_is_parsed_exactly(whole, places, frame):
    value = Fraction(whole, 10**places)
    sign = "-" if value < 0 else ""
    text = f"{abs(whole):0{places + 1}d}"
    plain = f"{text[: len(text) - places]}.{text[len(text) - places :]}" if places else text
    grouped = f"{int(plain.split('.')[0]):,}" + plain[len(plain.split(".")[0]) :]
    assert parse_numbers(frame.format(sign + plain)) == (value,)
    assert parse_numbers(frame.format(sign + grouped)) == (value,)


def test_a_hostile_number_is_skipped_at_once():
    start = time.perf_counter()
    assert parse_numbers("1" * 5000) == ()
    assert parse_numbers("1e999999999") == (1,)  # the exponent is not read, or 10**999999999 would be
    parse_numbers("1," * 20_000 + "1/" * 20_000 + "-" * 20_000)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    ("gold", "pattern", "number"),
    [
        (72, None, 72),
        (0.1, None, Fraction(1, 10)),
        (1e22, None, 10**22),
        ("72 apples", None, 72),
        ("2 + 2 = 4\n#### 4,000", "#### (.*)", 4000),
    ],
)
def test_gold_number(gold, pattern, number):
    assert gold_number(gold, pattern) == number


@pytest.mark.parametrize(
    ("gold", "pattern", "message"),
    [
        ("none", None, "has 0 numbers"),
        ("3 or 4", None, "has 2 numbers and should have one; select one with gold_extract"),
        (True, None, "gold answer True is neither text nor a number"),
        (None, None, "is neither text nor a number"),
        ({"n": 1}, None, "is neither text nor a number"),
        (math.nan, None, "gold answer nan is neither text nor a number"),
        (math.inf, None, "has 0 numbers"),
        (" ", None, "no gold answer in ' '"),
        ("#### ", "#### (.*)", "no gold answer in '#### '"),
        ("the 4", "#### (.*)", "finds nothing in the gold answer"),
    ],
)
def test_a_gold_answer_that_is_not_a_number_is_an_error(gold, pattern, message):
    with pytest.raises(ValueError, match=message):
        gold_number(gold, pattern)
