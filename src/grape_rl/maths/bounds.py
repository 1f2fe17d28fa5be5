"""Which numbers an argument may be, where not every one makes sense: read by what checks a user's options.

A function does not look at them itself: how far a proof goes beyond them, to a limit say, is the proof's affair.
"""

from typing import Annotated

from annotated_types import Ge, Gt, Interval

Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Interval(ge=0, le=1)]
AtLeastOne = Annotated[int, Ge(1)]
Count = Annotated[int, Ge(0)]
