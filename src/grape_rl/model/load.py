"""Load a causal language model and its tokenizer from a folder or the Hub, verify it, and make frozen copies."""

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
    """Within this context, transformers shows no progress bars."""
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
        ValueError: the model or tokenizer cannot be loaded; weights are missing; it is a reward model; or it fails the
            probe of ``prepare_model``.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        loaded: Any = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
        model, info = loaded
    except Exception as error:  # every library that reads a file has its own errors
        where = load_location(name)
        raise ValueError(f"model {name!r}: cannot be loaded from {where} ({shorten(str(error), 300)})") from error
    _require_all_weights(model, info, f"model {name!r}")
    if head := [key for key in info["unexpected_keys"] if key.startswith("score.")]:
        raise ValueError(f"model {name!r}: has the head {head[0]} of a reward model; use a language model")
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):  # transformers' default without tokenizer files
        raise ValueError(
            f"model {name!r}: its tokenizer has only special tokens; check that its files are in the folder"
        )
    return prepare_model(model, device), tokenizer


def load_value_model(name: str, device: torch.device) -> PreTrainedModel:
    """The value function at ``name``: a sequence-classification model with one label, such as a reward model.

    Raises:
        ValueError: the model cannot be loaded; weights are missing; it does not have exactly one label; or its values
            over a shared prompt differ from its own forward pass.
    """
    # Load.
    where = f"value model {name!r}"
    try:
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True
        )
        model, info = loaded
    except Exception as error:  # every library that reads a file has its own errors
        raise ValueError(f"{where}: cannot be loaded ({shorten(str(error), 300)})") from error
    labels = model.config.num_labels
    if labels != 1 or not hasattr(model, "score"):
        raise ValueError(
            f"{where}: is a {type(model).__name__} with labels: {labels}; use a causal model's trunk with a head named "
            "score that has one label"
        )
    _require_all_weights(model, info, where)
    model = model.to(device).eval()
    use_onednn_linear(model)
    # Probe: values over shared prompts against the model's own forward pass over each row.
    prompts, tokens = (torch.arange(1), torch.arange(3)), torch.arange(12).reshape(4, 3) % model.config.vocab_size
    probe = Sequences(prompts, tokens, torch.ones(4, 3, dtype=torch.bool), torch.tensor([0, 0, 1, 1]))
    try:
        with torch.no_grad():
            shared = compute_values(PolicyWithValue(model, model), probe)
            expected = torch.stack([_value_alone(model, probe, row) for row in range(4)])
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{where}: does not support shared prompts ({error})") from error
    gap = float((shared - expected).abs().max() / expected.abs().max().clamp(min=1))
    if not gap < 1e-3:  # NaN fails too
        raise ValueError(f"{where}: its values over a shared prompt differ by {gap:.2g} from its own forward pass")
    return model


def _value_alone(model: Any, sequences: Sequences, row: int) -> Float[Tensor, " t"]:
    """The value before each token of one row, by the model's own forward pass over only that row."""
    prompt = sequences.prompts[int(sequences.group[row])]
    ids = torch.cat([prompt, sequences.tokens[row]]).to(model.device)
    return model.score(model.base_model(input_ids=ids[None]).last_hidden_state[0, len(prompt) - 1 : -1]).squeeze(-1)


def copy_to_own_memory(model: PreTrainedModel) -> None:
    """Copy the weights of a loaded model from its mapped file into newly allocated memory.

    Weights in a mapped file have another alignment than those of a new model, and kernels then round differently. A
    resumed run would not be bit-identical.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def load_location(name: str) -> str:
    """A description of the place that ``name`` is loaded from, for error messages."""
    return "this folder" if Path(name).exists() else "the Hub, and there is no such folder"


def _require_all_weights(model: PreTrainedModel, info: Any, where: str) -> None:
    """Raise if weights are missing from the model's files; otherwise copy them to the model's own memory."""
    copy_to_own_memory(model)
    if info["missing_keys"]:  # transformers would initialize them at random
        missing = sorted(info["missing_keys"])
        raise ValueError(f"{where}: its files lack {len(missing)} of its parameters, such as {missing[0]}")


def prepare_model(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """The model on ``device``, in evaluation mode for good, and verified by a probe.

    In the probe, two prompts of different lengths get two responses each. The sampler's log-probabilities and those of
    ``compute_logprobs`` over shared prompts must equal the model's own forward pass over each sequence. Models with a
    cache other than keys and values (recurrent models) fail, and so do models with an unsupported LM head.

    Dropout stays off in training too: with dropout, the ratio of a policy to itself would not be 1.

    Raises:
        ValueError: the model fails the probe.
    """
    if size := getattr(model.config.get_text_config(), "attention_chunk_size", None):
        # The probe is shorter than a chunk, so it could not test whether chunks begin again with each sequence.
        raise ValueError(f"{type(model).__name__}: attention in chunks of {size} tokens is not supported")
    model = model.to(device).eval()  # pyright: ignore[reportCallIssue, reportArgumentType]
    use_onednn_linear(model)
    try:
        params = SamplingParams(max_tokens=3)
        rollout = sample(model, [torch.arange(1), torch.arange(3)], 2, params, end=(), seed=0)
        with torch.no_grad():
            logp = compute_logprobs(model, rollout).logp.cpu()
            expected = torch.stack([_logp_alone(model, rollout, row) for row in range(len(rollout.tokens))]).cpu()
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{type(model).__name__}: does not support shared prompts ({error})") from error
    gap = torch.maximum((logp - expected).abs(), (rollout.behavior_logp - expected).abs()).max().item()
    if not gap < 1e-3:  # NaN fails too
        raise ValueError(
            f"{type(model).__name__}: log-probabilities over a shared prompt differ by {gap:.2g} nats from the model's "
            "own forward pass, so its attention or LM head is not supported"
        )
    return model


def _logp_alone(model: PreTrainedModel, sequences: Sequences, row: int) -> Float[Tensor, " t"]:
    """The log-probability of each token of one row, by the model's own forward pass over only that row."""
    prompt, tokens = sequences.prompts[int(sequences.group[row])], sequences.tokens[row]
    ids = torch.cat([prompt, tokens]).to(model.device)
    logp = model(input_ids=ids[None]).logits[0, len(prompt) - 1 : -1].float().log_softmax(dim=-1)
    return logp.gather(1, ids[len(prompt) :, None]).squeeze(1)


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A frozen copy of the model as it is now, such as the reference policy.

    Weights that are not trained are shared with the copy, so that of a model with adapters only those are copied.
    """
    reference: nn.Module = copy_sharing_frozen(model)
    return reference.requires_grad_(False).eval()  # pyright: ignore[reportReturnType]


def copy_sharing_frozen(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the model that shares the tensors of the weights that are not trained."""
    return copy.deepcopy(model, {id(weight): weight for weight in model.parameters() if not weight.requires_grad})
