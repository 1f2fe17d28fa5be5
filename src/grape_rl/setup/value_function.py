"""The value function of a run: new, loaded, or restored from a checkpoint."""

from pathlib import Path

from torch import nn
from transformers import AutoTokenizer, PreTrainedModel

from grape_rl.model.load import load_value_model
from grape_rl.model.value_head import load_value_head, separate_value_model, shared_value_head
from grape_rl.setup.policy import Policy, embedding_count
from grape_rl.training.checkpoint import VALUE_FOLDER
from grape_rl.training.value import ValueFunctionOptions


def build_value_function(
    settings: ValueFunctionOptions, start: Policy, checkpoint: Path | None
) -> nn.Linear | PreTrainedModel:
    """The value function of a policy at the start of a run, or at the checkpoint if there is one.

    Raises:
        ValueError: ``value_model`` is set for a shared trunk, cannot be loaded, or has another tokenizer.
    """
    if settings.value_trunk == "shared":
        if settings.value_model:
            raise ValueError(
                f"value_model {settings.value_model!r}: a shared trunk has no model of its own; set value_trunk to own"
            )
        head = shared_value_head(start.model)
        if checkpoint:
            load_value_head(head, checkpoint / VALUE_FOLDER)
        return head
    if checkpoint:
        return load_value_model(str(checkpoint / VALUE_FOLDER), start.model.device)
    if not settings.value_model:
        return separate_value_model(start.model)
    model = load_value_model(settings.value_model, start.model.device)
    _check_tokenizer(settings.value_model, model, start)
    return model


def _check_tokenizer(name: str, model: PreTrainedModel, start: Policy) -> None:
    """Raise ValueError if the value model's tokens are not the policy's."""
    embeddings, tokens = embedding_count(model), min(len(start.tokenizer), embedding_count(start.model))
    if embeddings < tokens:
        raise ValueError(f"value model {name!r}: has {embeddings} embeddings for the policy's {tokens} tokens")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError):  # a model without a tokenizer reads token ids
        return
    if tokenizer.get_vocab() != start.tokenizer.get_vocab():
        raise ValueError(f"value model {name!r}: has another tokenizer than the policy, and would read other words")
