"""The program's objects as the tests see them: each use is a question to the program's process.

An object is no plain data, whatever it says of itself: it equals nothing but itself, and takes part in no arithmetic
and no comparison, since its own methods would say what comes out of them. With ``objects`` the tests trust those.
"""

import builtins
import os
import select
import time
import types

from wire import decoded, encoded, received, sent


class Unsupported(BaseException):
    """The tests do what can't be done across two processes: their fault, not the program's."""


class Ended(BaseException):
    """The program's process is gone, or took too long."""


class ProgramError(Exception):
    """What the program raised, where that is no exception of Python's own."""


class Link:
    """The way to the program's process, and what came over it."""

    def __init__(self, answers: int, requests: int, seconds: float, objects: bool):
        self.answers, self.requests = os.fdopen(answers, "rb", buffering=0), os.fdopen(requests, "wb")
        self.left, self.objects = seconds, objects
        self.functions, self.errors, self.pending = [], {}, b""

    def readline(self, longest: int) -> bytes:
        """A line of the program's, within the seconds that are left to it."""
        while b"\n" not in self.pending and len(self.pending) < longest:
            began = time.monotonic()
            ready = select.select([self.answers], [], [], max(0.0, self.left))[0]
            self.left -= time.monotonic() - began
            if not ready:
                raise Ended("it took too long")
            part = self.answers.read(2**16)
            if not part:
                raise Ended("it ended")
            self.pending += part
        line, found, self.pending = self.pending.partition(b"\n")
        return line + found

    def asked(self, **message):
        """The answer to a request. Functions of the tests' that the program calls are run on the way."""
        try:
            sent(self.requests, message)
            answer = received(self)
            while "function" in answer:
                sent(self.requests, self.called(answer))
                answer = received(self)
        except (OSError, EOFError, ValueError, AttributeError, TypeError) as error:
            raise Ended(f"it broke off ({type(error).__name__})") from None
        if "raised" in answer:
            raise self.error(answer["raised"])(str(answer.get("text", "")))
        return answer

    def called(self, message):
        """What a function of the tests' returns to the program, or raises."""
        try:
            args = [self.value(each) for each in message["args"]]
            more = {str(name): self.value(each) for name, each in message["more"].items()}
            return {"value": self.told(self.functions[message["function"]](*args, **more))}
        except Exception as error:
            return {"raised": type(error).__name__, "text": str(error)[:2000]}

    def told(self, value):
        """A value as a message."""
        return encoded(value, self.object_told)

    def object_told(self, value):
        """The program's own object, or a function of the tests'."""
        if type(value) is Remote:
            return {"object": object.__getattribute__(value, "_number")}
        if isinstance(value, types.FunctionType | types.MethodType | types.BuiltinFunctionType | type):
            self.functions.append(value)
            return {"function": len(self.functions) - 1}
        raise Unsupported(f"an object of the class {type(value).__name__} of the tests' goes to the program")

    def value(self, message):
        """The value of a message."""
        return decoded(message, self.object_seen)

    def object_seen(self, kind, content):
        """An object of the program's; a class of exceptions as a class of one's own, to be caught by."""
        if kind != "object":
            raise ValueError("not a value")
        number, name, lineage = content
        return self.error(content) if lineage else Remote(self, int(number), str(name))

    def error(self, content):
        """The class of exceptions here that stands for one of the program's."""
        number, name, lineage = content
        found = [getattr(builtins, str(each), None) for each in lineage or ()]
        own = next((k for k in found if isinstance(k, type) and issubclass(k, Exception)), Exception)
        if own.__name__ == name:
            return own
        if number not in self.errors:
            bases = (ProgramError,) if own is Exception else (ProgramError, own)
            self.errors[number] = type(str(name), bases, {})
        return self.errors[number]


def plain(value) -> bool:
    """Whether it is nothing of the program's."""
    return type(value) is not Remote


class Remote:
    """An object in the program's process."""

    def __init__(self, link, number, name):
        for attribute, value in (("_link", link), ("_number", number), ("_name", name)):
            object.__setattr__(self, attribute, value)

    def __getattr__(self, name):
        return self._link.value(self._link.asked(do="attribute", of=self._number, name=name)["value"])

    def __setattr__(self, name, value):
        self._link.asked(do="assign", of=self._number, name=name, args=[self._link.told(value)])

    def __call__(self, *args, **more):
        link = self._link
        told = [link.told(each) for each in args], {name: link.told(each) for name, each in more.items()}
        answer = link.asked(do="call", of=self._number, args=told[0], more=told[1])
        for given, left in zip([*args, *more.values()], answer["left"], strict=True):
            _follow(given, link, left)
        return link.value(answer["value"])

    def _special(self, name, *args):
        link = self._link
        answer = link.asked(do="special", of=self._number, name=name, args=[link.told(each) for each in args])
        return link.value(answer["value"])

    def __eq__(self, other):
        if self is other or plain(other):
            return self is other
        return self._number == other._number or (self._link.objects and self._special("__eq__", other) is True)

    def __hash__(self):
        return hash(self._number)

    def __instancecheck__(self, value):
        return not plain(value) and self._special("__instancecheck__", value) is True

    def __iter__(self):
        found = self._special("__iter__")
        return found if type(found) is Remote else iter(found)

    def __repr__(self):
        return f"<{self._name} of the program>"


def _follow(given, link, left):
    """Let a container that was passed hold what the program left in it."""
    if type(given) not in (list, dict, set, bytearray):
        return
    now = link.value(left)
    if type(now) is type(given) and now != given:
        given.clear()
        given.extend(now) if isinstance(given, list | bytearray) else given.update(now)


def _passed_on(name):
    def method(self, *args):
        return self._special(name, *args)

    return method


def _operator(name):
    def method(self, *args):
        if not self._link.objects:
            raise TypeError(f"an object of the program's class {self._name} is no plain data")
        return self._special(name, *args)

    return method


for _name in ("len", "next", "getitem", "setitem", "delitem", "enter", "exit", "str", "bool"):
    setattr(Remote, f"__{_name}__", _passed_on(f"__{_name}__"))
for _name in (
    *("lt", "le", "gt", "ge", "neg", "abs", "int", "float", "index", "round", "invert"),
    *(side + each for each in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor")
      for side in ("", "r")),
):  # fmt: skip
    setattr(Remote, f"__{_name}__", _operator(f"__{_name}__"))
