"""The policy that a run starts from: built from scratch, or loaded; on which device."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grape_rl.config import Config, Data
from grape_rl.data.chat import end_tokens
from grape_rl.data.unembedded_tokens import set_embedding_limit, unembedded_tokens
from grape_rl.model.load import load, prepare_model
from grape_rl.model.lora import ADAPTER_FOLDER, add_adapters, has_adapters, load_adapter
from grape_rl.model.reward_head import build_reward_model, is_reward_model, load_reward_model
from grape_rl.model.scratch import bpe_tokenizer, character_tokenizer, random_llama, shared_passages
from grape_rl.sections import Scratch
from grape_rl.setup.rows import Row, plain


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


def start_policy(config: Config, train: Sequence[Row], scalar: bool = False) -> Policy:
    """The policy that the run starts from: built from scratch, or loaded; with new adapters if those are trained.

    With ``scalar``, a reward model: that at ``model.name``, or a new one on the trunk of the language model there.

    Raises:
        ValueError: adapters are asked for in a reward model.
    """
    where, lora = device(config.device), config.model.lora
    if scalar and lora:
        raise ValueError(f"model.lora: {config.method} trains a whole model that scores, head and all; leave it out")
    if scalar and not config.model.scratch and is_reward_model(config.model.name):
        return policy(*load_reward_model(config.model.name, where))
    model, tokenizer = _language_model(config, train, where)
    if lora:
        add_adapters(model, lora.rank, lora.alpha, lora.targets, config.seed)
    return policy(build_reward_model(model, tokenizer, config.seed) if scalar else model, tokenizer)


def policy_at(checkpoint: Path, start: Policy) -> Policy:
    """The policy of a run's checkpoint, which began as ``start``: its adapters on the same weights, if it has some."""
    if has_adapters(start.model):
        return replace(start, model=load_adapter(start.model, checkpoint / ADAPTER_FOLDER))
    again = load_reward_model if is_reward_model(str(checkpoint)) else load
    return policy(*again(str(checkpoint), start.model.device))


def _language_model(config: Config, train: Sequence[Row], where: torch.device) -> tuple[PreTrainedModel, Any]:
    shape = config.model.scratch
    if not shape:
        return load(config.model.name, where)
    tokenizer = scratch_tokenizer(shape, config.data, train)
    built = random_llama(tokenizer, shape.hidden, shape.layers, shape.heads, shape.context, config.seed)
    return prepare_model(built, where), tokenizer


def policy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Policy:
    """The policy of a loaded model: its end tokens, and how long a sequence it takes.

    Raises:
        ValueError: no token that the model can choose ends a response, and as ``limited``.
    """
    set_embedding_limit(tokenizer, embeddings(model))
    end = end_tokens(tokenizer, getattr(model, "generation_config", None))
    if beyond := unembedded_tokens(tokenizer, end):
        if len(beyond) == len(end):
            raise ValueError(
                f"the end token {tokenizer.decode(beyond[:1])!r} is token {beyond[0]}, and the model's embeddings are "
                f"only {embeddings(model)}: no response would end; set the tokenizer's eos_token to one that it has"
            )
        end = tuple(token for token in end if token not in beyond)
    text_config = model.config.get_text_config()
    context = getattr(text_config, "max_position_embeddings", None) or 2**30
    return Policy(model, tokenizer, end, context)


def embeddings(model: PreTrainedModel) -> int:
    """How many tokens the model has an embedding for."""
    table: Any = model.get_input_embeddings()
    return len(table.weight)


def scratch_tokenizer(shape: Scratch, data: Data, train: Sequence[Row]) -> Any:
    """The tokenizer of a model from scratch, made of what the training rows say."""
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
