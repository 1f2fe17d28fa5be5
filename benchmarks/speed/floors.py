"""Lower bounds on the cost of a step: operations of the matrix products, and bytes that decoding must read.

Each prompt is encoded once, each sampled token is decoded once, and the LM head runs only at response tokens. The
backward pass costs two forward passes, and nothing is recomputed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from grape_rl.data.chat import collate_examples, end_tokens
from grape_rl.data.demonstrations import tokenize_demonstrations
from grape_rl.data.preferences import collate_pairs, tokenize_pairs
from grape_rl.estimate.flops import Work, count_flops, generation_work, shape_of
from grape_rl.types import Sequences

FORWARDS = {"grpo": 2, "sft": 1, "dpo": 2}
"""Forward passes per backward pass: GRPO's additional one samples, DPO's additional one is the reference model's."""


def weightless(folder: str) -> PreTrainedModel:
    """Model with the configuration in ``folder`` on the meta device: shapes without weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))


def step_work(spec: Mapping[str, Any], length: float) -> Work:
    """Work of one forward pass over a GRPO step whose responses have a mean of ``length`` tokens."""
    return generation_work([spec["prompt_tokens"]] * spec["per_step"], spec["group"], round(length))


def read_rows(rows: Sequence[dict[str, Any]], method: str, tokenizer: Any, max_length: int) -> Sequences:
    """Demonstrations or pairs as the batch of one step."""
    end = end_tokens(tokenizer)
    if method == "sft":
        return collate_examples(tokenize_demonstrations(rows, "completion", tokenizer, end, max_length)[0])
    return collate_pairs(tokenize_pairs(rows, tokenizer, end, max_length)[0])


def read_tokens(sequences: Sequences) -> int:
    """Number of tokens of all rows, prompts included; a prompt counts once for each of its rows."""
    return int(sequences.mask.sum()) + sum(len(sequences.prompts[g]) for g in sequences.group.tolist())


def step_operations(model: PreTrainedModel, method: str, work: Work) -> dict[str, float]:
    """Operations of a whole step, and of its update alone: one forward and one backward pass."""
    forward, backward = count_flops(model, work), count_flops(model, work, backward=True)
    return {"step": FORWARDS[method] * forward + backward, "update": forward + backward}


def decode_bytes(model: PreTrainedModel, spec: Mapping[str, Any], length: float, width: int) -> float:
    """Bytes that sampling a step must read at least, for numbers of ``width`` bytes.

    Each token reads the weights once, the keys and values of each prompt once per group, and the keys and values of
    each response so far. The bytes that encoding the prompts reads are left out.
    """
    dimensions, config = shape_of(model), model.config.get_text_config()
    tokens, rows = round(length), spec["per_step"] * spec["group"]
    weights = dimensions.trunk * (tokens - 1) + dimensions.head * tokens
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    position = 2 * config.num_hidden_layers * config.num_key_value_heads * head
    cached = sum(spec["per_step"] * spec["prompt_tokens"] + rows * t for t in range(1, tokens))
    return float(width * (weights + position * cached))
