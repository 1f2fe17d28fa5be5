"""The points of growth.py: a base step, and the sizes of each dimension."""

from collections.abc import Mapping

SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
BASE = {"prompt": 256, "group": 8, "completion": 32, "vocabulary": 8192, "batch": 4}
"""Tokens per prompt, responses per prompt, tokens per response, size of the vocabulary, prompts per step."""
SIZES: Mapping[str, tuple[int, ...]] = {
    "prompt": (64, 128, 256, 512, 1024),
    "group": (2, 4, 8, 16, 32),
    "completion": (8, 16, 32, 64, 128),
    "vocabulary": (2048, 4096, 8192, 16_384, 32_768),
    "batch": (1, 2, 4, 8, 16),
    "head": (1024, 2048, 4096, 8192, 16_384),
}
"""Sizes of each dimension. "head" is the LM head alone; its sizes are numbers of tokens."""
HEAD = {**SHAPE, "vocab_size": 32_768}


def point_at(name: str, size: int) -> dict[str, int]:
    """Point with dimension ``name`` at ``size`` and all other dimensions as in the base."""
    return {"head": size} if name == "head" else BASE | {name: size}
