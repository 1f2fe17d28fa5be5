"""Checks of a method when it is built, so that an error in it is reported before anything is loaded or sampled."""

import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from grape_rl.maths.reduction import Reduction
from grape_rl.rollout.experience import TokenExperience
from grape_rl.schema import Strict, nearest
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
        ValueError: the name is not an identifier, or a line is too long or cannot be printed.
    """
    if not method.isidentifier():
        raise ValueError(f"{method!r}: a method's name should be letters, digits and underscores, as in my_method")
    for part in equation.split(SEPARATOR):
        if not part.isprintable():
            raise ValueError(f"{method}: equation: a part should be one line of printable characters: {part!r}")
        if len(part) > EQUATION_WIDTH:
            raise ValueError(
                f"{method}: equation: a part has {len(part)} characters, but at most {EQUATION_WIDTH} fit on a line: "
                f"shorten it, or split it by {SEPARATOR!r} (a semicolon and two spaces): {part}"
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
            faults.append(f"{name}: parameter '{parameter}': list each input and option by name")
        elif key in function.inputs:
            continue
        elif parameter.default is parameter.empty:
            hint = nearest(key, sorted(function.inputs))
            faults.append(f"{name}: parameter {key!r} is not an input, and has no default as an option{hint}")
        elif key.startswith("_") or hasattr(Strict, key):
            faults.append(f"{name}: option {key!r}: a name that options cannot have: rename it")
        elif key not in types:
            faults.append(f"{name}: option {key!r} has no type: write {key}: float = {parameter.default!r}, or another")
        elif fault := default_fault(types[key], parameter.default):
            faults.append(f"{name}: option {key!r}{fault}")
    return tuple(faults)


def default_fault(kind: Any, default: Any) -> str | None:
    """The end of an error message if a default is not a value of an option's type; None if it is one."""
    base = base_type(kind)
    if base not in (bool, int, float, str) and get_origin(base) is not Literal:
        return f" has the type {getattr(base, '__name__', base)}, but should be bool, int, float, str or a Literal"
    if isinstance(default, float) and math.isnan(default):
        return " has the default nan: should be a number"
    try:
        TypeAdapter(kind).validate_python(default, strict=True)
    except ValidationError as error:
        return f" has the default {default!r}: {error.errors()[0]['msg']}"
    return None


def check_functions(method: str, functions: Sequence[MethodFunction]) -> None:
    """Check the parameters of a method's functions.

    Raises:
        ValueError: the first fault.
    """
    for function in functions:
        for fault in function_faults(function):
            raise ValueError(f"{method}: {fault}")


def check_losses(method: str, losses: Sequence[MethodFunction]) -> None:
    """Check that there is a loss, that no two have one name, and that each requires the inputs that it names.

    Raises:
        ValueError: the first fault.
    """
    if not losses:
        raise ValueError(f"{method}: terms: there is no loss")
    for i, loss in enumerate(losses):
        if loss.name in (other.name for other in losses[:i]):
            raise ValueError(f"{method}: terms: two losses have the name {loss.name}: rename one, or add both in one")
        for key in sorted(loss.reads):
            if loss.parameters[key].default is not inspect.Parameter.empty:
                raise ValueError(f"{method}: {loss.name}: input {key!r} has a default, so it would never be passed")


def check_shared_options(
    method: str,
    functions: Sequence[MethodFunction],
    coefficients: Sequence[tuple[str, str, float]],
    defaults: Mapping[str, Any],
) -> None:
    """Check that every option has one meaning.

    Two functions may share an option: its bounds are then those of both. ``coefficients`` lists the options that set a
    term's coefficient, each with the name of the term's function and the default.

    Raises:
        ValueError: functions share an option of different types, or of different defaults that ``defaults`` does not
            settle; an option of a function has the name of a coefficient or is ``reduction``; or a coefficient that an
            option sets is negative.
    """
    reserved = {"reduction": "the weighting of tokens"}
    reserved |= {option: f"the coefficient of {term}" for option, term, _ in coefficients}
    starts: dict[str, float] = {}
    for option, term, start in coefficients:
        if start < 0:
            raise ValueError(f"{method}: {term}: coefficient {option!r} has the default {start}: should be 0 or more")
        if starts.setdefault(option, start) != start and option not in defaults:
            raise ValueError(f"{method}: {term}: coefficient {option!r} has two defaults, {starts[option]} and {start}")
    first: dict[str, tuple[str, Any, Any]] = {}
    for function in functions:
        for option, (kind, default) in function.options.items():
            if option in reserved:
                raise ValueError(f"{method}: {function.name}: option {option!r} is also {reserved[option]}: rename one")
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


def check_reduction(method: str, reduction: str | None, loss_fields: Collection[str]) -> None:
    """Check that a loss per token has a reduction, and that no other loss has one.

    Raises:
        ValueError: there is a reduction without tokens, or none with tokens, or an unknown one.
    """
    known = get_args(Reduction)
    if reduction is not None and reduction not in known:
        raise ValueError(f"{method}: reduction: unknown {reduction!r}{nearest(reduction, known)}")
    if _per_token(loss_fields) and reduction is None:
        raise ValueError(f"{method}: reduction: a loss per token needs one: token, sequence or fixed_length")
    if reduction is not None and not _per_token(loss_fields):
        raise ValueError(f"{method}: reduction: should be None: the loss has no tokens, and its plain mean is taken")


def check_update(method: str, update: Callable[..., Any], loss_fields: Collection[str]) -> None:
    """Check that an update of tokens is not given another source's batches, nor another update tokens.

    Raises:
        ValueError: the type of the update's ``experience`` does not fit.
    """
    kind = get_type_hints(update).get("experience")
    if kind is not None and _per_token(loss_fields) != issubclass(kind, TokenExperience):
        raise ValueError(
            f"{method}: {update.__name__}: updates by {kind.__name__}, which the source does not make: choose an "
            "update of grape_rl.training: update.gradient for tokens, pairs.pair_gradient, labels.label_gradient, "
            "reward_modeling.comparison_gradient or step_gradient"
        )


def _per_token(loss_fields: Collection[str]) -> bool:
    return "mask" in loss_fields


def base_type(kind: Any) -> Any:
    """An option's type without its bounds.

    >>> from grape_rl.maths.bounds import UnitInterval
    >>> base_type(UnitInterval), base_type(int)
    (<class 'float'>, <class 'int'>)
    """
    return kind.__origin__ if hasattr(kind, "__metadata__") else kind


def intersection(kind: Any, other: Any) -> Any:
    """The type whose values lie within the bounds of both types.

    >>> from grape_rl.maths.bounds import NonNegative, UnitInterval
    >>> TypeAdapter(intersection(NonNegative, UnitInterval)).validate_python(0.5)
    0.5
    """
    return kind if kind == other else Annotated[kind, *getattr(other, "__metadata__", ())]
