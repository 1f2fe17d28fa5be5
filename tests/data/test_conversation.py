"""Tokens and loss masks of conversations, token by token, for three kinds of chat templates."""

import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, processors
from transformers import PreTrainedTokenizerFast

from grape_rl.data.chat import collate_examples, prompt_tokens
from grape_rl.data.chat_template import template_arguments
from grape_rl.data.conversation import conversation_tokens
from grape_rl.data.demonstrations import demonstration_tokens, tokenize_demonstrations

SPECIALS = ["<bos>", "<eos>", "<|im_start|>", "<|im_end|>", "<|head|>", "<|/head|>", "<|eot|>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|head|>{{ m.role }}<|/head|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant<|/head|>\n\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}A:{% generation %}{{ m.content }}<eos>"
    "{% endgeneration %}{{ '\n' }}"
    "{% else %}U:{{ m.content }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
)
MARKED_SHORT = MARKED.replace("<eos>{% endgeneration %}", "{% endgeneration %}<eos>")
MARKED_LONG = MARKED.replace("<eos>{% endgeneration %}{{ '\n' }}", "<eos>\n{% endgeneration %}")
THINKING = CHATML.replace("{{ m.content }}", "{{ m.content if loop.last else m.content.split('!')[-1] }}")
OPEN = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
TALK = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "ab"},
    {"role": "user", "content": "so"},
    {"role": "assistant", "content": "c"},
]


def build_tokenizer(template, adds="$A"):
    """A tokenizer with one token per special token and per character."""
    pieces = [*SPECIALS, *map(chr, range(32, 127)), "\n"]
    inner = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    inner.decoder = decoders.Fuse()
    inner.post_processor = processors.TemplateProcessing(
        single=adds, special_tokens=[(piece, i) for i, piece in enumerate(SPECIALS)]
    )
    found = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<bos>", eos_token="<eos>", additional_special_tokens=SPECIALS[2:]
    )
    found.chat_template = template
    return found


def ends(tokenizer, *names):
    return tuple(tokenizer.convert_tokens_to_ids(list(names)))


def shown(tokenizer, tokens, loss_mask):
    """The tokens' names; the loss_mask ones in [brackets]."""
    names = tokenizer.convert_ids_to_tokens(tokens)
    text = "".join(f"[{name}]" if on else name for name, on in zip(names, loss_mask, strict=True))
    return text.replace("][", "")


@pytest.mark.parametrize(
    ("template", "end", "expected"),
    [
        (
            CHATML,
            ["<eos>", "<|im_end|>"],
            "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n[ab<|im_end|>]\n"
            "<|im_start|>user\nso<|im_end|>\n<|im_start|>assistant\n[c<|im_end|>]\n",
        ),
        (
            LLAMA,
            ["<|eot|>"],
            "<bos><|head|>system<|/head|>\n\ns<|eot|><|head|>user<|/head|>\n\nhi<|eot|><|head|>assistant<|/head|>\n\n"
            "[ab<|eot|>]<|head|>user<|/head|>\n\nso<|eot|><|head|>assistant<|/head|>\n\n[c<|eot|>]",
        ),
        (MARKED, ["<eos>"], "U:s\nU:hi\nA:[ab<eos>]\nU:so\nA:[c<eos>]\n"),
        (MARKED_SHORT, ["<eos>"], "U:s\nU:hi\nA:[ab<eos>]\nU:so\nA:[c<eos>]\n"),
        (MARKED_LONG, ["<eos>"], "U:s\nU:hi\nA:[ab<eos>]\nU:so\nA:[c<eos>]\n"),
        # No end token in the template: the last message gets one; where the others end cannot be loss_mask.
        (OPEN, ["<eos>"], "s:s\nu:hi\na:[ab]\nu:so\na:[c\n<eos>]"),
        # <|im_end|> ends nothing here, and is loss_mask like text.
        (CHATML, ["<eos>"], "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
         "[ab<|im_end|>]\n<|im_start|>user\nso<|im_end|>\n<|im_start|>assistant\n[c<|im_end|>\n<eos>]"),
    ],
    ids=["chatml", "llama", "marked", "marks end early", "marks end late", "no end", "another end"],
)  # fmt: skip
def test_every_assistant_message_is_learned_and_nothing_else(template, end, expected):
    tokenizer = build_tokenizer(template)
    tokens, loss_mask = conversation_tokens(tokenizer, TALK, ends(tokenizer, *end), "row 0", {})
    assert shown(tokenizer, tokens, loss_mask) == expected
    assert tokens[: len(expected)] and tokens.count(tokenizer.bos_token_id) <= 1, "one beginning"


