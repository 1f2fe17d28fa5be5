"""Loading a causal language model and its tokenizer, from a folder or the Hub, and the frozen copy of it."""

import copy
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from grape_rl.model.logprobs import logprobs
from grape_rl.model.pack import PACKS
from grape_rl.model.sampler import Sampling, sample
from grape_rl.types import Sequences


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
    for parameter in model.parameters():
        # Weights that lie in a mapped file are aligned otherwise than a new model's, and kernels then round otherwise:
        # a resumed run would not come to the same bits.
        parameter.data = parameter.data.clone()
    if found["missing_keys"]:  # transformers fills them with random numbers
        missing = sorted(found["missing_keys"])
        raise ValueError(f"model {name!r}: its files lack {len(missing)} of its parameters, {missing[0]} among them")
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):  # what transformers makes where there is none
        raise ValueError(f"model {name!r}: its tokenizer has only special tokens; are the tokenizer's files there?")
    return readied(model, device), tokenizer


def readied(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """The model on ``device``, dropout off for good, proved on a probe to say the same by every road.

    Two prompts of different length are answered twice each: what the sampler recorded, and what ``logprobs`` finds
    over the shared prompts, must be what the model's own forward pass says of each sequence alone. Models whose cache
    can't be expanded (recurrent ones), or whose logits are more than a known head, fail that. A model of which
    ``logprobs`` finds the same with several sequences in a row ``packs`` from then on; another one runs them padded.

    Dropout stays off in training too: with it, the ratio of a policy to itself would not be 1.

    Raises:
        ValueError: the model fails the probe.
    """
    model = model.to(device).eval()  # pyright: ignore[reportCallIssue, reportArgumentType]
    try:
        rollout = sample(model, [torch.arange(1), torch.arange(3)], 2, Sampling(max_tokens=3), end=(), seed=0)
        with torch.no_grad():
            found = logprobs(model, rollout).logp.cpu()
            expected = torch.stack([_alone(model, rollout, row) for row in range(len(rollout.tokens))]).cpu()
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{type(model).__name__}: not a model whose prompts can be shared ({error})") from error
    gap = torch.maximum((found - expected).abs(), (rollout.behavior_logp - expected).abs()).max().item()
    if not gap < 1e-3:  # NaN is a failure too
        raise ValueError(
            f"{type(model).__name__}: log-probabilities from its hidden states over a shared prompt are {gap:.2g} nats "
            "off its own forward pass"
        )
    setattr(model, PACKS, _reads_packed(model))
    return model


def _reads_packed(model: PreTrainedModel) -> bool:
    """Whether the model, told positions alone, reads each of several sequences in a row as if it stood there alone."""
    if getattr(model.config.get_text_config(), "attention_chunk_size", None):
        return False  # a probe shorter than its chunks cannot tell whether they begin anew with each sequence
    prompts = tuple(torch.arange(n) % 3 for n in (5, 2, 1, 2, 1))
    tokens = torch.tensor([[1, 0, 2], [2, 0, 1], [0, 2, 1], [1, 1, 0], [2, 2, 1]])
    probe = Sequences(prompts, tokens, torch.ones_like(tokens, dtype=torch.bool), torch.arange(5))
    setattr(model, PACKS, True)
    with torch.no_grad():
        try:
            found = logprobs(model, probe).logp.cpu()
        except TypeError:  # positions are not among what it reads
            return False
        expected = torch.stack([_alone(model, probe, row) for row in range(len(tokens))]).cpu()
    return bool((found - expected).abs().max() < 1e-3)


def _alone(model: PreTrainedModel, sequences: Sequences, row: int) -> Float[Tensor, " t"]:
    """The log-probability of each token of one row, by the model's own forward pass over that row alone."""
    prompt, tokens = sequences.prompts[int(sequences.group[row])], sequences.tokens[row]
    ids = torch.cat([prompt, tokens]).to(model.device)
    logp = model(input_ids=ids[None]).logits[0, len(prompt) - 1 : -1].float().log_softmax(dim=-1)
    return logp.gather(1, ids[len(prompt) :, None]).squeeze(1)


def frozen(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the model as it is now, whose weights never change: the reference policy."""
    reference: nn.Module = copy.deepcopy(model)
    return reference.requires_grad_(False).eval()  # pyright: ignore[reportReturnType]
