"""Objectives: sums of loss terms, each a function of ``grape_rl.maths``, with one weight per token or a plain mean."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from grape_rl.maths.reduction import Reduction
from grape_rl.types import Outputs, TokenBatch

TermFunction = Callable[..., Tensor]


@dataclass(frozen=True)
class Term:
    """A loss term: its function, its coefficient, and the options that are set.

    The function's parameters without a default are the fields that it reads: ``TOKEN_FIELDS`` for a loss per token, or
    the ``loss_fields`` of another source, such as ``PAIR_FIELDS``.
    """

    function: TermFunction
    coefficient: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the fields that the function reads."""
        parameters = inspect.signature(self.function).parameters.values()
        return tuple(p.name for p in parameters if p.default is p.empty and p.name not in self.options)


OUTPUT_FIELDS = ("logp", "entropy", "value")
"""Fields of ``Outputs``."""

TOKEN_FIELDS = (
    *OUTPUT_FIELDS, "mask", "behavior_logp", "reference_logp", "advantage", "behavior_value", "value_target"
)  # fmt: skip
"""Fields of a loss per token: those of ``Outputs`` and of ``TokenBatch`` (``ValueBatch`` with a value function)."""

VALUE_FIELDS = ("value", "behavior_value", "value_target")
"""Fields of a loss per token that exist only with a value function."""

DISTRIBUTION_FIELDS = tuple(f"{role}_{name}" for name in ("kl", "collision") for role in ("chosen", "rejected"))
"""Fields of a loss per pair that depend on the whole distribution of each token: Σ_t KL(reference‖π) and
Σ_t log Σ_v π(v)²."""

PAIR_FIELDS = (
    *(
        f"{policy}{role}_{name}"
        for name in ("logp", "head_logp", "length", "reward")
        for policy in ("", "reference_")
        for role in ("chosen", "rejected")
        if not (policy and name in ("length", "reward"))
    ),
    *DISTRIBUTION_FIELDS,
)
"""Fields of a loss per pair: log-probs of whole responses, log-probs of their first tokens up to the length of the
shorter one (``head_logp``), lengths in tokens, rewards from the data, and ``DISTRIBUTION_FIELDS``."""

LABEL_FIELDS = (
    "response_logp", "reference_response_logp", "response_length", "desirable", "mismatched_gain", "mean_gain"
)  # fmt: skip
"""Fields of a loss per labeled response: its log-probs, its length in tokens, its label, and two means of the gain, the
log-prob minus the reference's: over mismatched responses of the batch, which follow the prompt of another response
(``mismatched_gain``), and over all responses of all batches so far (``mean_gain``)."""

COMPARISON_FIELDS = ("chosen_score", "rejected_score", "margin")
"""Fields of a reward model's loss per pair: both scores, and the required margin."""

STEP_FIELDS = ("step_logit", "step_label")
"""Fields of a process reward model's loss per step: the logit that the step is right, and its label."""


@dataclass(frozen=True)
class Objective:
    """The objective that an update minimizes: Σ_terms coefficient · Σ_tokens weight · term.

    ``reduction`` determines the weights of tokens. It is None for terms per pair, labeled response or step, which are
    averaged.
    """

    terms: tuple[Term, ...]
    reduction: Reduction | None

    @property
    def reads(self) -> set[str]:
        """Names of all fields that the terms read."""
        return {name for term in self.terms for name in term.parameters}

    @property
    def sees_only_advantage(self) -> bool:
        """True if a row whose advantages are all 0 has no gradient, so that its forward pass can be skipped."""
        return all("advantage" in term.parameters for term in self.terms)


def token_loss(
    objective: Objective, outputs: Outputs, batch: TokenBatch, weight: Float[Tensor, "b t"]
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """The objective over some rows, and each term's share of it. ``weight`` is computed from the whole minibatch.

    Raises:
        ValueError: a term is not one number per token.
    """
    total = torch.zeros((), dtype=outputs.logp.dtype, device=outputs.logp.device)
    shares: dict[str, Tensor] = {}
    for term in objective.terms:
        value = term.function(**term_fields(term, outputs, batch), **term.options)
        _check_shape(term, value, batch.mask.shape, "one number per token")
        # A masked-out field may contain anything, such as inf − inf at padding, and 0 · NaN would be NaN.
        share = term.coefficient * (weight * value.masked_fill(~batch.mask, 0.0)).sum()
        total = total + share
        shares[term.function.__name__] = share.detach()
    return total, shares


def _check_shape(term: Term, value: Tensor, shape: torch.Size, words: str) -> None:
    """Raise unless a term is unreduced: a mean would be broadcast, and divided a second time."""
    if value.shape != shape:
        raise ValueError(
            f"{term.function.__name__}: the loss has the shape {list(value.shape)}, not {list(shape)}: {words}"
        )


def term_fields(term: Term, outputs: Outputs, batch: TokenBatch) -> dict[str, Tensor]:
    """The fields that a loss per token reads, by name."""
    return {name: getattr(outputs if name in OUTPUT_FIELDS else batch, name) for name in term.parameters}


def example_loss(
    objective: Objective, fields: Mapping[str, Tensor], count: int
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """The objective over some of a batch's ``count`` examples (pairs, responses or steps), and each term's share.

    Σ_terms coefficient · (Σ of the term over these examples) / count.

    Raises:
        ValueError: a term is not one number per example.
    """
    shares: dict[str, Tensor] = {}
    shape = max((field.shape for field in fields.values()), key=len)  # some fields are one number of the whole batch
    for term in objective.terms:
        value = term.function(**{name: fields[name] for name in term.parameters}, **term.options)
        _check_shape(term, value, shape, "one number per pair, labeled response or step")
        shares[term.function.__name__] = term.coefficient * value.sum() / count
    return torch.stack(list(shares.values())).sum(), {name: share.detach() for name, share in shares.items()}


def loss_metrics(loss: Tensor, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The metric ``loss``, and for an objective of several terms, ``loss/NAME``: each term's share of the loss."""
    shares = {f"loss/{name}": share for name, share in terms.items()} if len(terms) > 1 else {}
    return {"loss": loss.detach(), **shares}
