"""An objective: some terms, each a function of ``grape_rl.maths``, summed over tokens with one weight a token."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from grape_rl.maths.reduction import Reduction
from grape_rl.types import Batch, Outputs

TermFunction = Callable[..., Tensor]


@dataclass(frozen=True)
class Term:
    """One term: a loss per token, how much it counts, and the options it was given.

    The function's parameters without a default are the fields that it reads: ``FIELDS`` for a loss per token, or the
    ``loss_fields`` of another source, such as ``PAIR_FIELDS``.
    """

    function: TermFunction
    coefficient: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of the fields that the function reads."""
        parameters = inspect.signature(self.function).parameters.values()
        return tuple(p.name for p in parameters if p.default is p.empty and p.name not in self.options)


OUTPUTS = ("logp", "entropy", "value")
FIELDS = (*OUTPUTS, "mask", "behavior_logp", "reference_logp", "advantage", "behavior_value", "value_target")
VALUE_FIELDS = ("value", "behavior_value", "value_target")
"""Fields of tokens that exist only with a value function."""

CHOICE_FIELDS = tuple(f"{which}_{what}" for what in ("kl", "collision") for which in ("chosen", "rejected"))
"""What of these takes the whole choice that each token came from: Σ_t KL(reference‖π) and Σ_t log Σ_v π(v)²."""

PAIR_FIELDS = (
    *(
        f"{whose}{which}_{what}"
        for what in ("logp", "head_logp", "length", "reward")
        for whose in ("", "reference_")
        for which in ("chosen", "rejected")
        if not (whose and what in ("length", "reward"))
    ),
    *CHOICE_FIELDS,
)
"""What a loss per pair may read: log-probs (of whole responses, and of as many first tokens as the shorter one has),
lengths in tokens, the data's rewards, and ``CHOICE_FIELDS``."""

LABEL_FIELDS = (
    "response_logp", "reference_response_logp", "response_length", "desirable", "mismatched_gain", "mean_gain"
)  # fmt: skip
"""What a loss per labeled response may read: its log-probs and length, its label, and over the whole batch the mean
gain (log-prob less the reference's) of responses behind prompts that are not their own; over all batches so far, that
of the responses themselves."""

COMPARISON_FIELDS = ("chosen_score", "rejected_score", "margin")
"""Fields of a pair that a reward model's loss may read: both scores, and the margin that the chosen one should have."""

STEP_FIELDS = ("step_logit", "step_label")
"""Fields of a step that a process reward model's loss may read: the logit that the step is right, and its label."""


@dataclass(frozen=True)
class Objective:
    """What an update minimizes: Σ_terms coefficient · Σ_tokens weight · term.

    ``reduction`` says how tokens are weighted; it is None where terms are per pair (or per labeled response), whose
    plain mean is taken.
    """

    terms: tuple[Term, ...]
    reduction: Reduction | None

    @property
    def reads(self) -> set[str]:
        """The names of all fields that the terms read."""
        return {name for term in self.terms for name in term.parameters}

    @property
    def sees_only_advantage(self) -> bool:
        """Whether a row whose advantages are all 0 adds nothing to the gradient, so that it need not be run."""
        return all("advantage" in term.parameters for term in self.terms)


def loss(
    objective: Objective, outputs: Outputs, batch: Batch, weight: Float[Tensor, "b t"]
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """The objective over some rows, whose ``weight`` comes from the whole batch, and each term's share of it."""
    total = torch.zeros((), dtype=outputs.logp.dtype, device=outputs.logp.device)
    shares: dict[str, Tensor] = {}
    for term in objective.terms:
        fields = {name: getattr(outputs if name in OUTPUTS else batch, name) for name in term.parameters}
        value = term.function(**fields, **term.options)
        # A masked-out field may hold anything (inf − inf at padding, say), and 0 · NaN would be NaN.
        share = term.coefficient * (weight * value.masked_fill(~batch.mask, 0.0)).sum()
        total = total + share
        shares[term.function.__name__] = share.detach()
    return total, shares


def pair_loss(
    objective: Objective, fields: Mapping[str, Tensor], count: int
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """The objective over some pairs (labeled responses, steps) out of a batch of ``count``, and each term's share.

    Σ_terms coefficient · (Σ of the term over these) / count.
    """
    shares: dict[str, Tensor] = {}
    for term in objective.terms:
        value = term.function(**{name: fields[name] for name in term.parameters}, **term.options)
        shares[term.function.__name__] = term.coefficient * value.sum() / count
    return torch.stack(list(shares.values())).sum(), {name: share.detach() for name, share in shares.items()}
