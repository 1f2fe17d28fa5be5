"""Low-rank adapters (LoRA, arXiv 2106.09685): matrices beside a model's own, which alone are trained.

An adapted layer computes ``W x + (alpha / rank) B A x``; B starts at 0, so that a fresh adapter changes no bit. The
model stays the class that it was: whatever runs it need not know.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from grape_rl.model.load import copy_sharing_frozen

ADAPTER_FOLDER = "adapter"
_FILE, _PREFIX = "adapter_model.safetensors", "base_model.model."


def add_adapters(model: PreTrainedModel, rank: int, alpha: float, targets: Sequence[str], seed: int) -> PreTrainedModel:
    """The model with an adapter on each linear layer that ``targets`` names, and its own weights fixed: in place.

    A target is the last part of a layer's name or more of its end (``q_proj``, ``self_attn.q_proj``). Without any,
    every linear layer but the head gets one. The same ``seed`` gives the same adapters.

    Raises:
        ValueError: peft is not installed, or a target names no linear layer (the head counts as none).
    """
    peft = _peft()
    linear = adaptable_layers(model)
    named = resolve_targets(linear, targets)
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=named,
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in linear.values()),
        base_model_name_or_path=model.config.name_or_path or None,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, model)
    return model.eval()


def adaptable_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The layers that can get an adapter, by name: all that are linear, but the head."""
    head = model.get_output_embeddings()
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | Conv1D) and layer is not head
    }


def resolve_targets(linear: Mapping[str, nn.Module], targets: Sequence[str]) -> list[str]:
    """The ends of the names of the layers that get an adapter: those asked for, or else the last part of every name.

    Raises:
        ValueError: a target is the end of no layer's name.
    """
    last = list(dict.fromkeys(name.rpartition(".")[2] for name in linear))
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            raise ValueError(f"model.lora.targets: no linear layer is called {target!r}; there are {', '.join(last)}")
    return list(targets) or last


def has_adapters(model: nn.Module) -> bool:
    """Whether the model has adapters."""
    return hasattr(model, "peft_config")


def merge_adapters(model: PreTrainedModel) -> PreTrainedModel:
    """The same policy as a plain model, the adapters added to the weights; all other weights are shared with it.

    Its log-probabilities are the adapted model's up to rounding.
    """
    out = copy_sharing_frozen(model)
    for name, layer in list(out.named_modules()):
        if hasattr(layer, "get_delta_weight"):
            base: Any = layer.get_base_layer()  # pyright: ignore[reportCallIssue]
            with torch.no_grad():  # a new tensor: the old one is also the adapted model's
                base.weight = nn.Parameter(base.weight + layer.get_delta_weight("default"), requires_grad=False)  # pyright: ignore[reportCallIssue]
            out.set_submodule(name, base)
    del out.peft_config
    return out


def save_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Write the adapters into ``folder`` as peft and vLLM read them."""
    folder.mkdir()
    config: Any = model.peft_config
    config["default"].save_pretrained(folder)
    state = _peft().get_peft_model_state_dict(model)
    save_file({_PREFIX + name: value.contiguous() for name, value in state.items()}, folder / _FILE, {"format": "pt"})


def load_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Another model with the same weights, shared, and the adapters that ``save_adapter`` wrote, to the same bits.

    Raises:
        ValueError: the folder's adapters are not for the layers of the model.
    """
    out = copy_sharing_frozen(model)
    state = {name.removeprefix(_PREFIX): value for name, value in load_file(folder / _FILE).items()}
    if state.keys() != _peft().get_peft_model_state_dict(out).keys():
        raise ValueError(f"{folder}: its adapters are not on the same layers as the model's")
    _peft().set_peft_model_state_dict(out, state)
    return out


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ValueError("model.lora needs peft: pip install 'grape-rl[lora]'") from error
    return peft
