"""A small causal language model with its tokenizer, built from scratch: random weights, no download."""

from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL_TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>"]
TokenizerKind = Literal["characters", "bpe"]


def random_llama(
    tokenizer: PreTrainedTokenizerFast, hidden: int, layers: int, heads: int, context: int, seed: int
) -> LlamaForCausalLM:
    """A Llama model of the given shape with random weights: half as many key-value heads, a 3x feed-forward layer.

    Llama, because transformers reads a saved tokenizer beside it as it is; beside a Qwen2 it takes Qwen's own instead,
    which drops spaces and passages.

    Raises:
        ValueError: ``hidden`` is no multiple of ``heads``, or ``heads`` is odd.
    """
    if hidden % heads or heads % 2:
        raise ValueError(f"a model of hidden size {hidden} with {heads} heads: heads must be even and divide hidden")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=hidden // heads,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        pad_token_id=SPECIAL_TOKENS.index("<pad>"),
        eos_token_id=SPECIAL_TOKENS.index("<eos>"),
        bos_token_id=SPECIAL_TOKENS.index("<bos>"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def character_tokenizer(texts: Iterable[str], passages: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """One token per character that occurs in ``texts``, and one per whole passage of ``passages``.

    A passage is what all prompts of a task share word for word (see ``shared_passages``): as one token it costs the
    model one position instead of hundreds, and the characters that vary stay single.
    """
    vocabulary = {token: i for i, token in enumerate(SPECIAL_TOKENS)}
    for character in sorted({c for text in texts for c in text}):
        vocabulary.setdefault(character, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_tokens(sorted(passages, key=len, reverse=True))
    return _wrapped(tokenizer)


def bpe_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of ``vocabulary`` tokens trained on ``texts``, each digit a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _wrapped(tokenizer)


def shared_passages(texts: Sequence[str], shortest: int = 4) -> list[str]:
    """What all ``texts`` begin with, and what all end with, where that is at least ``shortest`` characters.

    >>> shared_passages(["Spell backward: sun.", "Spell backward: moon."])
    ['Spell backward: ']
    """
    prefix = _shared_start(texts)
    suffix = _shared_start([text[len(prefix) :][::-1] for text in texts])[::-1]
    return [passage for passage in (prefix, suffix) if len(passage) >= shortest]


def _shared_start(texts: Sequence[str]) -> str:
    return "".join(c[0] for c in takewhile(lambda c: len(set(c)) == 1, zip(*texts, strict=False)))


def _wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