@pytest.mark.parametrize("template", [CHATML, LLAMA])
def test_marks_and_prefixes_give_the_same_loss_mask(template):
    """The same template with generation marks around the assistant's text, with or without its end token."""
    content = "{{ m.content }}" if "{{ m.content }}" in template else "{{ m.content | trim }}"
    marked = "{% generation %}" + content + "{% endgeneration %}"
    inside = "{% if m.role == 'assistant' %}" + marked + "{% else %}" + content + "{% endif %}"
    found = []
    for each in (template, template.replace(content, inside)):
        tokenizer = build_tokenizer(each)
        found.append(conversation_tokens(tokenizer, TALK, ends(tokenizer, "<|im_end|>", "<|eot|>"), "row 0", {}))
    assert found[0] == found[1]
    assert sum(found[0][1]) == 5, "ab, c, and an end each"


def test_a_conversation_that_ends_with_the_user_is_learned_up_to_that_message():
    tokenizer = build_tokenizer(CHATML)
    tokens, loss_mask = conversation_tokens(tokenizer, TALK[:4], ends(tokenizer, "<|im_end|>"), "row 0", {})
    assert shown(tokenizer, tokens, loss_mask).endswith("[ab<|im_end|>]\n<|im_start|>user\nso<|im_end|>\n")
    examples, _ = tokenize_demonstrations(
        [{"messages": TALK[:4]}], "messages", tokenizer, ends(tokenizer, "<|im_end|>"), 999
    )
    assert tokenizer.decode(examples[0].completion) == "ab<|im_end|>", "later tokens change nothing and are not run"


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (CHATML, TALK[:2], "row 7: the conversation has no assistant message, so there is nothing to learn"),
        (CHATML, TALK[2:], "row 7: the conversation begins with an assistant message; begin it with a user message"),
        (
            THINKING,
            [TALK[1], {"role": "assistant", "content": "hm!ab"}, *TALK[3:]],
            "row 7: the chat template writes message 1, an assistant message, or the text before it differently "
            "in a longer conversation: 'hm!ab",
        ),
        (
            MARKED.replace("{% if m.role", "{% if loop.last and m.role"),
            TALK,
            "row 7: the conversation has 2 assistant messages, but the chat template's {% generation %} "
            "marks 1 spans",
        ),
        (MARKED.replace("{% generation %}", "{% generation %}{% endgeneration %}").replace("<eos>{% endgen", "<eos>{# "
         ).replace("eration %}{{ '\n'", "#}{{ '\n'"), TALK, "marks 0 spans of tokens; fix the template"),
        (None, TALK, "row 7: the prompt is a list of messages, but the tokenizer has no chat template"),
    ],
)  # fmt: skip
def test_a_conversation_whose_assistant_tokens_cannot_be_identified_is_refused(template, messages, message):
    tokenizer = build_tokenizer(template)
    with pytest.raises(ValueError) as error:
        conversation_tokens(tokenizer, messages, (1,), "row 7", {})
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_tools_of_a_row_and_arguments_reach_the_template():
    template = "{% if tools %}{{ tools[0].name }}|{% endif %}{% if loud %}LOUD|{% endif %}" + CHATML
    tokenizer = build_tokenizer(template)
    row = {
        "messages": TALK,
        "tools": json.dumps([{"name": "sum"}]),
        "chat_template_kwargs": {"loud": True, "old": None},
    }
    template_kwargs = template_arguments(row, "row 0")
    assert template_kwargs == {"tools": [{"name": "sum"}], "loud": True}
    for learn in (None, "all"):
        tokens, loss_mask = demonstration_tokens(tokenizer, row, "messages", ends(tokenizer, "<|im_end|>"), learn)
        assert tokenizer.decode(tokens).startswith("sum|LOUD|<|im_start|>system")
        assert any(loss_mask[:20]) == (learn == "all")
    assert tokenizer.decode(prompt_tokens(tokenizer, TALK[:2], "row 0", template_kwargs)).startswith("sum|LOUD|")
    for wrong, message in (
        ({"tools": "sum"}, "row 0: 'tools' is text, but not JSON: "),
        ({"tools": {"name": "sum"}}, "row 0: 'tools' must be a list of tool definitions"),
        ({"chat_template_kwargs": ["loud"]}, "row 0: 'chat_template_kwargs' must map names to values"),
    ):
        with pytest.raises(ValueError, match=message):
            template_arguments({"messages": TALK, **wrong}, "row 0")
    assert template_arguments({"prompt": "plain", "tools": "hammer"}, "row 0") == {}


