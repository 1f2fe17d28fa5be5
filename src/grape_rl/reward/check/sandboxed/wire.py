"""Values between the process of the tests and that of the program: plain data by value, everything else by number.

Messages are lines of JSON. What is read is made of plain data alone, so nothing that the program sends can run code
where the tests run. A program's object goes by a number, under which the tests may ask for its attributes and calls.
"""

import json
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

LONGEST = 16 * 2**20
"""The most bytes of one message."""


def sent(stream, message) -> None:
    """Write one message."""
    stream.write(json.dumps(message).encode() + b"\n")
    stream.flush()


def received(stream):
    """Read one message.

    Raises:
        EOFError: the other side is gone, or its message is over LONGEST.
        ValueError: it is no JSON.
    """
    line = stream.readline(LONGEST)
    if not line.endswith(b"\n"):
        raise EOFError("the other side ended")
    return json.loads(line)


def encoded(value, other):
    """A value as JSON: plain data by its value, whatever class it is of; the rest as ``other`` says."""
    if value is None or value is True or value is False:
        return value
    if isinstance(value, int):
        return {"int": hex(int(value))}
    if isinstance(value, float):
        return {"float": float(value).hex()}
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bytes | bytearray):
        return {type_name(value): bytes(value).hex()}
    if isinstance(value, complex):
        return {"complex": [float.hex(value.real), float.hex(value.imag)]}
    if isinstance(value, dict):
        kind = next(k for k in (Counter, OrderedDict, defaultdict, dict) if isinstance(value, k)).__name__
        return {kind: [[encoded(k, other), encoded(v, other)] for k, v in dict.items(value)]}
    for kind in (list, tuple, set, frozenset, deque):
        if isinstance(value, kind):
            return {kind.__name__: [encoded(each, other) for each in value]}
    if type(value) is range:
        return {"range": [hex(n) for n in (value.start, value.stop, value.step)]}
    if type(value) in (Fraction, Decimal, datetime, date):
        return {type(value).__name__: value.isoformat() if isinstance(value, date) else str(value)}
    if type(value) is timedelta:
        return {"timedelta": [value.days, value.seconds, value.microseconds]}
    return other(value)


def type_name(value) -> str:
    """The plain type of bytes."""
    return "bytearray" if isinstance(value, bytearray) else "bytes"


_SEQUENCES = {kind.__name__: kind for kind in (list, tuple, set, frozenset, deque)}
_PLAIN = {
    "int": lambda v: int(v, 16),
    "float": float.fromhex,
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "complex": lambda v: complex(float.fromhex(v[0]), float.fromhex(v[1])),
    "range": lambda v: range(*(int(n, 16) for n in v)),
    "Fraction": Fraction,
    "Decimal": Decimal,
    "date": date.fromisoformat,
    "datetime": datetime.fromisoformat,
    "timedelta": lambda v: timedelta(*v),
}


def decoded(message, other) -> Any:
    """The value of a message; ``other(kind, content)`` makes what is no plain data.

    Raises:
        ValueError: it is no message of ``encoded``.
    """
    if message is None or isinstance(message, bool | str):
        return message
    if not isinstance(message, dict) or len(message) != 1:
        raise ValueError("not a value")
    ((kind, content),) = message.items()
    if kind in _PLAIN:
        return _PLAIN[kind](content)
    if kind in _SEQUENCES:
        return _SEQUENCES[kind](decoded(each, other) for each in content)
    if kind in ("dict", "Counter", "OrderedDict", "defaultdict"):
        plain = {decoded(k, other): decoded(v, other) for k, v in content}
        return {"Counter": Counter, "OrderedDict": OrderedDict}.get(kind, dict)(plain)
    return other(kind, content)
