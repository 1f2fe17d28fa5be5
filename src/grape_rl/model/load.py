"""Loading a causal language model and its tokenizer, from a folder or the Hub, and the frozen copy of it."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from grape_rl.model.logprobs import compute_logprobs, compute_values
from grape_rl.model.onednn_linear import use_onednn_linear
from grape_rl.model.sampler import SamplingParams, sample
from grape_rl.model.value_head import PolicyWithValue
from grape_rl.types import Sequences


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Without transformers' own progress bars."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def load(name: str, device: torch.device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer at ``name`` (a folder, or a repository of the Hugging Face Hub), weights in float32.

    Raises:
        ValueError: nothing loadable is there, a part of it is missing, or the model fails the probe of ``readied``.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        loaded: Any = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
        model, found = loaded
    except Exception as error:  # a file can be broken in as many ways as there are libraries that read it
        where = "folder" if Path(name).exists() else "folder here, nor a model that the Hub gave"
        raise ValueError(f"model {name!r}: no loadable {where} ({shorten(str(error), 300)})") from error
    _whole(model, found, f"model {name!r}")
    if head := [key for key in found["unexpected_keys"] if key.startswith("score.")]:
        raise ValueError(f"model {name!r}: has the head {head[0]} of a reward model, and a language model is needed")
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):  # what transformers makes where there is none
        raise ValueError(f"model {name!r}: its tokenizer has only special tokens; are the tokenizer's files there?")
    return prepare_model(model, device), tokenizer


def load_value_model(name: str, device: torch.device) -> PreTrainedModel:
    """The value function at ``name``: a sequence-classification model with one label, such as a reward model.

    Raises:
        ValueError: nothing loadable is there, a part of it is missing, it has not one label, or its values over a
            shared prompt are not what its own forward pass says.
    """
    where = f"value model {name!r}"
    try:
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True
        )
        model, found = loaded
    except Exception as error:  # as above
        raise ValueError(f"{where}: nothing loadable there ({shorten(str(error), 300)})") from error
    labels = model.config.num_labels
    if labels != 1 or not hasattr(model, "score"):
        raise ValueError(
            f"{where}: is a {type(model).__name__} with labels: {labels}; needed is a causal model's trunk with "
            "a head called score, of one label"
        )
    _whole(model, found, where)
    model = model.to(device).eval()
    use_onednn_linear(model)
    prompts, tokens = (torch.arange(1), torch.arange(3)), torch.arange(12).reshape(4, 3) % model.config.vocab_size
    probe = Sequences(prompts, tokens, torch.ones(4, 3, dtype=torch.bool), torch.tensor([0, 0, 1, 1]))
    try:
        with torch.no_grad():
            shared = compute_values(PolicyWithValue(model, model), probe)
            expected = torch.stack([_value_alone(model, probe, row) for row in range(4)])
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{where}: not a model whose prompts can be shared ({error})") from error
    gap = float((shared - expected).abs().max() / expected.abs().max().clamp(min=1))
    if not gap < 1e-3:  # NaN is a failure too
        raise ValueError(f"{where}: its values over a shared prompt are {gap:.2g} off its own forward pass")
    return model


def _value_alone(model: Any, sequences: Sequences, row: int) -> Float[Tensor, " t"]:
    """The value before each token of one row, by the model's own forward pass over that row alone."""
    prompt = sequences.prompts[int(sequences.group[row])]
    ids = torch.cat([prompt, sequences.tokens[row]]).to(model.device)
    return model.score(model.base_model(input_ids=ids[None]).last_hidden_state[0, len(prompt) - 1 : -1]).squeeze(-1)


def copy_to_own_memory(model: PreTrainedModel) -> None:
    """Give a loaded model its weights in memory of its own.

    Weights that lie in a mapped file are aligned otherwise than a new model's, and kernels then round otherwise: a
    resumed run would not come to the same bits.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def _whole(model: PreTrainedModel, found: Any, where: str) -> None:
    """Refuses a model whose files lack weights, and gives it those it has in memory of its own."""
    copy_to_own_memory(model)
    if found["missing_keys"]:  # transformers fills them with random numbers
        missing = sorted(found["missing_keys"])
        raise ValueError(f"{where}: its files lack {len(missing)} of its parameters, {missing[0]} among them")


def prepare_model(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """The model on ``device``, dropout off for good, proved on a probe to say the same by every road.

    Two prompts of different length are answered twice each: what the sampler recorded, and what ``logprobs`` finds
    over the shared prompts, must be what the model's own forward pass says of each sequence alone. Models whose cache
    can't be expanded (recurrent ones), or whose logits are more than a known head, fail that.

    Dropout stays off in training too: with it, the ratio of a policy to itself would not be 1.

    Raises:
        ValueError: the model fails the probe.
    """
    if size := getattr(model.config.get_text_config(), "attention_chunk_size", None):
        # A probe shorter than its chunks could not tell whether they begin anew with each sequence.
        raise ValueError(f"{type(model).__name__}: attends by chunks of {size} tokens, which is not supported")
    model = model.to(device).eval()  # pyright: ignore[reportCallIssue, reportArgumentType]
    use_onednn_linear(model)
    try:
        rollout = sample(model, [torch.arange(1), torch.arange(3)], 2, SamplingParams(max_tokens=3), end=(), seed=0)
        with torch.no_grad():
            found = compute_logprobs(model, rollout).logp.cpu()
            expected = torch.stack([_alone(model, rollout, row) for row in range(len(rollout.tokens))]).cpu()
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{type(model).__name__}: not a model whose prompts can be shared ({error})") from error
    gap = torch.maximum((found - expected).abs(), (rollout.behavior_logp - expected).abs()).max().item()
    if not gap < 1e-3:  # NaN is a failure too
        raise ValueError(
            f"{type(model).__name__}: log-probabilities from its hidden states over a shared prompt are {gap:.2g} nats "
            "off its own forward pass"
        )
    return model


def _alone(model: PreTrainedModel, sequences: Sequences, row: int) -> Float[Tensor, " t"]:
    """The log-probability of each token of one row, by the model's own forward pass over that row alone."""
    prompt, tokens = sequences.prompts[int(sequences.group[row])], sequences.tokens[row]
    ids = torch.cat([prompt, tokens]).to(model.device)
    logp = model(input_ids=ids[None]).logits[0, len(prompt) - 1 : -1].float().log_softmax(dim=-1)
    return logp.gather(1, ids[len(prompt) :, None]).squeeze(1)


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the model as it is now, whose weights never change: the reference policy.

    Weights that are not trained are shared with it: of an adapted model it costs no more than the adapters.
    """
    reference: nn.Module = copy_sharing_frozen(model)
    return reference.requires_grad_(False).eval()  # pyright: ignore[reportReturnType]


def copy_sharing_frozen(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the model with the very same tensors for the weights that are not trained."""
    return copy.deepcopy(model, {id(weight): weight for weight in model.parameters() if not weight.requires_grad})
