"""Checks of a method when it is built, so that an error in it is reported before anything is loaded or sampled."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from grape_rl.schema import nearest
from grape_rl.sources.method_function import MethodFunction

PAGE_WIDTH = 100
"""Columns of the text that ``grape explain`` and ``grape algorithms`` print."""

EQUATION_WIDTH = PAGE_WIDTH - 6
"""Columns for one part of an equation: ``grape algorithms`` indents it by 6."""

SEPARATOR = ";  "
"""Separates the parts of an equation: each part is printed on a line of its own if one line is too short."""


def check_text(method: str, equation: str, derivation: str) -> None:
    """Check that a method's name can be a folder's name, and that its equation and derivation can be printed.

    Raises:
        ValueError: the name is not an identifier, or a line is too long.
    """
    if not method.isidentifier():
        raise ValueError(f"{method!r}: a method's name should be letters, digits and underscores, as in my_method")
    for part in equation.split(SEPARATOR):
        if len(part) > EQUATION_WIDTH or "\n" in part:
            raise ValueError(
                f"{method}: equation: a part has {len(part)} characters, but at most {EQUATION_WIDTH} fit on a line: "
                f"shorten it, or split it by {SEPARATOR!r} (a semicolon and two spaces): {' '.join(part.split())}"
            )
    for number, line in enumerate(derivation.split("\n"), 1):
        if len(line) > PAGE_WIDTH:
            raise ValueError(
                f"{method}: derivation: line {number} has {len(line)} characters, but at most {PAGE_WIDTH} fit"
            )


def function_faults(function: MethodFunction) -> tuple[str, ...]:
    """Faults in the parameters of a function, each with the function's name and the parameter's.

    Every parameter is an input, or an option: an option has a type (``float``, ``int``, ``bool``, ``str`` or a
    ``Literal``, with bounds from ``maths.bounds``) and a default within the bounds.
    """
    callable_, name = function.function, getattr(function.function, "__name__", repr(function.function))
    if not (inspect.isfunction(inspect.unwrap(callable_)) or inspect.isclass(callable_)) or name == "<lambda>":
        return (f"{name}: should be a function defined by def, or a class, so that it can be explained",)
    faults: list[str] = []
    unnamed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
    try:
        types = get_type_hints(callable_, include_extras=True)
    except Exception as error:
        return (f"{name}: its annotations cannot be read: {type(error).__name__}: {error}",)
    for key, parameter in function.parameters.items():
        if parameter.kind in unnamed:
            faults.append(
                f"{name}: parameter '{parameter}': inputs and options are passed by name: list each by its own"
            )
        elif key in function.inputs:
            continue
        elif parameter.default is parameter.empty:
            hint = nearest(key, sorted(function.inputs))
            faults.append(f"{name}: parameter {key!r} is not an input, and has no default as an option{hint}")
        elif key not in types:
            faults.append(
                f"{name}: option {key!r} has no type: annotate it, as in {key}: float = {parameter.default!r}"
            )
        elif fault := default_fault(types[key], parameter.default):
            faults.append(f"{name}: option {key!r}{fault}")
    return tuple(faults)


def default_fault(kind: Any, default: Any) -> str | None:
    """The end of an error message if a default is not a value of an option's type; None if it is one."""
    try:
        TypeAdapter(kind).validate_python(default)
    except ValidationError as error:
        return f" has the default {default!r}: {error.errors()[0]['msg']}"
    except PydanticSchemaGenerationError:
        return f" has the type {getattr(kind, '__name__', kind)}: an option should be a number, text or a Literal"
    return None


def check_functions(method: str, functions: Sequence[MethodFunction]) -> None:
    """Check the parameters of a method's functions.

    Raises:
        ValueError: the first fault.
    """
    for function in functions:
        for fault in function_faults(function):
            raise ValueError(f"{method}: {fault}")


def check_shared_options(
    method: str,
    functions: Sequence[MethodFunction],
    coefficients: Mapping[str, str],
    defaults: Mapping[str, Any],
) -> None:
    """Check that every option has one meaning.

    Two functions may share an option: its bounds are then those of both. ``coefficients`` maps the options that set a
    term's coefficient to the name of the term's function.

    Raises:
        ValueError: functions share an option of different types, or of different defaults that ``defaults`` does not
            settle; or an option of a function has the name of a coefficient.
    """
    first: dict[str, tuple[str, Any, Any]] = {}
    for function in functions:
        for option, (kind, default) in function.options.items():
            if option in coefficients:
                raise ValueError(
                    f"{method}: {function.name}: option {option!r} is also the coefficient of {coefficients[option]}: "
                    "rename one"
                )
            other, other_kind, other_default = first.setdefault(option, (function.name, kind, default))
            if base_type(kind) != base_type(other_kind):
                raise ValueError(
                    f"{method}: {function.name}: option {option!r} has another type than in {other}: rename one"
                )
            if default != other_default and option not in defaults:
                raise ValueError(
                    f"{method}: {function.name}: option {option!r} has the default {default!r}, but in {other} it is "
                    f"{other_default!r}: set it in the method's defaults, or rename one"
                )


def check_defaults(method: str, options: Mapping[str, tuple[Any, Any]], defaults: Mapping[str, Any]) -> None:
    """Check that the defaults that a method sets are values of its options.

    Raises:
        ValueError: there is no such option, or the value is out of bounds.
    """
    for option, default in defaults.items():
        if option not in options:
            raise ValueError(f"{method}: defaults: there is no option {option!r}{nearest(option, options)}")
        if fault := default_fault(options[option][0], default):
            raise ValueError(f"{method}: defaults: option {option!r}{fault}")


def base_type(kind: Any) -> Any:
    """An option's type without its bounds.

    >>> from grape_rl.maths.bounds import Share
    >>> base_type(Share), base_type(int)
    (<class 'float'>, <class 'int'>)
    """
    return kind.__origin__ if hasattr(kind, "__metadata__") else kind


def intersection(kind: Any, other: Any) -> Any:
    """The type whose values lie within the bounds of both types.

    >>> from grape_rl.maths.bounds import NonNegative, Share
    >>> TypeAdapter(intersection(NonNegative, Share)).validate_python(0.5)
    0.5
    """
    return kind if kind == other else Annotated[kind, *getattr(other, "__metadata__", ())]
