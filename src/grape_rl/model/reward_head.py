"""Models that score a sequence in place of going on with it: a language model's trunk with one number as its head.

They have Hugging Face's layout for sequence classification with one label, so that
``AutoModelForSequenceClassification`` loads ours, and TRL's reward models load here.
"""

import copy
from pathlib import Path
from textwrap import shorten
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from grape_rl.model.load import copy_to_own_memory, no_progress_bars
from grape_rl.model.logprobs import hidden_states_after, row_lengths
from grape_rl.types import Sequences

SEPARATOR_KEY = "step_separator"
"""What a process reward model's configuration calls the text between two steps; an outcome model's has none."""


def sequence_scores(model: nn.Module, sequences: Sequences) -> Float[Tensor, " b"]:
    """The score of each whole row, prompt and tokens: the head's number at its last token, in the data's raw scale.

    A row's tokens count up to its last masked one. Where they end with an end token, the score is taken there, since
    only that token says that the response is over. Tokens at the end that are the model's own padding token are passed
    over, as transformers does: that, for a model whose padding token is its end token, is the token before.

    Raises:
        ValueError: a prompt has no tokens.
    """
    last = row_lengths(sequences.mask)
    pad = model.config.get_text_config().pad_token_id  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    if pad is not None:
        own = torch.arange(sequences.tokens.shape[1], device=last.device) < last[:, None]
        last = row_lengths(own & (sequences.tokens != pad))
    hidden = hidden_states_after(model, sequences)
    return _head(model, hidden[torch.arange(len(last), device=hidden.device), last.to(hidden.device)])


def token_scores(model: nn.Module, sequences: Sequences) -> Float[Tensor, "b t"]:
    """The head's number at every token: what a process reward model says where that token ends a step.

    Raises:
        ValueError: a prompt has no tokens.
    """
    return _head(model, hidden_states_after(model, sequences)[:, 1:])


def _head(model: nn.Module, hidden: Tensor) -> Tensor:
    """One number of each hidden state, never in less precision than the weights': two close scores stay two."""
    head = cast(nn.Linear, model.score)
    with torch.autocast(hidden.device.type, enabled=False):
        return head(hidden.to(head.weight.dtype)).squeeze(-1)


def build_reward_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """A reward model on the trunk of a causal language model, its head drawn anew (small, by ``seed``).

    Its padding token, which transformers finds a row's last token by, becomes one that never ends a response (the
    tokenizer's too, so that both agree): padding that is also the end token would hide the end from the score.

    Raises:
        ValueError: transformers has no such model of this architecture, or it fails the probe.
    """
    config = copy.deepcopy(model.config)
    config.num_labels, config.architectures = 1, None
    named = [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id]
    embeddings: Any = model.get_input_embeddings()
    known = embeddings.weight.shape[0]
    fit = (token for token in named if token is not None and token != tokenizer.eos_token_id and token < known)
    pad = next(fit, None)
    config.get_text_config().pad_token_id = config.pad_token_id = pad
    if pad is not None:
        tokenizer.pad_token = str(tokenizer.convert_ids_to_tokens(cast(int, pad)))
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    except ValueError as error:
        raise ValueError(
            f"{type(model).__name__}: transformers has no model of this architecture that scores ("
            f"{shorten(str(error), 120)}); start from one that it has, such as Llama or Qwen"
        ) from None
    cast(nn.Module, made.base_model).load_state_dict(cast(nn.Module, model.base_model).state_dict())
    return prepare_reward_model(made, model.device)


def is_reward_model(name: str) -> bool:
    """Whether the model at ``name`` says of itself that it classifies sequences: a reward model, ours or another's."""
    try:
        architectures = AutoConfig.from_pretrained(name).architectures or []
    except Exception:  # whatever is wrong there, loading it will say
        return False
    return any(each.endswith("ForSequenceClassification") for each in architectures)


@no_progress_bars()
def load_reward_model(name: str, device: torch.device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The reward model and tokenizer at ``name`` (a folder, or a repository of the Hub), weights in float32.

    Raises:
        ValueError: nothing loadable is there, it is no reward model or not one number's, or it fails the probe.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True
        )
        model, found = loaded
    except Exception as error:  # a file can be broken in as many ways as there are libraries that read it
        where = "folder" if Path(name).exists() else "folder here, nor a model that the Hub gave"
        raise ValueError(f"reward model {name!r}: no loadable {where} ({shorten(str(error), 300)})") from error
    if found["missing_keys"]:  # transformers fills them with random numbers
        missing = sorted(found["missing_keys"])
        raise ValueError(
            f"reward model {name!r}: its files lack {missing[0]}, so it is no reward model: grape train reward_model "
            "makes one"
        )
    if model.config.num_labels != 1:
        raise ValueError(f"reward model {name!r}: it has {model.config.num_labels} labels, and a reward is one number")
    copy_to_own_memory(model)
    return prepare_reward_model(model, device), tokenizer


def prepare_reward_model(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """The model on ``device``, dropout off for good, proved on a probe to say the same by every road.

    Two prompts with two responses each, of different lengths, padded and sharing their prompts: each row's score must
    be what the model's own forward pass says of that row alone.

    Raises:
        ValueError: the model fails the probe.
    """
    model = model.to(device).eval()  # pyright: ignore[reportCallIssue, reportArgumentType]
    mask = torch.tensor([[True, True, True], [True, False, False]] * 2)
    tokens = torch.arange(12).view(4, 3) % 5 + 4
    probe = Sequences((torch.arange(4, 5), torch.arange(4, 7)), tokens, mask, torch.tensor([0, 0, 1, 1]))
    try:
        with torch.no_grad():
            found = sequence_scores(model, probe).cpu()
            rows = [torch.cat([probe.prompts[i // 2], tokens[i][mask[i]]])[None].to(device) for i in range(4)]
            expected = torch.cat([model(input_ids=row).logits[0] for row in rows]).cpu()
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{type(model).__name__}: not a model that scores shared prompts ({error})") from error
    gap = ((found - expected).abs() / (1 + expected.abs())).max().item()
    if not gap < 1e-3:  # NaN is a failure too
        raise ValueError(f"{type(model).__name__}: scores of a padded batch are {gap:.2g} off its own forward pass")
    return model


def step_separator(model: PreTrainedModel) -> str | None:
    """The text that ends a step, for a process reward model; None for a model that scores whole responses."""
    return getattr(model.config, SEPARATOR_KEY, None)


def set_step_separator(model: PreTrainedModel, separator: str | None) -> None:
    """Write into the model's configuration, which is saved with it, what it judges: steps, or (None) responses."""
    setattr(model.config, SEPARATOR_KEY, separator)
