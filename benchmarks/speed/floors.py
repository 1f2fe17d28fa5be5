"""What a step of a row costs at the least: operations, and bytes that decoding reads.

Each prompt is encoded once, each sampled token decoded once, the head runs where a token is chosen, backward costs two
forward passes, and nothing is computed again.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from grape_rl.data.chat import collate_examples, end_tokens, tokenize_demonstrations
from grape_rl.data.preferences import collate_pairs, tokenize_pairs
from grape_rl.estimate.flops import Work, count_flops, generation_work, shape_of
from grape_rl.types import Sequences

FORWARDS = {"grpo": 2, "sft": 1, "dpo": 2}
"""Passes through the model before the one backward: GRPO's first one samples, DPO's second is the reference's."""


def weightless(folder: str) -> PreTrainedModel:
    """The model in a folder as a shape alone, without weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))


def step_work(spec: Mapping[str, Any], length: float) -> Work:
    """One forward pass over a GRPO step whose responses have ``length`` tokens on average."""
    return generation_work([spec["prompt_tokens"]] * spec["per_step"], spec["group"], round(length))


def read_rows(rows: Sequence[dict[str, Any]], method: str, tokenizer: Any, longest: int) -> Sequences:
    """Demonstrations or pairs as the batch that a step makes of them."""
    end = end_tokens(tokenizer)
    if method == "sft":
        return collate_examples(tokenize_demonstrations(rows, tokenizer, end, longest)[0])
    return collate_pairs(tokenize_pairs(rows, tokenizer, end, longest)[0])


def read_tokens(sequences: Sequences) -> int:
    """All tokens of all rows, each with its prompt: a prompt counts as often as rows follow it."""
    return int(sequences.mask.sum()) + sum(len(sequences.prompts[g]) for g in sequences.group.tolist())


def step_operations(model: PreTrainedModel, method: str, work: Work) -> dict[str, float]:
    """Operations of a whole step, and of its update alone: one forward pass and the backward one."""
    forward, backward = count_flops(model, work), count_flops(model, work, backward=True)
    return {"step": FORWARDS[method] * forward + backward, "update": forward + backward}


def decode_bytes(model: PreTrainedModel, spec: Mapping[str, Any], length: float, width: int) -> float:
    """Bytes that sampling a step has to read at the least, of numbers ``width`` bytes wide.

    For each token of a response the weights; and the keys and values of each prompt once a group, and of each response
    as far as it has come. What a prompt's own encoding reads is left out.
    """
    of, config = shape_of(model), model.config.get_text_config()
    tokens, rows = round(length), spec["per_step"] * spec["group"]
    weights = of.trunk * (tokens - 1) + of.head * tokens
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    position = 2 * config.num_hidden_layers * config.num_key_value_heads * head
    seen = sum(spec["per_step"] * spec["prompt_tokens"] + rows * t for t in range(1, tokens))
    return float(width * (weights + position * seen))
