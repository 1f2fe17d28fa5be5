"""Value functions: a head on the policy's trunk, or a model of its own; and a policy with one beside it."""

import copy
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

HEAD = "head.safetensors"


class Valued(nn.Module):
    """A policy, and beside it a value function, which is trained with it and is no part of it.

    ``value`` is a head (hidden states → one number) on the policy's own trunk, or a sequence-classification model with
    one label, whose head is called ``score``.
    """

    def __init__(self, policy: nn.Module, value: nn.Linear | PreTrainedModel) -> None:
        super().__init__()
        self.policy = policy
        self.value = value

    @property
    def trunk(self) -> nn.Module:
        """The model whose hidden states the value is read from."""
        return self.policy if isinstance(self.value, nn.Linear) else self.value

    def head(self, hidden: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """The value at hidden states, in the head's precision: in bf16 it would be known to two digits only."""
        head: Any = self.value if isinstance(self.value, nn.Linear) else self.value.score
        with torch.autocast(hidden.device.type, enabled=False):
            return head(hidden.to(head.weight.dtype)).squeeze(-1)


def shared_head(policy: PreTrainedModel) -> nn.Linear:
    """A head for the policy's own trunk, zero everywhere: what is expected before anything was seen."""
    at = next(policy.parameters())
    embeddings: Any = policy.get_output_embeddings()
    width = embeddings.weight.shape[1]
    head: Any = nn.utils.skip_init(nn.Linear, width, 1, device=at.device, dtype=at.dtype)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
    return head


def own_model(policy: PreTrainedModel) -> PreTrainedModel:
    """A model of its own for the value: a copy of the policy's trunk, with a head that is zero everywhere.

    Raises:
        ValueError: there is no sequence-classification model of the policy's kind.
    """
    at, config = next(policy.parameters()), copy.deepcopy(policy.config)
    config.num_labels = 1
    with torch.random.fork_rng(devices=[]):  # its random weights give way at once
        try:
            model: Any = AutoModelForSequenceClassification.from_config(config, dtype=at.dtype)
            model.base_model.load_state_dict(policy.base_model.state_dict())
            with torch.no_grad():
                model.score.weight.zero_()
        except (ValueError, AttributeError, RuntimeError) as error:
            raise ValueError(
                f"{type(policy).__name__}: no value model can be made of it ({str(error).splitlines()[0]}); a shared "
                "trunk needs none"
            ) from error
    return model.to(at.device).eval()


def save_value(value: nn.Linear | PreTrainedModel, folder: Path) -> None:
    """Write a value function into a folder of its own: a model in Hugging Face layout, or a head as one file."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(value, nn.Linear):
        save_file(value.state_dict(), folder / HEAD)
    else:
        value.save_pretrained(folder)


def load_head(head: nn.Linear, folder: Path) -> None:
    """Give a head the weights that were saved in ``folder``."""
    head.load_state_dict(load_file(folder / HEAD))
