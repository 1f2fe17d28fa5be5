"""The table of methods. A method is a row: where its batches come from, and the functions that make its loss.

A row's options are the keyword arguments of its functions, with their types and defaults: what can be set is what the
equation has, and nothing is declared twice.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, get_type_hints

import torch
from jaxtyping import Float, Int
from pydantic import create_model
from torch import Tensor

from grape_rl.maths.advantage import baselined, best_of_group, group_relative
from grape_rl.maths.grape import confidence_weighted, mean_score
from grape_rl.maths.penalty import entropy_bonus, reference_kl
from grape_rl.maths.reduction import Reduction
from grape_rl.maths.surrogate import clipped, policy_gradient, ratio
from grape_rl.reward.strict import Strict, validated
from grape_rl.training.objective import FIELDS, Objective, Term, TermFunction
from grape_rl.training.trust_region import trust_region
from grape_rl.training.update import gradient


@dataclass(frozen=True)
class Demonstrations:
    """Batches are read from data: prompts with the completions to imitate, each with advantage 1."""


@dataclass(frozen=True)
class Responses:
    """Batches are sampled from the model: ``aggregate`` makes rewards of verdicts, ``advantage`` compares them.

    ``smallest_group`` is how many responses a prompt needs at least. ``any_sampler``: the method may learn from
    responses that top-k or top-p cut, or that another temperature drew, since it imitates them; a policy gradient may
    not, for its tokens must come from the policy itself.
    """

    advantage: Callable[..., Tensor]
    aggregate: Callable[..., Tensor]
    smallest_group: int = 1
    any_sampler: bool = False


@dataclass(frozen=True)
class RowTerm:
    """A loss term of a row. ``option`` names the option that sets its coefficient, where it has one."""

    function: TermFunction
    coefficient: float = 1.0
    option: str = ""


@dataclass(frozen=True)
class Algorithm:
    """One row of the table."""

    name: str
    summary: str
    equation: str
    paper: str
    source: Demonstrations | Responses
    terms: tuple[RowTerm, ...]
    reduction: Reduction
    update: Callable[..., dict[str, float]] = gradient

    @property
    def functions(self) -> tuple[Callable[..., Any], ...]:
        """The functions that the row is composed of, in the order in which they run."""
        source = self.source
        parts = (source.aggregate, source.advantage) if isinstance(source, Responses) else ()
        return (*parts, *(term.function for term in self.terms), self.update)


def options(row: Algorithm) -> dict[str, tuple[Any, Any]]:
    """What a user may set of a method: name → (type, default), from its functions' own keyword arguments."""
    found: dict[str, tuple[Any, Any]] = {}
    for function in row.functions:
        hints = get_type_hints(function, include_extras=True)
        for parameter in inspect.signature(function).parameters.values():
            if parameter.default is not parameter.empty and parameter.name not in FIELDS:
                found[parameter.name] = (hints[parameter.name], parameter.default)
    found |= {term.option: (float, term.coefficient) for term in row.terms if term.option}
    return found | {"reduction": (Reduction, row.reduction)}


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
    """The row's objective under the chosen options, without the terms whose coefficient is 0."""
    terms = [
        Term(term.function, chosen.get(term.option, term.coefficient), keywords(term.function, chosen))
        for term in row.terms
    ]
    return Objective(tuple(t for t in terms if t.coefficient != 0), chosen["reduction"])


def unweighted(
    score: Float[Tensor, "b k"], confidence: Float[Tensor, "b k"], weight: Float[Tensor, " k"], group: Int[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """``mean_score``: the rubric's weighted mean, whatever the confidence. A missing verdict stays missing."""
    return mean_score(torch.where(confidence.isnan(), confidence, score), weight, group)


_KL = RowTerm(reference_kl, 0.0, "kl")
_ENTROPY = RowTerm(entropy_bonus, 0.0, "entropy")

_ROWS = (
    Algorithm(
        name="sft",
        summary="Supervised fine-tuning: make the demonstrations likely.",
        equation="L = −mean_t log π_θ(y_t | x, y_<t), over the completion's tokens",
        paper="arXiv 2509.04501, SFT",
        source=Demonstrations(),
        terms=(RowTerm(policy_gradient),),
        reduction="token",
    ),
    Algorithm(
        name="rejection_sampling",
        summary="Sample several responses a prompt, keep the best, imitate those.",
        equation="y* = argmax_i R(x, y_i);  L = −mean_t log π_θ(y*_t | x, y*_<t)",
        paper="arXiv 2509.04501, rejection sampling; RAFT, arXiv 2304.06767",
        source=Responses(best_of_group, unweighted, any_sampler=True),
        terms=(RowTerm(policy_gradient),),
        reduction="token",
    ),
    Algorithm(
        name="reinforce",
        summary="The policy gradient itself: a response's reward, less a baseline, times its score.",
        equation="∇J = E[(R − b) Σ_t ∇ log π_θ(y_t | x, y_<t)]",
        paper="arXiv 2509.04501, REINFORCE; Williams 1992",
        source=Responses(baselined, unweighted),
        terms=(RowTerm(policy_gradient), _KL, _ENTROPY),
        reduction="fixed_length",
    ),
    Algorithm(
        name="trpo",
        summary="The policy gradient's step measured in KL: as far as the policy may change, and not in vain.",
        equation="maximise E[ρ_t A] subject to E[KL(π_old‖π_θ)] ≤ δ:  θ += √(2δ / gᵀF⁻¹g) F⁻¹g, shrunk until both hold",
        paper="arXiv 2509.04501, TRPO; Schulman et al., arXiv 1502.05477",
        source=Responses(baselined, unweighted),
        terms=(RowTerm(ratio), _KL, _ENTROPY),
        # A mean over the tokens, as the KL is one: the expectation over states of TRPO's eq. 14. The step does not
        # depend on the gradient's length, so "fixed_length", REINFORCE's own, would give the same one.
        reduction="token",
        update=trust_region,
    ),
    Algorithm(
        name="grpo",
        summary="PPO's clip with an advantage relative to the other responses to the same prompt.",
        equation="A_i = (R_i − mean R)/(std R + ε);  L = −mean_t min(ρ_t A, clip(ρ_t, 1−ε_low, 1+ε_high) A) + kl · k3",
        paper="arXiv 2509.04501, GRPO; DeepSeekMath, arXiv 2402.03300",
        source=Responses(group_relative, unweighted, smallest_group=2),
        terms=(RowTerm(clipped), _KL, _ENTROPY),
        reduction="sequence",
    ),
    Algorithm(
        name="grape",
        summary="Rubric items weighted by the critic's confidence in them, then GRPO's advantage and PPO's clip.",
        equation="R_i = Σ_k w_k c_k s_ik / Σ_k |w_k| c_k;  A_i = (R_i − mean R)/(std R + ε);  L as in PPO's clip",
        paper="arXiv 2509.04501, GRAPE",
        source=Responses(group_relative, confidence_weighted, smallest_group=2),
        terms=(RowTerm(clipped), _KL, _ENTROPY),
        reduction="token",
    ),
)

ALGORITHMS = MappingProxyType({row.name: row for row in _ROWS})
"""Every method by its name."""
