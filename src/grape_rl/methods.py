"""A method: one row of the table, with the source of its batches, the terms of its loss and its update.

A method's options are the keyword arguments of its functions, with their types, bounds and defaults. So every option
is part of an equation, and nothing is declared twice. A method may override the defaults of its functions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import create_model

from grape_rl.maths.bounds import NonNegative
from grape_rl.maths.reduction import Reduction
from grape_rl.method_checks import (
    check_defaults,
    check_functions,
    check_losses,
    check_reduction,
    check_shared_options,
    check_text,
    check_update,
    intersection,
)
from grape_rl.schema import Strict, validated
from grape_rl.sources.method_function import MethodFunction
from grape_rl.sources.source import Source
from grape_rl.training.objective import Objective, Term, TermFunction
from grape_rl.training.update import gradient

UPDATE_INPUTS = frozenset({"model", "optimizer", "experience", "objective", "settings", "step", "warn", "memory"})
"""Inputs of an update."""


@dataclass(frozen=True)
class LossTerm:
    """One term of a method's loss.

    Attributes:
        function: the term per token, pair, labeled response or step.
        coefficient: its default coefficient.
        option: the option that sets its coefficient; "" if the coefficient is fixed.
    """

    function: TermFunction
    coefficient: float = 1.0
    option: str = ""


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        name: its name.
        summary: one sentence on what it does.
        equation: its loss or gradient.
        paper: the papers that it is from.
        source: the source of its batches.
        terms: the terms of its loss.
        reduction: how tokens are weighted; None for terms per pair, labeled response or step, which are averaged.
        defaults: defaults of options, if other than the functions'. Two methods may differ in nothing else: Dr. GRPO is
            GRPO with other defaults.
        update: the function that updates the weights from a step's experience.
        online_of: the name of the method whose loss this one applies to sampled pairs; "" for all other methods.
        derivation: how the loss follows from the objective, for ``grape explain``; "" for a method of the table, whose
            derivation is a file of ``derivations/``.
    """

    name: str
    summary: str
    equation: str
    paper: str
    source: Source
    terms: tuple[LossTerm, ...]
    reduction: Reduction | None
    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])
    update: Callable[..., dict[str, float]] = gradient
    online_of: str = ""
    derivation: str = ""

    def __post_init__(self) -> None:
        """Check the method, so that an error in it is reported where it is written.

        Raises:
            ValueError: one line, which starts with the method's name.
        """
        check_text(self.name, self.equation, self.derivation)
        check_functions(self.name, self.functions)
        check_losses(self.name, [MethodFunction(term.function, self.source.loss_fields) for term in self.terms])
        coefficients = [(term.option, term.function.__name__, term.coefficient) for term in self.terms if term.option]
        check_shared_options(self.name, self.functions, coefficients, self.defaults)
        check_defaults(self.name, method_options(self), self.defaults)
        check_reduction(self.name, self.reduction, self.source.loss_fields)
        check_update(self.name, self.update, self.source.loss_fields)

    @property
    def page(self) -> str:
        """The file name of the demo configuration and of the derivation; all online forms share one name."""
        return "online" if self.online_of else self.name

    @property
    def update_function(self) -> MethodFunction:
        """The update with its inputs."""
        return MethodFunction(self.update, UPDATE_INPUTS)

    @property
    def functions(self) -> tuple[MethodFunction, ...]:
        """The functions that the method consists of, in the order in which they run."""
        terms = (MethodFunction(term.function, self.source.loss_fields) for term in self.terms)
        return (*self.source.functions, *terms, self.update_function)


def method_options(method: Method) -> dict[str, tuple[Any, Any]]:
    """The method's options: name → (type with its bounds, default).

    An option that several functions share has the bounds of them all.
    """
    options: dict[str, tuple[Any, Any]] = {}
    for function in method.functions:
        for name, (kind, default) in function.options.items():
            options[name] = (intersection(options[name][0], kind) if name in options else kind, default)
    options |= {term.option: (NonNegative, term.coefficient) for term in method.terms if term.option}
    if method.reduction:
        options["reduction"] = (Reduction, method.reduction)
    return options | {name: (options[name][0], default) for name, default in method.defaults.items() if name in options}


def resolve_options(method: Method, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of the method: those given, and the defaults of the rest.

    Raises:
        ValueError: an option that the method does not have, with the nearest name; or a value of the wrong type or out
            of bounds.
    """
    known = method_options(method)
    # A default needs no check, and may be outside the bounds of given values, such as a threshold of -inf.
    given = {name: value for name, value in given.items() if name not in known or value != known[name][1]}
    model = create_model(f"{method.name} options", __base__=Strict, **known)  # pyright: ignore[reportCallIssue, reportArgumentType]
    return validated(model, given, f"options of {method.name}", {}).model_dump()


def build_objective(method: Method, options: Mapping[str, Any]) -> Objective:
    """The method's objective under these options, without the terms whose coefficient is 0.

    Raises:
        ValueError: every coefficient is 0.
    """
    terms = [
        Term(
            term.function,
            options.get(term.option, term.coefficient),
            MethodFunction(term.function, method.source.loss_fields).keywords(options),
        )
        for term in method.terms
    ]
    if not any(term.coefficient for term in terms):
        names = ", ".join(term.option for term in method.terms)
        raise ValueError(f"{method.name}: every loss has coefficient 0, so there is nothing to learn: set {names}")
    return Objective(tuple(term for term in terms if term.coefficient != 0), options.get("reduction"))
