"""Messages between the tests' process and the program's process: plain data by value, everything else by number.

A message is a line of JSON and decodes to plain data only, so nothing that the program sends can run code in the
tests' process. An object of the program is sent as a number, by which the tests request its attributes and calls.
"""

import json
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

MODULE_NAME = "solution"
"""The name by which the tests import the program."""

MAX_MESSAGE_BYTES = 16 * 2**20
"""The largest message, in bytes."""


def send(stream, message) -> None:
    """Write one message."""
    stream.write(json.dumps(message).encode() + b"\n")
    stream.flush()


def receive(stream):
    """Read one message.

    Raises:
        EOFError: the stream has ended, or the message exceeds MAX_MESSAGE_BYTES.
        ValueError: the message is not JSON.
    """
    line = stream.readline(MAX_MESSAGE_BYTES)
    if not line.endswith(b"\n"):
        raise EOFError("the stream ended within a message")
    return json.loads(line)


def encode_value(value, encode_object):
    """A value as JSON: instances of plain types (and of their subclasses) by value, the rest by ``encode_object``."""
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
        return {kind: [[encode_value(k, encode_object), encode_value(v, encode_object)] for k, v in dict.items(value)]}
    for kind in (list, tuple, set, frozenset, deque):
        if isinstance(value, kind):
            return {kind.__name__: [encode_value(entry, encode_object) for entry in value]}
    if type(value) is range:
        return {"range": [hex(n) for n in (value.start, value.stop, value.step)]}
    if type(value) in (Fraction, Decimal, datetime, date):
        return {type(value).__name__: value.isoformat() if isinstance(value, date) else str(value)}
    if type(value) is timedelta:
        return {"timedelta": [value.days, value.seconds, value.microseconds]}
    return encode_object(value)


def type_name(value) -> str:
    """The name of the plain type of a bytes-like value: a subclass counts as its base."""
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


def decode_value(message, decode_object) -> Any:
    """The value of a message; ``decode_object(kind, content)`` makes the values that are not plain data.

    Raises:
        ValueError: the message is not one of ``encode_value``.
    """
    if message is None or isinstance(message, bool | str):
        return message
    if not isinstance(message, dict) or len(message) != 1:
        raise ValueError("not a value")
    ((kind, content),) = message.items()
    if kind in _PLAIN:
        return _PLAIN[kind](content)
    if kind in _SEQUENCES:
        return _SEQUENCES[kind](decode_value(entry, decode_object) for entry in content)
    if kind in ("dict", "Counter", "OrderedDict", "defaultdict"):
        pairs = {decode_value(k, decode_object): decode_value(v, decode_object) for k, v in content}
        return {"Counter": Counter, "OrderedDict": OrderedDict}.get(kind, dict)(pairs)
    return decode_object(kind, content)
