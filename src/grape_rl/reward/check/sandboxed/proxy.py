"""Proxies of the program's objects in the tests' process: each use of a proxy is a request to the program's process.

A proxy is not plain data, whatever its class defines. It equals only itself and supports no arithmetic or comparison,
since methods written by the policy would decide the result. With ``objects`` the tests trust those methods.
"""

import builtins
import os
import select
import time
import types

from wire import decode_value, encode_value, receive, send


class UnsupportedTest(BaseException):
    """The tests need something that does not work across two processes: their fault, not the program's."""


class ProgramEnded(BaseException):
    """The program's process has ended or has used up its time."""


class ProgramError(Exception):
    """An exception of the program whose class is not a built-in."""


class ProgramLink:
    """The connection to the program's process, with the objects that have passed through it."""

    def __init__(self, answers: int, requests: int, seconds: float, objects: bool):
        self.answers, self.requests = os.fdopen(answers, "rb", buffering=0), os.fdopen(requests, "wb")
        self.seconds_left, self.objects = seconds, objects
        self.functions, self.errors, self.pending = [], {}, b""

    def readline(self, limit: int) -> bytes:
        """A line from the program, within the seconds that it has left."""
        while b"\n" not in self.pending and len(self.pending) < limit:
            start = time.monotonic()
            ready = select.select([self.answers], [], [], max(0.0, self.seconds_left))[0]
            self.seconds_left -= time.monotonic() - start
            if not ready:
                raise ProgramEnded("the program took too long")
            part = self.answers.read(2**16)
            if not part:
                raise ProgramEnded("the program ended")
            self.pending += part
        line, newline, self.pending = self.pending.partition(b"\n")
        return line + newline

    def request(self, **message):
        """The answer to a request. The program may call functions of the tests before it answers."""
        try:
            send(self.requests, message)
            answer = receive(self)
            while "function" in answer:
                send(self.requests, self.call_function(answer))
                answer = receive(self)
        except (OSError, EOFError, ValueError, AttributeError, TypeError) as error:
            raise ProgramEnded(f"the program broke the connection ({type(error).__name__})") from None
        if "raised" in answer:
            raise self.error_class(answer["raised"])(str(answer.get("text", "")))
        return answer

    def call_function(self, message):
        """Call a function of the tests for the program; return a message with its value or its exception."""
        try:
            args = [self.decode(arg) for arg in message["args"]]
            kwargs = {str(name): self.decode(value) for name, value in message["kwargs"].items()}
            return {"value": self.encode(self.functions[message["function"]](*args, **kwargs))}
        except Exception as error:
            return {"raised": type(error).__name__, "text": str(error)[:2000]}

    def encode(self, value):
        """A message that represents the value."""
        return encode_value(value, self.encode_object)

    def encode_object(self, value):
        """A reference to an object of the program, or to a function of the tests, by its number."""
        if type(value) is Proxy:
            return {"object": object.__getattribute__(value, "_number")}
        if isinstance(value, types.FunctionType | types.MethodType | types.BuiltinFunctionType | type):
            self.functions.append(value)
            return {"function": len(self.functions) - 1}
        raise UnsupportedTest(
            f"the tests pass an object of their class {type(value).__name__} to the program: only plain data and "
            "functions can be passed"
        )

    def decode(self, message):
        """The value of a message."""
        return decode_value(message, self.decode_object)

    def decode_object(self, kind, content):
        """A proxy of an object of the program, or the stand-in for one of its exception classes."""
        if kind != "object":
            raise ValueError("not a value")
        number, name, bases = content
        return self.error_class(content) if bases else Proxy(self, int(number), str(name))

    def error_class(self, content):
        """The class in this process that stands for an exception class of the program, so that tests can catch it."""
        number, name, bases = content
        classes = [getattr(builtins, str(base), None) for base in bases or ()]
        builtin = next((k for k in classes if isinstance(k, type) and issubclass(k, Exception)), Exception)
        if builtin.__name__ == name:
            return builtin
        if number not in self.errors:
            parents = (ProgramError,) if builtin is Exception else (ProgramError, builtin)
            self.errors[number] = type(str(name), parents, {})
        return self.errors[number]


def is_proxy(value) -> bool:
    """True if the value is an object of the program."""
    return type(value) is Proxy


class Proxy:
    """An object in the program's process."""

    def __init__(self, link, number, name):
        for attribute, value in (("_link", link), ("_number", number), ("_name", name)):
            object.__setattr__(self, attribute, value)

    def __getattr__(self, name):
        return self._link.decode(self._link.request(action="attribute", target=self._number, name=name)["value"])

    def __setattr__(self, name, value):
        self._link.request(action="assign", target=self._number, name=name, args=[self._link.encode(value)])

    def __call__(self, *args, **kwargs):
        link = self._link
        encoded_args = [link.encode(arg) for arg in args]
        encoded_kwargs = {name: link.encode(value) for name, value in kwargs.items()}
        answer = link.request(action="call", target=self._number, args=encoded_args, kwargs=encoded_kwargs)
        for argument, after in zip([*args, *kwargs.values()], answer["args_after"], strict=True):
            _update_container(argument, link, after)
        return link.decode(answer["value"])

    def _special(self, name, *args):
        link = self._link
        encoded_args = [link.encode(arg) for arg in args]
        return link.decode(link.request(action="special", target=self._number, name=name, args=encoded_args)["value"])

    def __eq__(self, other):
        if self is other or not is_proxy(other):
            return self is other
        return self._number == other._number or (self._link.objects and self._special("__eq__", other) is True)

    def __hash__(self):
        return hash(self._number)

    def __instancecheck__(self, value):
        return is_proxy(value) and self._special("__instancecheck__", value) is True

    def __iter__(self):
        iterator = self._special("__iter__")
        return iterator if is_proxy(iterator) else iter(iterator)

    def __repr__(self):
        return f"<{self._name} of the program>"


def _update_container(argument, link, after):
    """Copy the program's changes to a container argument back into the tests' container."""
    if type(argument) not in (list, dict, set, bytearray):
        return
    value = link.decode(after)
    if type(value) is type(argument) and value != argument:
        argument.clear()
        argument.extend(value) if isinstance(argument, list | bytearray) else argument.update(value)


def _forwarded(name):
    def method(self, *args):
        return self._special(name, *args)

    return method


def _operator(name):
    def method(self, *args):
        if not self._link.objects:
            raise TypeError(f"an object of the program's class {self._name} is not plain data")
        return self._special(name, *args)

    return method


for _name in ("len", "next", "getitem", "setitem", "delitem", "enter", "exit", "str", "bool"):
    setattr(Proxy, f"__{_name}__", _forwarded(f"__{_name}__"))
for _name in (
    *("lt", "le", "gt", "ge", "neg", "abs", "int", "float", "index", "round", "invert"),
    *(side + op for op in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor")
      for side in ("", "r")),
):  # fmt: skip
    setattr(Proxy, f"__{_name}__", _operator(f"__{_name}__"))
