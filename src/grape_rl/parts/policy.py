"""The policy that a run starts from: built from scratch, or loaded; on which device."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grape_rl.config import Config, Data, Scratch
from grape_rl.data.chat import end_tokens
from grape_rl.model.load import load, readied
from grape_rl.model.scratch import bpe_tokenizer, character_tokenizer, scratch, shared_passages
from grape_rl.parts.rows import Row, plain


@dataclass(frozen=True)
class Policy:
    """The model that is trained, its tokenizer, the tokens that end a response, and its longest sequence in tokens."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    end: tuple[int, ...]
    context: int


def device(name: str) -> torch.device:
    """The device of that name; ``auto`` is CUDA where there is one.

    Raises:
        ValueError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r}: not here ({str(error).splitlines()[0]})") from error


def start_policy(config: Config, train: Sequence[Row]) -> Policy:
    """The policy that the run starts from: built from scratch, or loaded."""
    where = device(config.device)
    if config.model.scratch:
        shape = config.model.scratch
        tokenizer = _scratch_tokenizer(shape, config.data, train)
        built = scratch(tokenizer, shape.hidden, shape.layers, shape.heads, shape.context, config.seed)
        return policy(readied(built, where), tokenizer)
    return policy(*load(config.model.name, where))


def policy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Policy:
    """The policy of a loaded model: its end tokens, and how long a sequence it takes."""
    embeddings: Any = model.get_input_embeddings()
    rows = len(embeddings.weight)
    if len(tokenizer) > rows:
        raise ValueError(f"the tokenizer has {len(tokenizer)} tokens, and the model's embeddings only {rows}")
    text_config = model.config.get_text_config()
    context = getattr(text_config, "max_position_embeddings", None) or 2**30
    return Policy(model, tokenizer, end_tokens(tokenizer, model.generation_config), context)


def _scratch_tokenizer(shape: Scratch, data: Data, train: Sequence[Row]) -> Any:
    said = ("prompt", "completion", "chosen", "rejected", "messages", "text")
    texts = [plain(row[key]) for row in train for key in said if key in row]
    if shape.tokenizer == "bpe":
        return bpe_tokenizer(texts, shape.vocabulary)
    by_task: dict[Any, list[str]] = {}
    for row in train:
        if "prompt" in row:
            by_task.setdefault(row.get("task"), []).append(plain(row["prompt"]))
    passages = [passage for prompts in by_task.values() for passage in shared_passages(prompts)]
    if data.tasks:
        fixed = [part for style in data.teacher.styles for part in style.split("{answer}")]
        passages += [part for part in fixed if len(part) >= 4]
    return character_tokenizer(texts, list(dict.fromkeys(passages)))
