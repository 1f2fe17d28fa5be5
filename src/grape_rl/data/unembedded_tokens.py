"""Tokens of a tokenizer that have no embedding in the model. They are harmless unless a row contains one."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer
else:  # transformers is slow to import, and a tokenizer is passed in
    Tokenizer = Any

EMBEDDINGS_ATTRIBUTE = "grape_rl_embeddings"
"""The attribute of a tokenizer that holds the model's number of embeddings, if some of its tokens exceed that."""


def set_embedding_limit(tokenizer: Tokenizer, embeddings: int) -> None:
    """Make ``require_embeddings`` refuse tokens that have no embedding among the model's ``embeddings``.

    Such tokens are special tokens added on top of the vocabulary. transformers gives a tokenizer the special tokens of
    its class, even if the model has no embeddings for them.

    Raises:
        ValueError: a token of the vocabulary itself has no embedding, so the tokenizer belongs to another model.
    """
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= embeddings}
    if ordinary := [token for token, number in beyond.items() if number not in tokenizer.added_tokens_decoder]:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens, including {ordinary[0]!r} (token {beyond[ordinary[0]]}), but "
            f"the model has only {embeddings} embeddings; use the model's own tokenizer"
        )
    if beyond:
        setattr(tokenizer, EMBEDDINGS_ATTRIBUTE, embeddings)


def require_embeddings(tokenizer: Tokenizer, tokens: list[int], where: str) -> list[int]:
    """The tokens of a row, unchanged, if the model has an embedding for each: see ``set_embedding_limit``.

    Raises:
        ValueError: a token has no embedding; the message names the row and the token.
    """
    beyond = unembedded_tokens(tokenizer, tokens)
    if beyond:
        raise ValueError(
            f"{where}: contains {tokenizer.decode(beyond[:1])!r}, token {beyond[0]}, but the model has only "
            f"{getattr(tokenizer, EMBEDDINGS_ATTRIBUTE)} embeddings; remove it, or add an embedding to the model"
        )
    return tokens


def unembedded_tokens(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[int]:
    """The tokens for which the model has no embedding."""
    limit = getattr(tokenizer, EMBEDDINGS_ATTRIBUTE, None)
    return [] if limit is None or not tokens or max(tokens) < limit else [t for t in tokens if t >= limit]
