"""The value function of a run, for a method that has one: made anew, loaded, or as a checkpoint has it."""

from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoTokenizer, PreTrainedModel

from grape_rl.methods import Method, Responses, keywords
from grape_rl.model.load import load_value_model
from grape_rl.model.value_head import load_value_head, separate_value_model, shared_value_head
from grape_rl.setup.policy import Policy, embeddings
from grape_rl.training.checkpoint import VALUE_FOLDER
from grape_rl.training.value import ValueFunctionOptions


def value_settings(row: Method, chosen: dict[str, Any]) -> ValueFunctionOptions | None:
    """How the method's value function is set; None for a method that has none."""
    made = row.source.value if isinstance(row.source, Responses) else None
    return made(**keywords(made, chosen)) if made else None


def value_function(
    settings: ValueFunctionOptions, start: Policy, checkpoint: Path | None
) -> nn.Linear | PreTrainedModel:
    """The value function that the policy starts with, or has at the checkpoint.

    Raises:
        ValueError: a model of its own was named for a shared trunk, or can't be made or loaded, or has other tokens.
    """
    if settings.value_trunk == "shared":
        if settings.value_model:
            raise ValueError(f"value_model {settings.value_model!r}: a shared trunk has none; give value_trunk own")
        head = shared_value_head(start.model)
        if checkpoint:
            load_value_head(head, checkpoint / VALUE_FOLDER)
        return head
    if checkpoint:
        return load_value_model(str(checkpoint / VALUE_FOLDER), start.model.device)
    if not settings.value_model:
        return separate_value_model(start.model)
    model = load_value_model(settings.value_model, start.model.device)
    _same_tokens(settings.value_model, model, start)
    return model


def _same_tokens(name: str, model: PreTrainedModel, start: Policy) -> None:
    """Refuses a value model that reads other tokens than the policy writes."""
    rows, needed = embeddings(model), min(len(start.tokenizer), embeddings(start.model))
    if rows < needed:
        raise ValueError(f"value model {name!r}: has {rows} embeddings, and the policy's tokenizer {needed} tokens")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError):  # it came without one, and reads tokens as numbers
        return
    if tokenizer.get_vocab() != start.tokenizer.get_vocab():
        raise ValueError(f"value model {name!r}: has another tokenizer than the policy, and would read other words")
