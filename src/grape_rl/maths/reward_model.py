"""Losses and rewards of models that score: which response is better (Bradley–Terry), and which step is right."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

StepReward = Literal["min", "product", "last", "mean"]
"""How the probabilities of a response's steps become its reward."""


def bradley_terry(
    chosen_score: Float[Tensor, " p"], rejected_score: Float[Tensor, " p"], margin: Float[Tensor, " p"]
) -> Float[Tensor, " p"]:
    """The preference's negative log-likelihood: ``−log σ(chosen_score − rejected_score − margin)``.

    Bradley and Terry 1952, where a response wins with probability σ of the difference of the scores; the margin is that
    of Llama 2 (arXiv 2307.09288, eq. 2). Scores and margins have one unit, in which a difference of 1 is odds of e.

    >>> import torch
    >>> bradley_terry(torch.tensor([2.0]), torch.tensor([1.0]), torch.tensor([1.0])).exp()
    tensor([2.])
    """
    return -logsigmoid(chosen_score - rejected_score - margin)


def centered(chosen_score: Float[Tensor, " p"], rejected_score: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
    """A pull of the two scores' mean to 0: ``(chosen_score + rejected_score)²``.

    arXiv 2312.09244. Bradley–Terry knows only differences, so that scores could drift together.

    >>> import torch
    >>> centered(torch.tensor([1.0]), torch.tensor([-1.0]))
    tensor([0.])
    """
    return (chosen_score + rejected_score).square()


def step_cross_entropy(step_logit: Float[Tensor, " s"], step_label: Float[Tensor, " s"]) -> Float[Tensor, " s"]:
    """The label's negative log-likelihood: ``−step_label log σ(step_logit) − (1 − step_label) log σ(−step_logit)``.

    Process supervision (arXiv 2305.20050): σ(step_logit) is the probability that the step is right; a label is 1 for a
    right step and 0 for a wrong one.

    >>> import torch
    >>> step_cross_entropy(torch.tensor([0.0]), torch.tensor([1.0])).exp()
    tensor([2.])
    """
    return binary_cross_entropy_with_logits(step_logit, step_label, reduction="none")


def step_reward(step_logit: Float[Tensor, " s"], how: StepReward) -> Float[Tensor, ""]:
    """One number in [0, 1] of the probabilities σ(step_logit): their ``min``, ``product``, ``mean``, or ``last``.

    min: a response is as good as its worst step. product: the probability that all steps are right, were they
    independent (arXiv 2305.20050), which falls with their number.

    Raises:
        ValueError: there are no steps.

    >>> import torch
    >>> logits = torch.tensor([0.0, 0.0])
    >>> [float(step_reward(logits, how)) for how in ("min", "product", "last", "mean")]
    [0.5, 0.25, 0.5, 0.5]
    """
    if not len(step_logit):
        raise ValueError("a response without steps has no reward")
    match how:
        case "min":
            return step_logit.sigmoid().min()
        case "product":
            return logsigmoid(step_logit).sum().exp()
        case "last":
            return step_logit[-1].sigmoid()
        case "mean":
            return step_logit.sigmoid().mean()
