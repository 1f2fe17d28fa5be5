"""A function of a method, with the names that a run passes to it."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, get_type_hints


@dataclass(frozen=True)
class MethodFunction:
    """A function of a method. Each of its parameters is one of the ``inputs``, or an option with a default.

    Attributes:
        function: the function, or a class.
        inputs: the names that a run can pass to it. The function takes those that it needs.
    """

    function: Callable[..., Any]
    inputs: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """The function's name."""
        return self.function.__name__

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The function's parameters by name."""
        return inspect.signature(self.function).parameters

    @property
    def reads(self) -> frozenset[str]:
        """The inputs that the function takes."""
        return self.inputs.intersection(self.parameters)

    @property
    def options(self) -> dict[str, tuple[Any, Any]]:
        """The function's options: name → (type with its bounds, default)."""
        hints = get_type_hints(self.function, include_extras=True)
        return {
            name: (hints[name], parameter.default)
            for name, parameter in self.parameters.items()
            if name not in self.inputs and parameter.default is not parameter.empty
        }

    def keywords(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The function's own among a method's options. An input with the name of an option is not one of them."""
        return {name: options[name] for name in self.parameters if name in options and name not in self.inputs}

    def bind(self, options: Mapping[str, Any]) -> Callable[..., Any]:
        """The function with its options bound."""
        return partial(self.function, **self.keywords(options))
