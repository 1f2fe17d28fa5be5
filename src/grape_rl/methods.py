"""What a method is: a row of a table, that says where its batches come from and which functions make its loss.

A row's options are the keyword arguments of its functions, with their types and defaults: what can be set is what the
equation has, and nothing is declared twice. Where a row means another default than its function does, it says so.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from pydantic import create_model
from torch import Tensor

from grape_rl.maths.reduction import Reduction
from grape_rl.reward.strict import Strict, validated
from grape_rl.training.draw import Drawn, once
from grape_rl.training.objective import FIELDS, Objective, Term, TermFunction
from grape_rl.training.update import gradient


@dataclass(frozen=True)
class Demonstrations:
    """Batches are read from data: prompts with the completions to imitate, each with advantage 1."""


@dataclass(frozen=True)
class Responses:
    """Batches are sampled from the model: ``aggregate`` makes rewards of verdicts, ``advantage`` compares them.

    ``draws`` says whether prompts are drawn once, or again where there is nothing to compare. ``smallest_group`` is how
    many responses a prompt needs at least. ``any_sampler``: the method may learn from responses that top-k or top-p
    cut, or that another temperature drew, since it imitates them; a policy gradient may not, for its tokens must come
    from the policy itself.
    """

    advantage: Callable[..., Tensor]
    aggregate: Callable[..., Tensor]
    draws: Callable[..., Drawn] = once
    smallest_group: int = 1
    any_sampler: bool = False


@dataclass(frozen=True)
class Preferences:
    """Batches are read from data: prompts, each with a chosen and a rejected response."""


@dataclass(frozen=True)
class Labels:
    """Batches are read from data: prompts, each with a response that is labelled desirable or not."""


@dataclass(frozen=True)
class RowTerm:
    """A loss term of a row. ``option`` names the option that sets its coefficient, where it has one."""

    function: TermFunction
    coefficient: float = 1.0
    option: str = ""


@dataclass(frozen=True)
class Algorithm:
    """One row of the table.

    ``reduction`` is None where the terms are per pair, or per labelled response, whose plain mean is taken.
    ``defaults`` are the row's own for options of its functions. Two rows may differ in nothing else: Dr. GRPO is GRPO
    with other defaults.
    """

    name: str
    summary: str
    equation: str
    paper: str
    source: Demonstrations | Responses | Preferences | Labels
    terms: tuple[RowTerm, ...]
    reduction: Reduction | None
    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])
    update: Callable[..., dict[str, float]] = gradient

    @property
    def functions(self) -> tuple[Callable[..., Any], ...]:
        """The functions that the row is composed of, in the order in which they run."""
        source = self.source
        parts = (source.draws, source.aggregate, source.advantage) if isinstance(source, Responses) else ()
        return (*parts, *(term.function for term in self.terms), self.update)


def options(row: Algorithm) -> dict[str, tuple[Any, Any]]:
    """What a user may set of a method: name → (type, default), from its functions' own keyword arguments.

    Raises:
        ValueError: the row has a default for an option that none of its functions has.
    """
    found: dict[str, tuple[Any, Any]] = {}
    for function in row.functions:
        hints = get_type_hints(function, include_extras=True)
        for parameter in inspect.signature(function).parameters.values():
            if parameter.default is not parameter.empty and parameter.name not in FIELDS:
                found[parameter.name] = (hints[parameter.name], parameter.default)
    found |= {term.option: (float, term.coefficient) for term in row.terms if term.option}
    if row.reduction:
        found["reduction"] = (Reduction, row.reduction)
    if unknown := row.defaults.keys() - found.keys():
        raise ValueError(f"{row.name}: has a default for {sorted(unknown)}, and its options are {', '.join(found)}")
    return found | {name: (found[name][0], default) for name, default in row.defaults.items()}


def chosen_options(row: Algorithm, given: dict[str, Any]) -> dict[str, Any]:
    """The row's options with what was given laid over the defaults.

    Raises:
        ValueError: an option that the method has not (with the nearest), or a value of the wrong type.
    """
    model = create_model(f"{row.name} options", __base__=Strict, **options(row))  # pyright: ignore[reportCallIssue, reportArgumentType]
    return validated(model, given, f"options of {row.name}", {}).model_dump()


def keywords(function: Callable[..., Any], chosen: dict[str, Any]) -> dict[str, Any]:
    """Those of the chosen options that are the function's: its field ``entropy`` is not the option of that name."""
    own = chosen.keys() - set(FIELDS)
    return {name: chosen[name] for name in inspect.signature(function).parameters if name in own}


def objective(row: Algorithm, chosen: dict[str, Any]) -> Objective:
    """The row's objective under the chosen options, without the terms whose coefficient is 0.

    Raises:
        ValueError: no term is left.
    """
    terms = [
        Term(term.function, chosen.get(term.option, term.coefficient), keywords(term.function, chosen))
        for term in row.terms
    ]
    if not any(term.coefficient for term in terms):
        options = ", ".join(term.option for term in row.terms)
        raise ValueError(f"{row.name}: every loss has the weight 0, so that there is nothing to learn: set {options}")
    return Objective(tuple(t for t in terms if t.coefficient != 0), chosen.get("reduction"))
