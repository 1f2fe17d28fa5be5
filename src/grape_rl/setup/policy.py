"""The policy of a run: loaded, built from scratch, or restored from a checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grape_rl.config.config import Config
from grape_rl.config.data import DataConfig
from grape_rl.config.model import ScratchConfig
from grape_rl.data.chat import end_tokens
from grape_rl.data.unembedded_tokens import set_embedding_limit, unembedded_tokens
from grape_rl.model.load import load, prepare_model
from grape_rl.model.lora import ADAPTER_FOLDER, add_adapters, has_adapters, load_adapter
from grape_rl.model.reward_head import build_reward_model, is_reward_model, load_reward_model
from grape_rl.model.scratch import bpe_tokenizer, character_tokenizer, random_llama, shared_passages
from grape_rl.setup.rows import Row, flat_text

UNLIMITED_CONTEXT = 2**30
"""Context length of a model whose configuration sets none."""


@dataclass(frozen=True)
class Policy:
    """A model that is trained, its tokenizer, the tokens that end a response, and its context length in tokens."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    end_tokens: tuple[int, ...]
    context: int


def device(name: str) -> torch.device:
    """The torch device of that name; ``auto`` is CUDA if available.

    Raises:
        ValueError: this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r}: not available ({str(error).splitlines()[0]})") from error


def start_policy(config: Config, train_rows: Sequence[Row], reward_model: bool = False) -> Policy:
    """The policy at the start of a run: loaded or built from scratch, with new adapters if LoRA is on.

    With ``reward_model``, a model with a scalar head: the reward model at ``model.name``, or a new head on the trunk of
    the language model there.

    Raises:
        ValueError: LoRA is set for a reward model.
    """
    on, lora = device(config.device), config.model.lora
    if reward_model and lora:
        raise ValueError(f"model.lora: {config.method} trains the whole reward model, head included: remove model.lora")
    if reward_model and not config.model.scratch and is_reward_model(config.model.name):
        model, tokenizer = load_reward_model(config.model.name, on)
        return make_policy(model, with_chat_template(tokenizer, config.model.chat_template))
    model, tokenizer = _language_model(config, train_rows, on)
    tokenizer = with_chat_template(tokenizer, config.model.chat_template)
    if lora:
        add_adapters(model, lora.rank, lora.alpha, lora.targets, config.seed)
    return make_policy(build_reward_model(model, tokenizer, config.seed) if reward_model else model, tokenizer)


def policy_at(checkpoint: Path, start: Policy) -> Policy:
    """The policy of a checkpoint of a run that began as ``start``. With LoRA, its adapters on the start's weights."""
    if has_adapters(start.model):
        return replace(start, model=load_adapter(start.model, checkpoint / ADAPTER_FOLDER))
    load_again = load_reward_model if is_reward_model(str(checkpoint)) else load
    return make_policy(*load_again(str(checkpoint), start.model.device))


def make_policy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Policy:
    """A model and its tokenizer as a policy. End tokens without an embedding are dropped.

    Raises:
        ValueError: no end token has an embedding, so that no response would end, or as ``limited``.
    """
    set_embedding_limit(tokenizer, embedding_count(model))
    end = end_tokens(tokenizer, getattr(model, "generation_config", None))
    if unembedded := unembedded_tokens(tokenizer, end):
        if len(unembedded) == len(end):
            raise ValueError(
                f"the end token {tokenizer.decode(unembedded[:1])!r} is token {unembedded[0]}, but the model has only "
                f"{embedding_count(model)} embeddings: no response would end; set the tokenizer's eos_token to a token "
                "with an embedding"
            )
        end = tuple(token for token in end if token not in unembedded)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or UNLIMITED_CONTEXT
    return Policy(model, tokenizer, end, context)


def with_chat_template(tokenizer: PreTrainedTokenizerBase, file: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer with the chat template of a file instead of its own; unchanged if there is no file.

    Raises:
        ValueError: the file cannot be read.
    """
    if file:
        try:
            tokenizer.chat_template = Path(file).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"model.chat_template: {file} cannot be read: {reason}") from error
    return tokenizer


def embedding_count(model: PreTrainedModel) -> int:
    """Number of tokens that the model has an input embedding for."""
    table: Any = model.get_input_embeddings()
    return len(table.weight)


def scratch_tokenizer(shape: ScratchConfig, data: DataConfig, train_rows: Sequence[Row]) -> Any:
    """A tokenizer for a model from scratch, built from the texts of the training rows."""
    columns = ("prompt", "completion", "chosen", "rejected", "messages", "text")
    cells = (row.get(column) for row in train_rows for column in columns)
    texts = [flat_text(cell) for cell in cells if isinstance(cell, str | list)]
    if shape.tokenizer == "bpe":
        return bpe_tokenizer(texts, shape.vocabulary)
    # Passages that all prompts of a task share, and the fixed parts of the teacher's styles, become one token each.
    by_task: dict[Any, list[str]] = {}
    for row in train_rows:
        if "prompt" in row:
            by_task.setdefault(row.get("task"), []).append(flat_text(row["prompt"]))
    passages = [passage for prompts in by_task.values() for passage in shared_passages(prompts)]
    if data.tasks:
        fixed = [part for style in data.teacher.styles for part in style.split("{answer}")]
        passages += [part for part in fixed if len(part) >= 4]
    return character_tokenizer(texts, list(dict.fromkeys(passages)))


def _language_model(config: Config, train_rows: Sequence[Row], on: torch.device) -> tuple[PreTrainedModel, Any]:
    shape = config.model.scratch
    if not shape:
        return load(config.model.name, on)
    tokenizer = scratch_tokenizer(shape, config.data, train_rows)
    model = random_llama(tokenizer, shape.hidden, shape.layers, shape.heads, shape.context, config.seed)
    return prepare_model(model, on), tokenizer
