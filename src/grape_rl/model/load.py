"""Loading a causal language model and its tokenizer, from a folder or the Hub, and the frozen copy of it."""

import copy
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from grape_rl.model.head import logits_of


def load(name: str, device: torch.device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer at ``name`` (a folder, or a repository of the Hugging Face Hub), weights in float32.

    Raises:
        ValueError: nothing loadable is there, or the model's logits can't be computed from its hidden states.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        where = "folder" if Path(name).exists() else "folder here, nor a model that the Hub gave"
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"model {name!r}: no loadable {where} ({reason})") from error
    return readied(model, device), tokenizer


def readied(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """The model on ``device``, dropout off for good, its head checked against its own forward pass.

    Dropout stays off in training too: with it, the ratio of a policy to itself would not be 1.
    """
    model = model.to(device).eval()  # pyright: ignore[reportCallIssue, reportArgumentType]
    ids = torch.arange(4, device=device)[None]
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        found = logits_of(model)(model.base_model(input_ids=ids).last_hidden_state[0])[None]
    if not torch.allclose(found, expected.to(found.dtype), rtol=1e-3, atol=1e-3):
        raise ValueError(f"{type(model).__name__}: its logits are more than its head applied to its hidden states")
    return model


def frozen(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the model as it is now, whose weights never change: the reference policy."""
    reference: nn.Module = copy.deepcopy(model)
    return reference.requires_grad_(False).eval()  # pyright: ignore[reportReturnType]
