"""Runs a policy's program in its sandbox, and answers what the tests ask of it over standard input and output.

Requests name an object by number (0 is the program's module): ``attribute``, ``assign``, ``call`` and ``special`` (one
of Python's own methods, such as ``__len__``). Whatever the program does here, all that it can send is an answer, and an
answer is read as plain data.
"""

import builtins
import os
import sys
import types

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from confine import confined
from wire import decoded, encoded, received, sent

NAME = "solution"


class Program:
    """The program's module, the objects that the tests know by number, and the way to them."""

    def __init__(self, requests, answers):
        self.requests, self.answers = requests, answers
        self.module = types.ModuleType(NAME)
        self.objects = [self.module]
        self.numbers = {id(self.module): 0}

    def number(self, value) -> int:
        """The number of an object, which from now on stays alive."""
        if id(value) not in self.numbers:
            self.numbers[id(value)] = len(self.objects)
            self.objects.append(value)
        return self.numbers[id(value)]

    def told(self, value):
        """A value as a message."""
        return encoded(value, self.object_told)

    def object_told(self, value):
        """An object as a message: its number, its class's name, and of a class of exceptions what it descends from."""
        error = isinstance(value, type) and issubclass(value, BaseException)
        name = value.__name__ if isinstance(value, type) else type(value).__name__
        return {"object": [self.number(value), str(name), lineage(value) if error else None]}

    def asked(self, message):
        """The value of a message."""
        return decoded(message, self.object_asked)

    def object_asked(self, kind, content):
        """An object by its number, or a function of the tests', which is called over there."""
        if kind == "object":
            return self.objects[content]
        if kind == "function":
            return lambda *args, **more: self.called_back(content, args, more)
        raise ValueError(f"unknown kind of value {kind!r}")

    def called_back(self, number, args, more):
        """What a function of the tests returns."""
        told = [self.told(each) for each in args], {name: self.told(v) for name, v in more.items()}
        sent(self.answers, {"function": number, "args": told[0], "more": told[1]})
        answer = received(self.requests)
        if "raised" in answer:
            found = getattr(builtins, answer["raised"], None)
            raise (found if isinstance(found, type) and issubclass(found, Exception) else RuntimeError)(answer["text"])
        return self.asked(answer["value"])

    def done(self, message):
        """What a request comes to, and the arguments as the program left them."""
        do, args = message["do"], [self.asked(each) for each in message.get("args", ())]
        if do == "load":
            sys.modules[NAME] = self.module
            exec(compile(message["source"], f"{NAME}.py", "exec"), self.module.__dict__)
            return [name for name in vars(self.module) if not name.startswith("_")], []
        target = self.objects[message["of"]]
        if do == "attribute":
            return getattr(target, message["name"]), []
        if do == "assign":
            return setattr(target, message["name"], args[0]), []
        more = {name: self.asked(each) for name, each in message.get("more", {}).items()}
        if do == "call":
            return target(*args, **more), [*args, *more.values()]
        return special(target, message["name"])(*args), []

    def answered(self, message):
        """The answer to a request: a value, or what was raised."""
        try:
            value, left = self.done(message)
            return {"value": self.told(value), "left": [self.told(each) for each in left]}
        except BaseException as error:
            try:
                return {"raised": self.object_told(type(error))["object"], "text": str(error)[:2000]}
            except BaseException:  # its own __str__ may do anything
                return {"raised": [0, "Exception", ["Exception"]], "text": ""}


def special(value, name):
    """One of Python's own methods of an object.

    Raises:
        TypeError: it has none of that name.
    """
    if name == "__bool__":  # every object has a truth, also without the method
        return lambda: bool(value)
    if not hasattr(type(value), name):
        raise TypeError(f"an object of the class {type(value).__name__} has no {name}")
    return types.MethodType(getattr(type(value), name), value)


def lineage(kind) -> list[str]:
    """The names of Python's own classes that a class of exceptions descends from, nearest first."""
    return [each.__name__ for each in kind.__mro__ if getattr(builtins, each.__name__, None) is each]


def main() -> None:
    """Answer requests until there are no more."""
    confined()
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    program = Program(requests, answers)
    while True:
        try:
            message = received(requests)
        except EOFError:
            os._exit(0)
        sent(answers, program.answered(message))


if __name__ == "__main__":
    main()
