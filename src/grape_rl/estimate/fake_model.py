"""The frame of a run's model: its layers without their numbers, to be asked what a run of it will hold."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from grape_rl.config import Config
from grape_rl.estimate.cost import ModelFootprint
from grape_rl.estimate.flops import shape_of
from grape_rl.model.lora import adaptable_layers, resolve_targets
from grape_rl.model.scratch import random_llama
from grape_rl.sections import Model
from grape_rl.setup.policy import Policy, policy, scratch_tokenizer
from grape_rl.setup.rows import Row

POSITIONS = 16


def available(model: Model) -> Any:
    """The configuration of a model whose files are here; None for one from scratch.

    Raises:
        ValueError: they are not.
    """
    if model.scratch:
        return None
    try:
        return AutoConfig.from_pretrained(model.name, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"it needs the model's files, and {model.name} has none here") from error


def measure_footprint(config: Config, train: Sequence[Row], scalar: bool) -> tuple[Policy, ModelFootprint]:
    """The run's policy without its numbers, and what it would hold. Nothing is downloaded, and nothing computed.

    Raises:
        ValueError: the model's files are not here, or it can't be measure_footprint.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        at = _policy(config, train, scalar)
        half = torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16")
        return at, frame(at.model, half)


def frame(model: Any, precision: AbstractContextManager[Any]) -> ModelFootprint:
    """What a model holds, and what its trunk keeps for a backward pass: as torch keeps it in a forward pass.

    That pass is over single tokens, since of longer rows attention keeps no more a position; what it keeps whatever
    their number (weights in bfloat16) does not count.
    """
    of: Any = model.config.get_text_config()
    parts = list({id(p): p for p in model.parameters()}.values())
    trained = [p.numel() for p in parts if p.requires_grad]
    heads = getattr(of, "num_key_value_heads", None) or of.num_attention_heads
    width = heads * (getattr(of, "head_dim", None) or of.hidden_size // of.num_attention_heads)
    output = model.get_output_embeddings()
    found = shape_of(model)
    return ModelFootprint(
        found,
        sum(p.numel() for p in parts),
        sum({id(p): p.numel() for p in model.base_model.parameters()}.values()),
        sum(trained),
        max(trained),
        (_kept(model, 2 * POSITIONS, precision) - _kept(model, POSITIONS, precision)) / POSITIONS,
        2 * 4.0 * width * found.layers,
        output.weight.shape[0] if output else 0,
    )


def _policy(config: Config, train: Sequence[Row], scalar: bool) -> Policy:
    model: Any
    if drawn := config.model.scratch:
        tokenizer = scratch_tokenizer(drawn, config.data, train)
        model = random_llama(tokenizer, drawn.hidden, drawn.layers, drawn.heads, drawn.context, config.seed)
    else:
        of = available(config.model)
        tokenizer = AutoTokenizer.from_pretrained(config.model.name, local_files_only=True)
        of.num_labels = 1
        of_kind = AutoModelForSequenceClassification if scalar else AutoModelForCausalLM
        model = of_kind.from_config(of, dtype=torch.float32)
    if lora := config.model.lora:
        _adapted(model, lora.rank, lora.targets)
    return policy(model.eval(), tokenizer)


class _Adapted(nn.Module):
    """A linear layer that is fixed, and an adapter beside it: peft's own does not work without numbers."""

    def __init__(self, layer: Any, rank: int) -> None:
        super().__init__()
        rows, columns = layer.weight.shape if isinstance(layer, nn.Linear) else layer.weight.T.shape
        self.layer = layer
        self.down, self.up = nn.Linear(columns, rank, bias=False), nn.Linear(rank, rows, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + self.up(self.down(x))


def _adapted(model: Any, rank: int, targets: Sequence[str]) -> None:
    model.requires_grad_(False)
    linear = adaptable_layers(model)
    ends = tuple(f".{target}" for target in resolve_targets(linear, targets))
    for name, layer in linear.items():
        if f".{name}".endswith(ends):
            model.set_submodule(name, _Adapted(layer, rank))


def _kept(model: nn.Module, count: int, precision: AbstractContextManager[Any]) -> int:
    """Bytes that autograd keeps of a forward pass of the trunk over so many tokens, beside the weights themselves."""
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    found: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            found[storage._cdata] = storage
        return tensor

    trunk: Any = model.base_model
    ids = torch.zeros(count, 1, dtype=torch.long)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), precision:
        out = trunk(input_ids=ids, use_cache=False).last_hidden_state
    del out
    return sum(storage.nbytes() for storage in found.values())
