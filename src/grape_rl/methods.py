"""What a method is: a row of a table, that says where its batches come from and which functions make its loss.

A row's options are the keyword arguments of its functions, with their types and defaults: what can be set is what the
equation has, and nothing is declared twice. Where a row means another default than its function does, it says so.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, get_type_hints

from pydantic import create_model
from torch import Tensor

from grape_rl.data.comparisons import tokenize_comparisons
from grape_rl.data.steps import tokenize_solutions
from grape_rl.maths.bounds import NonNegative
from grape_rl.maths.reduction import Reduction
from grape_rl.rollout.dynamic_sampling import single_draw
from grape_rl.rollout.scored_rollout import ScoredRollout
from grape_rl.schema import Strict, validated
from grape_rl.training.objective import TOKEN_FIELDS, Objective, Term, TermFunction
from grape_rl.training.update import gradient
from grape_rl.training.value import ValueFunctionOptions

Functions = tuple[Callable[..., Any], ...]


@dataclass(frozen=True)
class Demonstrations:
    """Batches are read from data: prompts with the completions to imitate, each with advantage 1."""

    data: ClassVar[str] = "demonstrations (prompt, completion)"
    """What a user brings, in a few words: every kind of source says it."""
    functions: ClassVar[Functions] = ()
    """Those that make a batch, in the order in which they run: every kind of source has them."""


@dataclass(frozen=True)
class Memory:
    """A number that each step leaves to the next, by its function's name; ``start`` is before the first step."""

    function: Callable[..., float]
    start: float


@dataclass(frozen=True)
class Responses:
    """Batches are sampled from the model: ``aggregate`` makes rewards of verdicts, ``advantage`` compares them.

    ``compared`` is for a method whose advantage is made of the verdicts in another way than the reward that is told.
    ``draws`` says whether prompts are drawn once, or again where there is nothing to compare. ``smallest_group`` is how
    many responses a prompt needs at least. ``off_policy_ok``: the method may learn from responses that top-k or top-p
    cut, or that another temperature drew, since it imitates them; a policy gradient may not, for its tokens must come
    from the policy itself.

    ``running`` makes what a batch leaves of the confidence in each item, for an ``aggregate`` of which the option
    ``scope`` can be "running", and that is given those means as ``running``.

    ``token_reward`` gives rewards to tokens, less the KL to the reference. ``rescaled`` sets the scale of tokens'
    advantages. ``value`` is how a method's value function is set, for one that has it, and ``remembers`` what a step
    leaves to the next: see ``training.credit``.
    """

    data: ClassVar[str] = "prompts, a reward"

    advantage: Callable[..., Tensor]
    aggregate: Callable[..., Tensor]
    draws: Callable[..., ScoredRollout] = single_draw
    smallest_group: int = 1
    off_policy_ok: bool = False
    compared: Callable[..., Tensor] | None = None
    running: Callable[..., Tensor] | None = None
    token_reward: Callable[..., Tensor] | None = None
    rescaled: Callable[..., Tensor] | None = None
    value: Callable[..., ValueFunctionOptions] | None = None
    remembers: tuple[Memory, ...] = ()

    @property
    def functions(self) -> Functions:
        """Those that make a batch, in the order in which they run."""
        scored = (self.draws, self.aggregate, self.compared, self.running, self.token_reward)
        estimate_advantages = (self.value, self.advantage, self.rescaled, *(each.function for each in self.remembers))
        return tuple(each for each in (*scored, *estimate_advantages) if each)


@dataclass(frozen=True)
class Preferences:
    """Batches are read from data: prompts, each with a chosen and a rejected response."""

    data: ClassVar[str] = "pairs (prompt, chosen, rejected)"
    functions: ClassVar[Functions] = ()


@dataclass(frozen=True)
class SampledPreferences:
    """Pairs are made of the model's own responses: ``aggregate`` makes rewards of verdicts, ``pairing`` pairs of those.

    The losses compare log-probs of the pair with each other and the reference, never with the policy that sampled, so
    that top-k and top-p may cut the sampler.
    """

    data: ClassVar[str] = "prompts, a reward"
    pairing: Callable[..., Tensor]
    aggregate: Callable[..., Tensor]
    smallest_group: int = 2
    compared: ClassVar[None] = None

    @property
    def functions(self) -> Functions:
        """Those that make a batch, in the order in which they run."""
        return (self.aggregate, self.pairing)


Sampled = Responses | SampledPreferences
"""Sources that sample from the model being trained, and have the responses scored."""


