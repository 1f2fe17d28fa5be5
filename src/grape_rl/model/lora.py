"""LoRA adapters (arXiv 2106.09685): low-rank matrices added to a model's linear layers; only they are trained.

A layer with an adapter computes ``W x + (alpha / rank) B A x``. B is initialized to 0, so that a new adapter does not
change the output by a bit. The model keeps its class, so code that runs it needs no change.
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
    """Add an adapter to each linear layer that matches ``targets``, in place, and freeze the model's own weights.

    A target is the end of a layer's name, such as ``q_proj`` or ``self_attn.q_proj``. Without targets, every linear
    layer except the LM head gets an adapter. The same ``seed`` gives the same adapters.

    Raises:
        ValueError: peft is not installed, or a target matches no linear layer (the LM head does not count).
    """
    peft = _peft()
    linear = adaptable_layers(model)
    target_modules = resolve_targets(linear, targets)
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=target_modules,
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in linear.values()),
        base_model_name_or_path=model.config.name_or_path or None,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, model)
    return model.eval()


def adaptable_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The layers that can get an adapter, by name: all linear layers except the LM head."""
    head = model.get_output_embeddings()
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | Conv1D) and layer is not head
    }


def resolve_targets(linear: Mapping[str, nn.Module], targets: Sequence[str]) -> list[str]:
    """The name endings of the layers that get an adapter: ``targets``, or else the last part of every layer's name.

    Raises:
        ValueError: a target matches no layer.
    """
    last = list(dict.fromkeys(name.rpartition(".")[2] for name in linear))
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            raise ValueError(f"model.lora.targets: no linear layer is named {target!r}; choose from {', '.join(last)}")
    return list(targets) or last


def has_adapters(model: nn.Module) -> bool:
    """True if the model has adapters."""
    return hasattr(model, "peft_config")


def merge_adapters(model: PreTrainedModel) -> PreTrainedModel:
    """A plain model with the adapters merged into the weights; it shares all other weights with ``model``.

    Its log-probabilities equal those of ``model`` up to rounding.
    """
    out = copy_sharing_frozen(model)
    for name, layer in list(out.named_modules()):
        if hasattr(layer, "get_delta_weight"):
            base: Any = layer.get_base_layer()  # pyright: ignore[reportCallIssue]
            with torch.no_grad():  # a new tensor, since ``model`` still uses the old one
                base.weight = nn.Parameter(base.weight + layer.get_delta_weight("default"), requires_grad=False)  # pyright: ignore[reportCallIssue]
            out.set_submodule(name, base)
    del out.peft_config
    return out


def save_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Save the adapters to ``folder`` in the format of peft and vLLM."""
    folder.mkdir()
    config: Any = model.peft_config
    config["default"].save_pretrained(folder)
    state = _peft().get_peft_model_state_dict(model)
    save_file({_PREFIX + name: value.contiguous() for name, value in state.items()}, folder / _FILE, {"format": "pt"})


def load_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """A copy of the model with the bit-identical adapters that ``save_adapter`` wrote; it shares all other weights.

    Raises:
        ValueError: the saved adapters belong to other layers than the model's adapters.
    """
    out = copy_sharing_frozen(model)
    state = {name.removeprefix(_PREFIX): value for name, value in load_file(folder / _FILE).items()}
    if state.keys() != _peft().get_peft_model_state_dict(out).keys():
        raise ValueError(f"{folder}: its adapters belong to other layers than the model's; check model.lora.targets")
    _peft().set_peft_model_state_dict(out, state)
    return out


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ValueError("model.lora needs peft: pip install 'grape-rl[lora]'") from error
    return peft
