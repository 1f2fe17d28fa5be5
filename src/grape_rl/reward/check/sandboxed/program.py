"""Run a policy's program in its sandbox and answer the tests' requests on standard input and output.

A request names an object by number (0 is the program's module) and an action: ``attribute``, ``assign``, ``call`` or
``special`` (a special method such as ``__len__``). Whatever the program does in this process, its only output is
answers, and the tests decode an answer as plain data.
"""

import builtins
import os
import sys
import types

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from confine import confine
from wire import MODULE_NAME, decode_value, encode_value, receive, send


class Program:
    """The program's module, the objects that the tests refer to by number, and the streams to the tests."""

    def __init__(self, requests, answers):
        self.requests, self.answers = requests, answers
        self.module = types.ModuleType(MODULE_NAME)
        self.objects = [self.module]
        self.numbers = {id(self.module): 0}

    def number(self, value) -> int:
        """The number of an object, which is kept alive from now on."""
        if id(value) not in self.numbers:
            self.numbers[id(value)] = len(self.objects)
            self.objects.append(value)
        return self.numbers[id(value)]

    def encode(self, value):
        """A value as a message."""
        return encode_value(value, self.encode_object)

    def encode_object(self, value):
        """An object as a message: its number, its class name and, for an exception class, its built-in bases."""
        error = isinstance(value, type) and issubclass(value, BaseException)
        name = value.__name__ if isinstance(value, type) else type(value).__name__
        return {"object": [self.number(value), str(name), builtin_bases(value) if error else None]}

    def decode(self, message):
        """The value of a message."""
        return decode_value(message, self.decode_object)

    def decode_object(self, kind, content):
        """An object by its number, or a stand-in for a function of the tests, which runs in their process."""
        if kind == "object":
            return self.objects[content]
        if kind == "function":
            return lambda *args, **kwargs: self.call_back(content, args, kwargs)
        raise ValueError(f"unknown kind of value {kind!r}")

    def call_back(self, number, args, kwargs):
        """Call a function of the tests and return its result."""
        encoded_kwargs = {name: self.encode(value) for name, value in kwargs.items()}
        send(self.answers, {"function": number, "args": [self.encode(arg) for arg in args], "kwargs": encoded_kwargs})
        answer = receive(self.requests)
        if "raised" in answer:
            error = getattr(builtins, answer["raised"], None)
            raise (error if isinstance(error, type) and issubclass(error, Exception) else RuntimeError)(answer["text"])
        return self.decode(answer["value"])

    def perform(self, message):
        """The result of a request, and its arguments as the program left them."""
        action, args = message["action"], [self.decode(arg) for arg in message.get("args", ())]
        if action == "load":
            sys.modules[MODULE_NAME] = self.module
            exec(compile(message["source"], f"{MODULE_NAME}.py", "exec"), self.module.__dict__)
            return [name for name in vars(self.module) if not name.startswith("_")], []
        target = self.objects[message["target"]]
        if action == "attribute":
            return getattr(target, message["name"]), []
        if action == "assign":
            return setattr(target, message["name"], args[0]), []
        kwargs = {name: self.decode(value) for name, value in message.get("kwargs", {}).items()}
        if action == "call":
            return target(*args, **kwargs), [*args, *kwargs.values()]
        return special_method(target, message["name"])(*args), []

    def answer(self, message):
        """The answer to a request: a value, or the exception that was raised."""
        try:
            value, args_after = self.perform(message)
            return {"value": self.encode(value), "args_after": [self.encode(arg) for arg in args_after]}
        except BaseException as error:
            try:
                return {"raised": self.encode_object(type(error))["object"], "text": str(error)[:2000]}
            except BaseException:  # the exception's own __str__ may do anything
                return {"raised": [0, "Exception", ["Exception"]], "text": ""}


def special_method(value, name):
    """A special method of an object, such as ``__len__``, bound to it.

    Raises:
        TypeError: the object's class has no such method.
    """
    if name == "__bool__":  # defined for every object, with or without the method
        return lambda: bool(value)
    if not hasattr(type(value), name):
        raise TypeError(f"an object of the class {type(value).__name__} has no {name}")
    return types.MethodType(getattr(type(value), name), value)


def builtin_bases(kind) -> list[str]:
    """The names of the built-in classes that an exception class derives from, nearest first."""
    return [base.__name__ for base in kind.__mro__ if getattr(builtins, base.__name__, None) is base]


def main() -> None:
    """Answer requests until standard input closes."""
    confine()
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    program = Program(requests, answers)
    while True:
        try:
            message = receive(requests)
        except EOFError:
            os._exit(0)
        send(answers, program.answer(message))


if __name__ == "__main__":
    main()