def form_of(row):
    return next(form for form in ("messages", "text", "completion") if form in row)


PLAIN = {"prompt": "ab", "completion": "cd"}
CHAT = {"prompt": TALK[:4], "completion": TALK[4:]}


@pytest.mark.parametrize(
    ("row", "learn", "expected"),
    [
        (PLAIN, None, "<bos>ab[cd<eos>]"),
        (PLAIN, "completion", "<bos>ab[cd<eos>]"),
        (PLAIN, "all", "<bos>[abcd<eos>]"),
        ({"text": "abcd"}, None, "<bos>[abcd<eos>]"),
        ({"text": "<bos>abcd<eos>"}, "all", "<bos>[abcd<eos>]"),  # neither twice
        (CHAT, None, "U:s\nU:hi\nA:ab<eos>\nU:so\nA:[c<eos>]"),
        (CHAT, "assistant", "U:s\nU:hi\nA:[ab<eos>]\nU:so\nA:[c<eos>]\n"),
        ({"messages": TALK}, "assistant", "U:s\nU:hi\nA:[ab<eos>]\nU:so\nA:[c<eos>]\n"),
        ({"messages": TALK}, "all", "U[:s\nU:hi\nA:ab<eos>\nU:so\nA:c<eos>]"),
        ({"messages": TALK[:4]}, "all", "U[:s\nU:hi\nA:ab<eos>\nU:so\n]"),
        ({"messages": TALK, "prompt": TALK[:4]}, None, "U:s\nU:hi\nA:[ab<eos>]\nU:so\nA:[c<eos>]\n"),
    ],
)
def test_the_learned_part_of_each_type_of_row(row, learn, expected):
    tokenizer = build_tokenizer(MARKED, adds="<bos> $A <eos>")
    tokens, loss_mask = demonstration_tokens(tokenizer, row, form_of(row), (tokenizer.eos_token_id,), learn)
    assert shown(tokenizer, tokens, loss_mask) == expected


@pytest.mark.parametrize(
    ("row", "learn", "message"),
    [
        ({"text": "a"}, "assistant", "data: row 0: plain text has no assistant to learn; set data.learn to all"),
        (
            {"messages": TALK},
            "completion",
            "data: row 0: a conversation has no completion to learn; set data.learn to assistant",
        ),
        (PLAIN, "assistant", "data: row 0: plain text has no assistant message to learn; set data.learn to completion"),
    ],
)
def test_a_row_without_the_part_to_learn_is_refused(row, learn, message):
    with pytest.raises(ValueError) as error:
        tokenize_demonstrations([row], form_of(row), build_tokenizer(MARKED), (1,), 99, learn=learn)
    assert str(error.value).startswith(message)


def test_a_truncated_conversation_loses_its_end_token_and_later_messages():
    tokenizer = build_tokenizer(MARKED)
    whole, _ = conversation_tokens(tokenizer, TALK, (1,), "row 0", {})
    first = whole.index(1)  # the first end token: "U:s\nU:hi\nA:ab" stands before it
    for limit, expected in ((first, "ab"), (first + 1, "ab<eos>"), (first + 7, "ab<eos>"), (999, "abc")):
        examples, stats = tokenize_demonstrations([{"messages": TALK}], "messages", tokenizer, (1,), limit)
        batch = collate_examples(examples)
        text = tokenizer.decode(batch.tokens[0][batch.mask[0]])
        assert text.replace("<eos>", "" if limit == 999 else "<eos>") == expected
        assert (stats.truncated, stats.dropped, stats.tokens) == (int(limit < 999), 0, int(batch.mask.sum()))
        whole_row = [*batch.prompts[0].tolist(), *batch.tokens[0].tolist()]
        assert whole_row == whole[: len(whole_row)], "the tokens between are read, but not loss_mask"
    examples, stats = tokenize_demonstrations(
        [{"messages": TALK}, {"messages": [*TALK[1:2], {"role": "assistant", "content": "x"}]}],
        "messages",
        tokenizer,
        (1,),
        first - 2,
    )
    assert (len(examples), stats.dropped) == (1, 1)
    assert torch.equal(examples[0].loss_mask, torch.ones(len(examples[0].completion), dtype=torch.bool))
