"""Models of the speed benchmarks: random weights in real shapes, with a tokenizer trained on GSM8K.

    python benchmarks/shapes.py NAME FOLDER --data DATA

NAME is tiny, gsm, wide or qwen05. DATA is the folder of GSM8K (see speed/data.py). The model is written to FOLDER.
"""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from grape_rl.cli.arguments import parsed_arguments
from grape_rl.schema import nearest
from speed.data import solved_texts

SMALL = {"hidden_size": 384, "num_hidden_layers": 8, "num_attention_heads": 6, "num_key_value_heads": 3}
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "tiny": {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2},
    "gsm": SMALL,
    "wide": SMALL | {"vocab_size": 32_000},
    "qwen05": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151_936,
    },
}
"""Shapes of Qwen2 models, by parameters and vocabulary: tiny 0.8M and 81, gsm 17M and 8k, wide 26M and 32k (the LM head
is half the work), and qwen05 494M and 152k (Qwen2.5-0.5B, for a GPU). Defaults: a feed-forward width of 3 times the
hidden size, and the vocabulary of the tokenizer."""

CONTEXT = 2048
END = "<|endoftext|>"
SPECIAL = ["<pad>", END]
LETTERS = "0123456789+-*/=()?.,abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ:<>!'\"_"
"""Without white space, so that a byte-level tokenizer in its place encodes texts identically."""


def letters() -> PreTrainedTokenizerFast:
    """Character-level tokenizer with 81 tokens."""
    return _wrapped(Tokenizer(models.BPE(vocab={t: i for i, t in enumerate([*SPECIAL, *LETTERS])}, merges=[])))


def byte_pairs(texts: Iterable[str], vocabulary: int = 8192) -> PreTrainedTokenizerFast:
    """Byte-level BPE tokenizer trained on the texts, with Qwen's pre-tokenizer.

    transformers applies Qwen's pre-tokenizer and end token to every Qwen2 model, whatever the tokenizer file contains.
    With another pre-tokenizer, a program that reads the file itself would get different tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _wrapped(tokenizer)


def built(name: str, texts: Iterable[str]) -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerFast]:
    """Model of the named shape with deterministic random weights, and its tokenizer, trained on the texts.

    Raises:
        ValueError: an unknown shape.
    """
    if name not in SHAPES:
        raise ValueError(f"unknown shape {name!r}{nearest(name, SHAPES)}; choose from {', '.join(SHAPES)}")
    tokenizer = letters() if name == "tiny" else byte_pairs(texts)
    shape = {"vocab_size": len(tokenizer), "intermediate_size": 3 * SHAPES[name]["hidden_size"], **SHAPES[name]}
    return model(shape), tokenizer


def model(shape: Mapping[str, Any]) -> Qwen2ForCausalLM:
    """Qwen2 model of this shape with random weights, its LM head tied to its embeddings."""
    ends: dict[str, Any] = {"pad_token_id": SPECIAL.index("<pad>"), "eos_token_id": SPECIAL.index(END)}
    config = Qwen2Config(max_position_embeddings=CONTEXT, tie_word_embeddings=True, **shape, **ends)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Qwen2ForCausalLM(config)


def write(name: str, folder: Path, texts: Iterable[str]) -> None:
    """Write the model and its tokenizer as a folder in Hugging Face layout."""
    network, tokenizer = built(name, texts)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)  # last: its file marks the folder as complete


def _wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    if tokenizer.decoder is None:
        tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token=END, unk_token=END)


if __name__ == "__main__":
    try:
        words, own, _ = parsed_arguments(sys.argv[1:], known=["data"])
        if len(words) != 2 or "data" not in own:
            raise ValueError("name a shape and a folder, and --data with GSM8K")
        write(words[0], Path(words[1]), solved_texts(Path(str(own["data"]))))
    except ValueError as error:
        sys.exit(f"{error}")
