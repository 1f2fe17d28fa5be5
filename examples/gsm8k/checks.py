"""A user-defined check for GSM8K: the arithmetic in calculator marks such as ``<<48/2=24>>``."""

import ast
import re
from fractions import Fraction

from grape_rl.types import Response

_MAX_LENGTH = 200  # characters of a mark; people write shorter calculations
_PERCENT = re.compile(r"(\d+\.?\d*|\.\d+)%")
_RESULT = re.compile(r"-?[$]?(\d+\.?\d*|\.\d+)(/\d+)?")  # no exponents: 1e999999999 is too large to compute
_OPERATION = re.compile(r"[\d.)%][ ]*[-+*/]")


def calculator_marks(response: Response) -> float:
    """1 if the result in every calculator mark is correct and at least one mark is a calculation, else 0.

    The data also marks numbers copied from the question, ``<<12=12>>``: correct, but not a calculation.
    """
    marks = re.findall(r"<<(.*?)>>", response.text)
    return float(any(_OPERATION.search(mark) for mark in marks) and all(_right(mark) for mark in marks))


def _right(mark: str) -> bool:
    """True if ``work = result`` holds. A decimal result may be rounded; an integer result must be exact."""
    sides = [side.strip() for side in mark.replace(",", "").split("=")]
    if len(mark) > _MAX_LENGTH or len(sides) != 2 or not _RESULT.fullmatch(sides[1]):
        return False
    work, result = sides[0], sides[1].replace("$", "")
    try:
        value = _value(ast.parse(_PERCENT.sub(r"(\1/100)", work), mode="eval").body)
        off = abs(value - Fraction(result))
    except (ValueError, SyntaxError, ZeroDivisionError):
        return False
    decimals = len(result.partition(".")[2])
    rounding = Fraction(1, 2 * 10**decimals) if decimals else 0
    noise = abs(value) / 10**9  # the calculator works in floating point: 0.1+0.2=0.30000000000000004
    return off <= max(rounding, noise)


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int() | float() as number):
            return Fraction(str(number))  # True and inf raise ValueError
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand)
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _value(left), _value(right)
            match op:
                case ast.Add():
                    return a + b
                case ast.Sub():
                    return a - b
                case ast.Mult():
                    return a * b
                case ast.Div():
                    return a / b
                case ast.FloorDiv():
                    return Fraction(a // b)
    raise ValueError(f"not arithmetic: {ast.dump(node)}")
