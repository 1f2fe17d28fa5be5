"""Bounds of numeric arguments, as annotated types. The validation of a user's options reads them.

The functions do not check these bounds themselves: a proof may evaluate a function beyond them, at a limit for example.
"""

from typing import Annotated

from annotated_types import Ge, Gt, Interval

Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
UnitInterval = Annotated[float, Interval(ge=0, le=1)]
PositiveInt = Annotated[int, Ge(1)]
NonNegativeInt = Annotated[int, Ge(0)]
