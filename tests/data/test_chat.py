"""Tokens of prompts and completions, with small tokenizers that are built here."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from grape_rl.data.chat import (
    Example,
    TruncationStats,
    check_prompt_lengths,
    collate_examples,
    completion_tokens,
    decode_text,
    end_tokens,
    prompt_tokens,
)
from grape_rl.data.demonstrations import tokenize_demonstrations
from grape_rl.data.rows import with_prompts

LETTERS = [chr(code) for code in range(32, 127)] + ["\n", "\t", "▁"]
SPECIALS = ["<bos>", "<eos>", "<user>", "<bot>", "<turn>"]
TEMPLATE = (
    "{{ bos_token or '' }}{% for m in messages %}{{ '<user>' if m['role'] == 'user' else '<bot>' }}{{ m['content'] }}"
    "<turn>\n{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)
OPEN_TEMPLATE = TEMPLATE.replace("<turn>", "")


def build_tokenizer(template=None, adds="$A", eos="<eos>", merges=(), metaspace=False):
    """A character tokenizer. ``adds`` is the template of its post-processor: special tokens around the text $A."""
    vocabulary = {piece: i for i, piece in enumerate([*SPECIALS, *LETTERS, *(a + b for a, b in merges)])}
    inner = Tokenizer(models.BPE(vocabulary, list(merges)))
    inner.decoder = decoders.Fuse()
    if metaspace:
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
        inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    ids = [(piece, vocabulary[piece]) for piece in SPECIALS]
    inner.post_processor = processors.TemplateProcessing(single=adds, special_tokens=ids)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token=eos, bos_token="<bos>", additional_special_tokens=SPECIALS[2:]
    )
    tokenizer.chat_template = template
    return tokenizer


def token_names(tokenizer, tokens):
    """The tokens' names, concatenated."""
    return "".join(tokenizer.convert_ids_to_tokens(tokens.tolist()))


def user(content):
    return {"role": "user", "content": content}


def bot(content):
    return {"role": "assistant", "content": content}


@pytest.mark.parametrize(
    ("adds", "expected"),
    [("$A", "ab"), ("<bos> $A", "<bos>ab"), ("<bos> $A <eos>", "<bos>ab"), ("$A <eos>", "ab")],
)
def test_a_plain_prompt_keeps_added_begin_tokens_and_loses_an_added_end_token(adds, expected):
    tokenizer = build_tokenizer(adds=adds)
    tokens = prompt_tokens(tokenizer, "ab")
    assert token_names(tokenizer, tokens) == expected
    assert tokens.dtype == torch.int64


@pytest.mark.parametrize("adds", ["$A", "$A <eos>", "<bos> $A", "<bos> $A <eos>"])
def test_an_end_token_that_the_prompt_spells_itself_stays(adds):
    tokenizer = build_tokenizer(adds=adds)
    assert token_names(tokenizer, prompt_tokens(tokenizer, "a<eos>")).removeprefix("<bos>") == "a<eos>"


def test_a_conversational_prompt_ends_with_the_assistants_header_and_has_one_begin_token():
    tokenizer = build_tokenizer(TEMPLATE, adds="<bos> $A <eos>")
    tokens = prompt_tokens(tokenizer, [user("hi"), bot("yo"), user("so")])
    assert token_names(tokenizer, tokens) == "<bos><user>hi<turn>\n<bot>yo<turn>\n<user>so<turn>\n<bot>"


