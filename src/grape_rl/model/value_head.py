"""Value functions: a value head on the policy's trunk, or a separate model; and a policy with a value function."""

import copy
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from grape_rl.model.onednn_linear import use_onednn_linear

HEAD_FILE = "head.safetensors"
"""The file of a value head on a shared trunk."""


class PolicyWithValue(nn.Module):
    """A policy and its value function, which is trained together with the policy but saved separately.

    ``value`` is a linear head on the policy's trunk (from a hidden state to one number), or a sequence-classification
    model with one label and a head named ``score``.
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
        """The value at hidden states, in the head's precision: bf16 would give it only two digits."""
        head: Any = self.value if isinstance(self.value, nn.Linear) else self.value.score
        with torch.autocast(hidden.device.type, enabled=False):
            return head(hidden.to(head.weight.dtype)).squeeze(-1)


def shared_value_head(policy: PreTrainedModel) -> nn.Linear:
    """A value head for the policy's own trunk, initialized to zero."""
    embeddings: Any = policy.get_output_embeddings()
    return _zero_head(policy, embeddings.weight.shape[1], bias=True)


def separate_value_model(policy: PreTrainedModel) -> PreTrainedModel:
    """A separate value model: a copy of the policy's trunk, with a head initialized to zero.

    Raises:
        ValueError: transformers has no sequence classification for the policy's architecture.
    """
    config = copy.deepcopy(policy.config)
    config.num_labels = 1
    try:
        with torch.device("meta"):  # the modules only, without weights
            model: Any = AutoModelForSequenceClassification.from_config(config)
        if type(model.base_model) is not type(policy.base_model):
            raise ValueError(f"{type(model).__name__} has another trunk")
        model.score = _zero_head(policy, model.score.in_features, bias=False)
    except (ValueError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{type(policy).__name__}: a separate value model is not supported ({reason}); use a shared trunk"
        ) from error
    setattr(model, model.base_model_prefix, copy.deepcopy(policy.base_model).requires_grad_())
    use_onednn_linear(model)
    return model.eval()


def _zero_head(policy: PreTrainedModel, width: int, bias: bool) -> nn.Linear:
    weight = next(policy.parameters())
    head: Any = nn.utils.skip_init(nn.Linear, width, 1, bias=bias, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
    return head


def save_value(value: nn.Linear | PreTrainedModel, folder: Path) -> None:
    """Save a value function to a folder: a model in Hugging Face layout, or a head as one file."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(value, nn.Linear):
        save_file(value.state_dict(), folder / HEAD_FILE)
    else:
        value.save_pretrained(folder)


def load_value_head(head: nn.Linear, folder: Path) -> None:
    """Load the weights that ``save_value`` wrote to ``folder`` into a value head."""
    head.load_state_dict(load_file(folder / HEAD_FILE))
