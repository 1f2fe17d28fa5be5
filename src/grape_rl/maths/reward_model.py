"""Losses and rewards of reward models: of whole responses (Bradley–Terry), and of steps (process reward models)."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

StepAggregation = Literal["min", "product", "last", "mean"]
"""The function from the probabilities of a response's steps to its reward."""


def bradley_terry(
    chosen_score: Float[Tensor, " p"], rejected_score: Float[Tensor, " p"], margin: Float[Tensor, " p"]
) -> Float[Tensor, " p"]:
    """Negative log-likelihood of the preference: ``−log σ(chosen_score − rejected_score − margin)``.

    Bradley and Terry (1952): the probability that one response beats another is σ of the difference of their scores.
    The margin is from Llama 2 (arXiv 2307.09288, eq. 2). Scores and margins are log-odds: a difference of 1 is odds
    of e.

    >>> import torch
    >>> bradley_terry(torch.tensor([2.0]), torch.tensor([1.0]), torch.tensor([1.0])).exp()
    tensor([2.])
    """
    return -logsigmoid(chosen_score - rejected_score - margin)


def score_centering(chosen_score: Float[Tensor, " p"], rejected_score: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
    """Penalty that centers the scores at 0: ``(chosen_score + rejected_score)²``.

    arXiv 2312.09244. Bradley–Terry depends only on differences of scores: without the penalty, all scores may drift.

    >>> import torch
    >>> score_centering(torch.tensor([1.0]), torch.tensor([-1.0]))
    tensor([0.])
    """
    return (chosen_score + rejected_score).square()


def step_cross_entropy(step_logit: Float[Tensor, " s"], step_label: Float[Tensor, " s"]) -> Float[Tensor, " s"]:
    """Cross-entropy of each step: ``−step_label log σ(step_logit) − (1 − step_label) log σ(−step_logit)``.

    Process supervision (arXiv 2305.20050): σ(step_logit) is the probability that the step is correct. The label of a
    correct step is 1, of a wrong step 0.

    >>> import torch
    >>> step_cross_entropy(torch.tensor([0.0]), torch.tensor([1.0])).exp()
    tensor([2.])
    """
    return binary_cross_entropy_with_logits(step_logit, step_label, reduction="none")


def step_reward(step_logit: Float[Tensor, " s"], aggregation: StepAggregation) -> Float[Tensor, ""]:
    """Reward of a response in [0, 1] from the probabilities σ(step_logit) of its steps.

    ``aggregation`` selects the statistic. "min": the lowest probability. "product": the probability that all steps are
    correct, if they are independent (arXiv 2305.20050); it decreases with the number of steps. "mean": their mean.
    "last": the probability of the last step.

    Raises:
        ValueError: there are no steps.

    >>> import torch
    >>> logits = torch.tensor([0.0, 0.0])
    >>> [float(step_reward(logits, name)) for name in ("min", "product", "last", "mean")]
    [0.5, 0.25, 0.5, 0.5]
    """
    if not len(step_logit):
        raise ValueError("a response without steps has no reward")
    match aggregation:
        case "min":
            return step_logit.sigmoid().min()
        case "product":
            return logsigmoid(step_logit).sum().exp()
        case "last":
            return step_logit[-1].sigmoid()
        case "mean":
            return step_logit.sigmoid().mean()
