"""A check of one's own for GSM8K: the arithmetic between the calculator marks ``<<48/2=24>>``."""

import ast
import re
from fractions import Fraction

from grape_rl.types import Response

_LONGEST = 200  # characters of a mark; a longer one is no calculation that a person would write
_PERCENT = re.compile(r"(\d+\.?\d*|\.\d+)%")
_RESULT = re.compile(r"-?[$]?(\d+\.?\d*|\.\d+)(/\d+)?")  # 1e999999999 would be a number too, if never one to compute
_OPERATION = re.compile(r"[\d.)%][ ]*[-+*/]")


def calculator_marks(response: Response) -> float:
    """1 if the result in every calculator mark is right and one of them at least is a calculation, else 0.

    The data marks some numbers that it only reads off the question, ``<<12=12>>``: no fault, but no calculation.
    """
    marks = re.findall(r"<<(.*?)>>", response.text)
    return float(any(_OPERATION.search(mark) for mark in marks) and all(_right(mark) for mark in marks))


def _right(mark: str) -> bool:
    """Whether ``work = result`` holds. A result with decimals may be rounded to them; a whole one has to be exact."""
    sides = [side.strip() for side in mark.replace(",", "").split("=")]
    if len(mark) > _LONGEST or len(sides) != 2 or not _RESULT.fullmatch(sides[1]):
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
            return Fraction(str(number))  # of True or inf a ValueError
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
    raise ValueError(f"no arithmetic: {ast.dump(node)}")
