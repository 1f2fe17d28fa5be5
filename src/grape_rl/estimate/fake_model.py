"""A run's model as fake tensors, without memory or computation, to measure its footprint."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from grape_rl.config.config import Config
from grape_rl.config.model import ModelConfig
from grape_rl.estimate.cost import ModelFootprint
from grape_rl.estimate.flops import shape_of
from grape_rl.model.lora import adaptable_layers, resolve_targets
from grape_rl.model.scratch import random_llama
from grape_rl.setup.policy import Policy, make_policy, scratch_tokenizer
from grape_rl.setup.rows import Row

PASS_TOKENS = 16
"""Tokens of the smaller of two forward passes whose activations are compared."""


def available(model: ModelConfig) -> Any:
    """The Hugging Face configuration of a model whose files are on this machine; None for a model from scratch.

    Raises:
        ValueError: its files are not on this machine.
    """
    if model.scratch:
        return None
    try:
        return AutoConfig.from_pretrained(model.name, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"the model's files are needed, and {model.name} has none on this machine") from error


def measure_footprint(config: Config, train_rows: Sequence[Row], reward_model: bool) -> tuple[Policy, ModelFootprint]:
    """The run's policy as fake tensors, and its footprint. Nothing is downloaded, and nothing is computed.

    Raises:
        ValueError: the model's files are not on this machine, or its footprint cannot be measured.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        policy = _fake_policy(config, train_rows, reward_model)
        half = torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16")
        return policy, footprint(policy.model, half)


def footprint(model: Any, precision: AbstractContextManager[Any]) -> ModelFootprint:
    """The memory of a model, and of the activations that torch stores in a forward pass of its trunk.

    The pass is over single tokens, because attention stores no more per position of longer rows. The difference of two
    passes leaves out what does not depend on the number of tokens, such as weights in bfloat16.
    """
    settings: Any = model.config.get_text_config()
    parameters = list({id(p): p for p in model.parameters()}.values())
    trained = [p.numel() for p in parameters if p.requires_grad]
    heads = getattr(settings, "num_key_value_heads", None) or settings.num_attention_heads
    head_width = getattr(settings, "head_dim", None) or settings.hidden_size // settings.num_attention_heads
    output = model.get_output_embeddings()
    model_shape = shape_of(model)
    stored = _stored_bytes(model, 2 * PASS_TOKENS, precision) - _stored_bytes(model, PASS_TOKENS, precision)
    return ModelFootprint(
        shape=model_shape,
        parameters=sum(p.numel() for p in parameters),
        trunk=sum({id(p): p.numel() for p in model.base_model.parameters()}.values()),
        trained=sum(trained),
        largest=max(trained),
        activations=stored / PASS_TOKENS,
        cached=2 * 4.0 * heads * head_width * model_shape.layers,
        vocabulary=output.weight.shape[0] if output else 0,
    )


def _fake_policy(config: Config, train_rows: Sequence[Row], reward_model: bool) -> Policy:
    model: Any
    if settings := config.model.scratch:
        tokenizer = scratch_tokenizer(settings, config.data, train_rows)
        model = random_llama(tokenizer, settings.hidden, settings.layers, settings.heads, settings.context, config.seed)
    else:
        architecture = available(config.model)
        tokenizer = AutoTokenizer.from_pretrained(config.model.name, local_files_only=True)
        architecture.num_labels = 1
        auto_class = AutoModelForSequenceClassification if reward_model else AutoModelForCausalLM
        model = auto_class.from_config(architecture, dtype=torch.float32)
    if lora := config.model.lora:
        _add_adapters(model, lora.rank, lora.targets)
    return make_policy(model.eval(), tokenizer)


class _Adapted(nn.Module):
    """A frozen linear layer with a LoRA adapter. peft's own does not work with fake tensors."""

    def __init__(self, layer: Any, rank: int) -> None:
        super().__init__()
        rows, columns = layer.weight.shape if isinstance(layer, nn.Linear) else layer.weight.T.shape
        self.layer = layer
        self.down, self.up = nn.Linear(columns, rank, bias=False), nn.Linear(rank, rows, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + self.up(self.down(x))


def _add_adapters(model: Any, rank: int, targets: Sequence[str]) -> None:
    model.requires_grad_(False)
    linear = adaptable_layers(model)
    ends = tuple(f".{target}" for target in resolve_targets(linear, targets))
    for name, layer in linear.items():
        if f".{name}".endswith(ends):
            model.set_submodule(name, _Adapted(layer, rank))


def _stored_bytes(model: nn.Module, tokens: int, precision: AbstractContextManager[Any]) -> int:
    """Bytes that autograd stores in a forward pass of the trunk over so many tokens, without the weights."""
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    stored: dict[int, Any] = {}

    def store(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            stored[storage._cdata] = storage
        return tensor

    trunk: Any = model.base_model
    ids = torch.zeros(tokens, 1, dtype=torch.long)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(store, lambda tensor: tensor), precision:
        output = trunk(input_ids=ids, use_cache=False).last_hidden_state
    del output
    return sum(storage.nbytes() for storage in stored.values())
