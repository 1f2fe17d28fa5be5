"""Models from scratch: a small Llama with random weights, and tokenizers (characters or BPE) built from texts."""

from collections.abc import Iterable, Sequence
from itertools import takewhile

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL_TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>"]


def random_llama(
    tokenizer: PreTrainedTokenizerFast, hidden: int, layers: int, heads: int, context: int, seed: int
) -> LlamaForCausalLM:
    """A Llama model of this shape with random weights, half as many key-value heads and a 3x feed-forward layer.

    transformers loads a tokenizer that is saved with a Llama model unchanged. With a Qwen2 model, it would replace the
    tokenizer by Qwen's own, which drops spaces and passages.

    Raises:
        ValueError: ``hidden`` is not a multiple of ``heads``, or ``heads`` is odd.
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
    """A tokenizer with one token per character of ``texts``, and one per passage of ``passages``.

    A passage is text that all prompts of a task share verbatim (see ``shared_passages``). As one token it takes one
    position instead of hundreds, while the text that varies is tokenized by character.
    """
    vocabulary = {token: i for i, token in enumerate(SPECIAL_TOKENS)}
    for character in sorted({c for text in texts for c in text}):
        vocabulary.setdefault(character, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_tokens(sorted(passages, key=len, reverse=True))
    return _wrapped(tokenizer)


def bpe_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with ``vocabulary`` tokens, trained on ``texts``; each digit is a separate token."""
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
    """The common prefix and the common suffix of all ``texts``, if they have at least ``shortest`` characters.

    >>> shared_passages(["Spell backward: sun.", "Spell backward: moon."])
    ['Spell backward: ']
    """
    prefix = _common_prefix(texts)
    suffix = _common_prefix([text[len(prefix) :][::-1] for text in texts])[::-1]
    return [passage for passage in (prefix, suffix) if len(passage) >= shortest]


def _common_prefix(texts: Sequence[str]) -> str:
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