def test_invalid_prompts_are_refused():
    with pytest.raises(
        ValueError, match="row 4: the prompt is a list of messages, but the tokenizer has no chat template"
    ):
        prompt_tokens(build_tokenizer(), [user("hi")], "row 4")
    with pytest.raises(ValueError, match="row 4: the prompt has no tokens"):
        prompt_tokens(build_tokenizer(), "é", "row 4")
    strict = build_tokenizer("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ValueError, match="row 4: the chat template rejects the messages: roles must alternate"):
        prompt_tokens(strict, [user("hi")], "row 4")


@pytest.mark.parametrize(
    ("completion", "expected"),
    [("cd", "cd<eos>"), ("cd\n", "cd\n<eos>"), ("cd<eos>", "cd<eos>"), ("cd<eos>\n", "cd<eos>"), (" <eos>", " <eos>")],
)
def test_a_plain_completion_ends_in_one_end_token(completion, expected):
    tokenizer = build_tokenizer(adds="<bos> $A <eos>")
    end = end_tokens(tokenizer)
    assert token_names(tokenizer, completion_tokens(tokenizer, "ab", completion, end)) == expected


@pytest.mark.parametrize("adds", ["$A", "<bos> $A <eos>"])
def test_a_plain_completion_continues_the_prompt_without_an_added_space(adds):
    tokenizer = build_tokenizer(adds=adds, metaspace=True)
    end = end_tokens(tokenizer)
    assert tokenizer.tokenize("4") == ["▁", "4"], "the trap is there"
    both = torch.cat([prompt_tokens(tokenizer, "2 + 2="), completion_tokens(tokenizer, "2 + 2=", "4", end)])
    assert decode_text(tokenizer, both) == "2 + 2=4"


@pytest.mark.parametrize("adds", ["$A", "<bos> $A <eos>"])
def test_a_token_across_the_seam_is_not_used(adds):
    tokenizer = build_tokenizer(adds=adds, merges=[("b", "c")])
    assert tokenizer.tokenize("abcd") == ["a", "bc", "d"], "the trap is there"
    tokens = completion_tokens(tokenizer, "ab", "cd", end_tokens(tokenizer))
    assert tokenizer.convert_ids_to_tokens(tokens.tolist()) == ["c", "d", "<eos>"]


@pytest.mark.parametrize(
    ("template", "ends", "expected"),
    [
        (TEMPLATE, ["<turn>"], "Hi\n<turn>"),  # the template's end; its newline is cut
        (TEMPLATE, ["<eos>", "<turn>"], "Hi\n<turn>"),
        (TEMPLATE, ["<eos>"], "Hi\n<turn>\n<eos>"),  # <turn> ends nothing here
        (OPEN_TEMPLATE, ["<turn>", "<eos>"], "Hi\n\n<turn>"),  # none in the template: the first one is appended
        (TEMPLATE + "{{ '' if add_generation_prompt else eos_token }}", ["<eos>", "<turn>"], "Hi\n<turn>"),
    ],
)
def test_a_conversational_completion_ends_where_sampling_would(template, ends, expected):
    tokenizer = build_tokenizer(template)
    end = tuple(tokenizer.convert_tokens_to_ids(ends))
    tokens = completion_tokens(tokenizer, [user("a")], [bot("Hi\n")], end)
    assert token_names(tokenizer, tokens) == expected
    whole = tokenizer.apply_chat_template([user("a"), bot("Hi\n")], tokenize=False)
    shown = token_names(tokenizer, prompt_tokens(tokenizer, [user("a")])) + "Hi\n"
    assert whole.startswith(shown)


def test_a_template_that_rewrites_the_prompt_is_refused():
    tokenizer = build_tokenizer("{% for m in messages %}{{ loop.length }}{{ m['content'] }}{% endfor %}")
    with pytest.raises(
        ValueError, match=r"row 3: the chat template writes the prompt differently .*'1ab' alone, '2ab2c'"
    ):
        completion_tokens(tokenizer, [user("ab")], [bot("c")], (1,), "row 3")


def test_plain_and_conversational_do_not_mix():
    with pytest.raises(ValueError, match="must both be plain text or both be messages"):
        completion_tokens(build_tokenizer(TEMPLATE), "ab", [bot("c")], (1,))


def test_every_declared_end_token_counts_once_in_order():
    tokenizer, silent = build_tokenizer(), build_tokenizer(eos=None)
    assert end_tokens(tokenizer) == (1,)
    assert end_tokens(tokenizer, SimpleNamespace(eos_token_id=None)) == (1,)
    assert end_tokens(tokenizer, SimpleNamespace(eos_token_id=4)) == (1, 4)
    assert end_tokens(tokenizer, SimpleNamespace(eos_token_id=[4, 1, 3, 4])) == (1, 4, 3)
    assert end_tokens(silent, SimpleNamespace(eos_token_id=0)) == (0,)
    with pytest.raises(ValueError, match="the tokenizer has no end token"):
        end_tokens(silent, SimpleNamespace())


def test_examples_are_truncated_to_the_limit_and_counted():
    tokenizer = build_tokenizer(adds="<bos> $A")
    pairs = [("a", "bcdef"), ("ab", "c"), ("abcde", "f"), ("abcd", "ef")]
    # With <bos> and <eos>: 2 + 6, 3 + 2, 6 + 2, 5 + 3 tokens.
    given = [{"prompt": prompt, "completion": completion} for prompt, completion in pairs]
    examples, stats = tokenize_demonstrations(given, "completion", tokenizer, end_tokens(tokenizer), max_length=6)
    assert [token_names(tokenizer, example.prompt) for example in examples] == ["<bos>a", "<bos>ab", "<bos>abcd"]
    assert [token_names(tokenizer, example.completion) for example in examples] == ["bcde", "c<eos>", "e"]
    assert stats == TruncationStats(rows=4, truncated=2, dropped=1, tokens=7)
    whole, stats = tokenize_demonstrations(given, "completion", tokenizer, end_tokens(tokenizer), max_length=8)
    assert stats == TruncationStats(rows=4, truncated=0, dropped=0, tokens=13)
    assert [len(example.prompt) + len(example.completion) for example in whole] == [8, 5, 8, 8]


def test_examples_without_a_token_to_learn_and_the_row_of_an_error():
    tokenizer = build_tokenizer()
    with pytest.raises(ValueError, match=r"d.csv: none of the 1 rows has a token to learn.*2 tokens of max_length"):
        tokenize_demonstrations([{"prompt": "ab", "completion": "c"}], "completion", tokenizer, (1,), 2, "d.csv")
    with pytest.raises(ValueError, match=r"d.csv: row 1: .*no chat template"):
        good = {"prompt": "ab", "completion": "c"}
        tokenize_demonstrations(
            [good, {"prompt": [user("a")], "completion": [bot("b")]}], "completion", tokenizer, (1,), 9, "d.csv"
        )
    with pytest.raises(ValueError, match=r"d.csv: row 1: .*both be plain"):
        tokenize_demonstrations(
            [good, {"prompt": "ab", "completion": [bot("b")]}], "completion", tokenizer, (1,), 9, "d.csv"
        )


def test_a_truncated_completion_does_not_hold_the_whole_in_memory():
    tokenizer = build_tokenizer()
    (example,), _ = tokenize_demonstrations(
        [{"prompt": "a", "completion": "b" * 1000}], "completion", tokenizer, (1,), 4
    )
    assert example.completion.untyped_storage().nbytes() == 3 * 8


def test_conversational_rows_from_data_to_tokens():
    tokenizer = build_tokenizer(TEMPLATE)
    conversations = with_prompts([{"q": [user("a")], "r": [bot("b")]}], "q", "r", system="s")
    (example,), _ = tokenize_demonstrations(
        conversations, "completion", tokenizer, tuple(tokenizer.convert_tokens_to_ids(["<turn>"])), 99
    )
    assert token_names(tokenizer, example.prompt) == "<bos><bot>s<turn>\n<user>a<turn>\n<bot>"
    assert token_names(tokenizer, example.completion) == "b<turn>"


def test_collated_examples_pad_on_the_right_and_mask_the_padding():
    stats = [(2, 3), (1, 1), (4, 2)]
    given = [Example(torch.full((p,), 7), torch.full((t,), 9)) for p, t in stats]
    batch = collate_examples(given)
    assert batch.tokens.tolist() == [[9, 9, 9], [9, 0, 0], [9, 9, 0]]
    assert batch.mask.tolist() == [[True, True, True], [True, False, False], [True, True, False]]
    assert [len(batch.prompts[g]) for g in batch.group.tolist()] == [2, 1, 4]
    assert (batch.tokens.dtype, batch.mask.dtype) == (torch.int64, torch.bool)
    with pytest.raises(ValueError, match="no examples to collate"):
        collate_examples([])


def test_a_completion_of_token_0_is_not_mistaken_for_padding():
    batch = collate_examples(
        [Example(torch.tensor([5]), torch.tensor([0, 0])), Example(torch.tensor([5]), torch.tensor([3]))]
    )
    assert batch.mask.tolist() == [[True, True], [True, False]]


def test_a_prompt_that_leaves_no_room_is_named_with_its_length():
    prompts = [torch.arange(3), torch.arange(5)]
    examples = check_prompt_lengths(prompts, 5)
    assert all(a is b for a, b in zip(examples, prompts, strict=True))
    with pytest.raises(ValueError, match=r"d.csv: row 1: the prompt has 5 tokens, but at most 4"):
        check_prompt_lengths(prompts, 4, "d.csv")


def test_text_has_no_special_tokens_and_keeps_its_spaces():
    tokenizer = build_tokenizer()
    original = "a  , b .\n n't "
    tokens = torch.tensor(tokenizer(f"<bos><bot>{original}<turn><eos>")["input_ids"])
    assert decode_text(tokenizer, tokens) == original
    assert decode_text(tokenizer, tokens[:0]) == ""


def test_importing_chat_does_not_import_transformers():
    code = "import sys, grape_rl.data.chat; print('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
