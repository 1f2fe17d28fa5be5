"""Losses on pairs of responses, of which one was preferred."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid


def dpo(
    chosen_logp: Float[Tensor, " p"],
    rejected_logp: Float[Tensor, " p"],
    reference_chosen_logp: Float[Tensor, " p"],
    reference_rejected_logp: Float[Tensor, " p"],
    beta: float = 0.1,
) -> Float[Tensor, " p"]:
    """DPO's loss per pair: ``−log σ(beta (chosen − rejected))``, each being ``logp − reference_logp``.

    DPO (arXiv 2305.18290), eq. 7. It is the Bradley–Terry likelihood of the reward that the policy itself implies:
    the optimum of E[R] − beta KL(π‖reference) has R = beta log(π/reference) + a constant of the prompt.

    Log-probs are summed over each response's own tokens, in nats. At the reference the loss is log 2.

    >>> import torch
    >>> dpo(torch.tensor([-1.0]), torch.tensor([-2.0]), torch.tensor([-1.0]), torch.tensor([-2.0]))
    tensor([0.6931])
    """
    margin = (chosen_logp - reference_chosen_logp) - (rejected_logp - reference_rejected_logp)
    return -logsigmoid(beta * margin)
