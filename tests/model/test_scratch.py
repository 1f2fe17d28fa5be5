"""Tokenizers and models from scratch: lossless text, passages, digits, unknown characters, seeds."""

import pytest
import torch

from grape_rl.model.scratch import SPECIAL_TOKENS, bpe_tokenizer, character_tokenizer, random_llama, shared_passages

PROMPTS = ["Spell backward: sun.\nGive only the word.", "Spell backward: moon 12.\nGive only the word."]
PASSAGES = ["Spell backward: ", ".\nGive only the word."]


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False).input_ids


def test_a_passage_is_one_token_and_all_else_one_token_a_character():
    tokenizer = character_tokenizer(PROMPTS, PASSAGES)
    for text, length in zip(PROMPTS, (5, 9), strict=True):
        found = ids(tokenizer, text)
        assert len(found) == length
        assert [tokenizer.decode([found[0]]), tokenizer.decode([found[-1]])] == PASSAGES
        assert [tokenizer.decode([i]) for i in found[1:-1]] == list(text[len(PASSAGES[0]) : -len(PASSAGES[1])])


@pytest.mark.parametrize("passages", [[], PASSAGES])
@pytest.mark.parametrize("text", [*PROMPTS, "nus", " moon  12\n", "..", "Spell backward: Spell backward: "])
def test_text_comes_back_from_its_characters(text, passages):
    tokenizer = character_tokenizer(PROMPTS, passages)
    assert tokenizer.decode(ids(tokenizer, text)) == text
    assert tokenizer.decode([*ids(tokenizer, text), tokenizer.eos_token_id], skip_special_tokens=True) == text


def test_the_longer_of_two_passages_wins():
    tokenizer = character_tokenizer(["a word, a word more"], ["a word", "a word more"])
    assert [tokenizer.decode([i]) for i in ids(tokenizer, "a word more")] == ["a word more"]


def test_unseen_characters_are_one_unknown_token_each():
    tokenizer = character_tokenizer(["abc"])
    assert ids(tokenizer, "aéb") == [*ids(tokenizer, "a"), tokenizer.unk_token_id, *ids(tokenizer, "b")]
    assert len(tokenizer) == len(SPECIAL_TOKENS) + 3


@pytest.mark.parametrize("built", [character_tokenizer(["abc 0"]), bpe_tokenizer(["abc abc abc 0"], 300)])
def test_special_tokens_have_the_ids_of_the_model_s_configuration(built):
    assert [built.pad_token_id, built.eos_token_id, built.bos_token_id, built.unk_token_id] == [0, 1, 2, 3]
    assert built.convert_ids_to_tokens([0, 1, 2, 3]) == SPECIAL_TOKENS


def test_byte_pairs_merge_words_but_never_digits():
    tokenizer = bpe_tokenizer(["what is 1212 plus 1212 ?"] * 50, 300)
    assert len(tokenizer) <= 300
    assert len(ids(tokenizer, "what")) < len("what")
    for text in ("12", "1212", "99", "x12y"):
        pieces = [tokenizer.decode([i]) for i in ids(tokenizer, text)]
        assert [p for p in pieces if any(c.isdigit() for c in p)] == [c for c in text if c.isdigit()]
    for text in ("what is 1212 plus 7 ?", " é – 漢字\n\t", "no  spaces   lost "):
        assert tokenizer.decode(ids(tokenizer, text)) == text


@pytest.mark.parametrize(
    ("texts", "shared"),
    [
        (PROMPTS, PASSAGES),
        (["abcd1", "abcd2"], ["abcd"]),
        (["1abcd", "2abcd"], ["abcd"]),
        (["abc1", "abc2"], []),  # shorter than four characters
        (["same text", "same text"], ["same text"]),  # once: nothing is left for the suffix
        (["abcdef", "abcd"], ["abcd"]),
        (["abcdabcd", "abcd"], ["abcd"]),  # the two may not overlap
        (["no", "yes"], []),
        ([], []),
    ],
)
def test_shared_passages(texts, shared):
    assert shared_passages(texts) == shared


def test_a_model_from_scratch_is_the_same_for_the_same_seed_only():
    tokenizer = character_tokenizer(["abc"])
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first, again, other = (random_llama(tokenizer, 8, 1, 2, 16, seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    probe = torch.tensor([[1, 4, 5]])
    assert torch.equal(first(probe).logits, again(probe).logits)
    assert not torch.equal(first(probe).logits, other(probe).logits)
    assert first(probe).logits.shape == (1, 3, len(tokenizer))


@pytest.mark.parametrize(("hidden", "heads"), [(10, 4), (9, 3)])
def test_heads_that_do_not_divide_are_refused(hidden, heads):
    with pytest.raises(ValueError, match=f"hidden size {hidden} with {heads} heads: heads must be even and divide"):
        random_llama(character_tokenizer(["abc"]), hidden, 1, heads, 16, seed=0)
