"""Reward models: a language model's trunk with a scalar head, which scores a sequence.

They have Hugging Face's layout for sequence classification with one label. So ``AutoModelForSequenceClassification``
loads the models that are saved here, and TRL's reward models load here.
"""

import copy
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

from grape_rl.model.load import copy_to_own_memory, load_location, no_progress_bars
from grape_rl.model.logprobs import hidden_states_after, row_lengths
from grape_rl.types import Sequences

SEPARATOR_KEY = "step_separator"
"""The configuration key of the text between two steps, in a process reward model; an outcome reward model has none."""


def sequence_scores(model: nn.Module, sequences: Sequences) -> Float[Tensor, " b"]:
    """The score of each row, prompt and tokens: the head's output at its last token, on the model's own scale.

    The last token is the last masked one: the end token if there is one, since only that marks the response as
    complete. Trailing padding tokens of the model are skipped, as in transformers. If the padding token is also the end
    token, the score is therefore taken at the token before.

    Raises:
        ValueError: a prompt has no tokens.
    """
    last = row_lengths(sequences.mask)
    pad = model.config.get_text_config().pad_token_id  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    if pad is not None:
        within = torch.arange(sequences.tokens.shape[1], device=last.device) < last[:, None]
        last = row_lengths(within & (sequences.tokens != pad))
    hidden = hidden_states_after(model, sequences)
    return _head(model, hidden[torch.arange(len(last), device=hidden.device), last.to(hidden.device)])


def token_scores(model: nn.Module, sequences: Sequences) -> Float[Tensor, "b t"]:
    """The head's output at every token; a process reward model's score of a step is at its last token.

    Raises:
        ValueError: a prompt has no tokens.
    """
    return _head(model, hidden_states_after(model, sequences)[:, 1:])


def _head(model: nn.Module, hidden: Tensor) -> Tensor:
    """The head's output for each hidden state, in the weights' precision, so that close scores stay distinct."""
    head = cast(nn.Linear, model.score)
    with torch.autocast(hidden.device.type, enabled=False):
        return head(hidden.to(head.weight.dtype)).squeeze(-1)


def build_reward_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """A reward model on the trunk of a causal language model, with a new random head (small weights, by ``seed``).

    transformers finds a row's last token by the padding token. So model and tokenizer get a padding token that never
    ends a response: with the end token as padding, the score would not be taken at the end.

    Raises:
        ValueError: transformers has no sequence classification for this architecture, or the model fails the probe.
    """
    config = copy.deepcopy(model.config)
    config.num_labels, config.architectures = 1, None
    candidates = [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id]
    embeddings: Any = model.get_input_embeddings()
    count = embeddings.weight.shape[0]
    usable = (t for t in candidates if t is not None and t != tokenizer.eos_token_id and t < count)
    pad = next(usable, None)
    config.get_text_config().pad_token_id = config.pad_token_id = pad
    if pad is not None:
        tokenizer.pad_token = str(tokenizer.convert_ids_to_tokens(cast(int, pad)))
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            reward_model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    except ValueError as error:
        raise ValueError(
            f"{type(model).__name__}: transformers has no sequence classification for this architecture ("
            f"{shorten(str(error), 120)}); start from another one, such as Llama or Qwen"
        ) from None
    cast(nn.Module, reward_model.base_model).load_state_dict(cast(nn.Module, model.base_model).state_dict())
    return prepare_reward_model(reward_model, model.device)


def is_reward_model(name: str) -> bool:
    """True if the configuration at ``name`` declares a sequence-classification model, such as a reward model."""
    try:
        architectures = AutoConfig.from_pretrained(name).architectures or []
    except Exception:  # loading the model will raise the actual error
        return False
    return any(architecture.endswith("ForSequenceClassification") for architecture in architectures)


@no_progress_bars()
def load_reward_model(name: str, device: torch.device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The reward model and tokenizer at ``name`` (a folder, or a repository of the Hub), weights in float32.

    Raises:
        ValueError: the model or tokenizer cannot be loaded; it is not a reward model, or has more than one label; or it
            fails the probe.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True
        )
        model, info = loaded
    except Exception as error:  # every library that reads a file has its own errors
        where = load_location(name)
        message = f"reward model {name!r}: cannot be loaded from {where} ({shorten(str(error), 300)})"
        raise ValueError(message) from error
    if info["missing_keys"]:  # transformers would initialize them at random
        missing = sorted(info["missing_keys"])
        raise ValueError(
            f"reward model {name!r}: its files lack {missing[0]}, so it is not a reward model; train one with "
            "grape train reward_model"
        )
    if model.config.num_labels != 1:
        raise ValueError(f"reward model {name!r}: it has {model.config.num_labels} labels, but a reward model has one")
    copy_to_own_memory(model)
    return prepare_reward_model(model, device), tokenizer


def prepare_reward_model(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """The model on ``device``, in evaluation mode for good, and verified by a probe.

    The probe has two prompts with two responses each, of different lengths, padded and sharing their prompts. Each
    row's score must equal the model's own forward pass over only that row.

    Raises:
        ValueError: the model fails the probe.
    """
    model = model.to(device).eval()  # pyright: ignore[reportCallIssue, reportArgumentType]
    mask = torch.tensor([[True, True, True], [True, False, False]] * 2)
    tokens = torch.arange(12).view(4, 3) % 5 + 4
    probe = Sequences((torch.arange(4, 5), torch.arange(4, 7)), tokens, mask, torch.tensor([0, 0, 1, 1]))
    try:
        with torch.no_grad():
            batched = sequence_scores(model, probe).cpu()
            rows = [torch.cat([probe.prompts[i // 2], tokens[i][mask[i]]])[None].to(device) for i in range(4)]
            expected = torch.cat([model(input_ids=row).logits[0] for row in rows]).cpu()
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{type(model).__name__}: does not support shared prompts ({error})") from error
    gap = ((batched - expected).abs() / (1 + expected.abs())).max().item()
    if not gap < 1e-3:  # NaN fails too
        raise ValueError(
            f"{type(model).__name__}: scores of a padded batch differ by {gap:.2g} from its own forward pass"
        )
    return model


def step_separator(model: PreTrainedModel) -> str | None:
    """The text that ends a step, for a process reward model; None for a model that scores whole responses."""
    return getattr(model.config, SEPARATOR_KEY, None)


def set_step_separator(model: PreTrainedModel, separator: str | None) -> None:
    """Set the step separator in the model's configuration, which is saved with it; None for an outcome reward model."""
    setattr(model.config, SEPARATOR_KEY, separator)