@dataclass(frozen=True)
class Comparisons:
    """As ``Preferences``, for a model that scores responses in place of writing them. ``encoded`` makes the tokens."""

    data: ClassVar[str] = "pairs (prompt, chosen, rejected)"
    encoded: Callable[..., Any] = tokenize_comparisons

    @property
    def functions(self) -> Functions:
        """What makes a batch."""
        return (self.encoded,)


@dataclass(frozen=True)
class Steps:
    """Batches are read from data: solutions whose every step is labeled right or wrong, for a model that scores.

    ``encoded`` makes the tokens of them.
    """

    data: ClassVar[str] = "solutions in steps (prompt, completions, labels)"
    encoded: Callable[..., Any] = tokenize_solutions

    @property
    def functions(self) -> Functions:
        """What makes a batch."""
        return (self.encoded,)


@dataclass(frozen=True)
class Labels:
    """Batches are read from data: prompts, each with a response that is labeled desirable or not."""

    data: ClassVar[str] = "labeled responses (prompt, completion, label)"
    functions: ClassVar[Functions] = ()


Source = Demonstrations | Responses | Preferences | SampledPreferences | Labels | Comparisons | Steps
"""Where a method's batches come from."""


@dataclass(frozen=True)
class LossTerm:
    """A loss term of a row. ``option`` names the option that sets its coefficient (0 or more), where it has one."""

    function: TermFunction
    coefficient: float = 1.0
    option: str = ""


@dataclass(frozen=True)
class Method:
    """One row of the table.

    ``reduction`` is None where the terms are per pair, labeled response or step, whose plain mean is taken.
    ``defaults`` are the row's own for options of its functions. Two rows may differ in nothing else: Dr. GRPO is GRPO
    with other defaults. ``online_of`` names the row, if any, whose loss this one takes to sampled pairs.
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

    @property
    def page(self) -> str:
        """The name that its demo's configuration and its derivation are filed under: online forms share theirs."""
        return "online" if self.online_of else self.name

    @property
    def functions(self) -> tuple[Callable[..., Any], ...]:
        """The functions that the row is composed of, in the order in which they run."""
        return (*self.source.functions, *(term.function for term in self.terms), self.update)


def options(row: Method) -> dict[str, tuple[Any, Any]]:
    """What a user may set of a method: name → (type, default), from its functions' own keyword arguments.

    Raises:
        ValueError: the row has a default for an option that none of its functions has.
    """
    found: dict[str, tuple[Any, Any]] = {}
    given = {*TOKEN_FIELDS, *start_memory(row), "running"}
    for function in row.functions:
        hints = get_type_hints(function, include_extras=True)
        for parameter in inspect.signature(function).parameters.values():
            if parameter.default is not parameter.empty and parameter.name not in given:
                found[parameter.name] = (hints[parameter.name], parameter.default)
    found |= {term.option: (NonNegative, term.coefficient) for term in row.terms if term.option}
    if row.reduction:
        found["reduction"] = (Reduction, row.reduction)
    if unknown := row.defaults.keys() - found.keys():
        raise ValueError(f"{row.name}: has a default for {sorted(unknown)}, and its options are {', '.join(found)}")
    return found | {name: (found[name][0], default) for name, default in row.defaults.items()}


def resolve_options(row: Method, given: dict[str, Any]) -> dict[str, Any]:
    """The row's options with what was given laid over the defaults.

    Raises:
        ValueError: an option that the method has not (with the nearest), or a value of the wrong type.
    """
    model = create_model(f"{row.name} options", __base__=Strict, **options(row))  # pyright: ignore[reportCallIssue, reportArgumentType]
    return validated(model, given, f"options of {row.name}", {}).model_dump()


def keywords(function: Callable[..., Any], chosen: dict[str, Any]) -> dict[str, Any]:
    """Those of the chosen options that are the function's: its field ``entropy`` is not the option of that name."""
    own = chosen.keys() - set(TOKEN_FIELDS)
    return {name: chosen[name] for name in inspect.signature(function).parameters if name in own}


def start_memory(row: Method) -> dict[str, float]:
    """What the first step finds where later ones find what the last one left."""
    remembers = row.source.remembers if isinstance(row.source, Responses) else ()
    return {each.function.__name__: each.start for each in remembers}


def in_force(chosen: dict[str, Any], memory: Mapping[str, Any]) -> dict[str, Any]:
    """The chosen options with the KL's coefficients times the ``kl_scale`` that the last step left."""
    scale = memory.get("kl_scale", 1.0)
    return chosen | {name: chosen[name] * scale for name in ("kl", "kl_in_reward") if name in chosen}


def objective(row: Method, chosen: dict[str, Any]) -> Objective:
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
