"""Tokens that a tokenizer has and a model has no embedding for: harmless as long as no row is encoded with one."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer
else:  # transformers is slow to import, and a tokenizer is passed in
    Tokenizer = Any

EMBEDDINGS_ATTRIBUTE = "grape_rl_embeddings"


def set_embedding_limit(tokenizer: Tokenizer, embeddings: int) -> None:
    """Let no row be encoded, from now on, with a token beyond the model's ``embeddings``, where the tokenizer has any.

    Such tokens may be there beside the vocabulary: transformers gives a tokenizer the special tokens of its class,
    whether the model has them or not.

    Raises:
        ValueError: a token of the vocabulary itself is beyond them: this is another model's tokenizer.
    """
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= embeddings}
    if plain := [token for token, number in beyond.items() if number not in tokenizer.added_tokens_decoder]:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens, {plain[0]!r} (token {beyond[plain[0]]}) among them, and the "
            f"model's embeddings only {embeddings}"
        )
    if beyond:
        setattr(tokenizer, EMBEDDINGS_ATTRIBUTE, embeddings)


def require_embeddings(tokenizer: Tokenizer, tokens: list[int], where: str) -> list[int]:
    """The tokens of a row, each of which the model has an embedding for: see ``limited``.

    Raises:
        ValueError: it has none for one of them; the message names the row and the token.
    """
    beyond = unembedded_tokens(tokenizer, tokens)
    if beyond:
        raise ValueError(
            f"{where}: has {tokenizer.decode(beyond[:1])!r} in it, token {beyond[0]}, and the model's embeddings are "
            f"only {getattr(tokenizer, EMBEDDINGS_ATTRIBUTE)}; take it out, or give the model an embedding for it"
        )
    return tokens


def unembedded_tokens(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[int]:
    """Those of the tokens that the model has no embedding for."""
    limit = getattr(tokenizer, EMBEDDINGS_ATTRIBUTE, None)
    return [] if limit is None or not tokens or max(tokens) < limit else [t for t in tokens if t >= limit]
