"""Conversations as tokens: which of them are the assistant's, token by token, for three kinds of chat templates."""

import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, processors
from transformers import PreTrainedTokenizerFast

from grape_rl.data.chat import collate_examples, demonstration_tokens, prompt_tokens, tokenize_demonstrations
from grape_rl.data.conversation import conversation_tokens, template_arguments

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


def made(template, adds="$A"):
    """A token for each special and each character."""
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


def shown(tokenizer, tokens, learned):
    """The tokens' own names; those learned in [brackets]."""
    names = tokenizer.convert_ids_to_tokens(tokens)
    told = "".join(f"[{name}]" if on else name for name, on in zip(names, learned, strict=True))
    return told.replace("][", "")


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
        # No end token in the template: the last message gets one; where the others end cannot be learned.
        (OPEN, ["<eos>"], "s:s\nu:hi\na:[ab]\nu:so\na:[c\n<eos>]"),
        # <|im_end|> ends nothing here, and is learned like text.
        (CHATML, ["<eos>"], "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
         "[ab<|im_end|>]\n<|im_start|>user\nso<|im_end|>\n<|im_start|>assistant\n[c<|im_end|>\n<eos>]"),
    ],
    ids=["chatml", "llama", "marked", "marks end early", "marks end late", "no end", "another end"],
)  # fmt: skip
def test_every_message_of_the_assistant_s_is_learned_and_nothing_else(template, end, expected):
    tokenizer = made(template)
    tokens, learned = conversation_tokens(tokenizer, TALK, ends(tokenizer, *end), "row 0", {})
    assert shown(tokenizer, tokens, learned) == expected
    assert tokens[: len(expected)] and tokens.count(tokenizer.bos_token_id) <= 1, "one beginning"


@pytest.mark.parametrize("template", [CHATML, LLAMA])
def test_marks_and_differences_find_the_same(template):
    """The same template with its marks: around what it writes for the assistant, its end token or not."""
    content = "{{ m.content }}" if "{{ m.content }}" in template else "{{ m.content | trim }}"
    marked = "{% generation %}" + content + "{% endgeneration %}"
    inside = "{% if m.role == 'assistant' %}" + marked + "{% else %}" + content + "{% endif %}"
    found = []
    for each in (template, template.replace(content, inside)):
        tokenizer = made(each)
        found.append(conversation_tokens(tokenizer, TALK, ends(tokenizer, "<|im_end|>", "<|eot|>"), "row 0", {}))
    assert found[0] == found[1]
    assert sum(found[0][1]) == 5, "ab, c, and an end each"


def test_a_conversation_that_goes_on_with_the_user_is_learned_up_to_there():
    tokenizer = made(CHATML)
    tokens, learned = conversation_tokens(tokenizer, TALK[:4], ends(tokenizer, "<|im_end|>"), "row 0", {})
    assert shown(tokenizer, tokens, learned).endswith("[ab<|im_end|>]\n<|im_start|>user\nso<|im_end|>\n")
    kept, _ = tokenize_demonstrations([{"messages": TALK[:4]}], tokenizer, ends(tokenizer, "<|im_end|>"), 999)
    assert tokenizer.decode(kept[0].completion) == "ab<|im_end|>", "what follows changes nothing, and is not run"


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (CHATML, TALK[:2], "row 7: no message of the conversation is the assistant's: there is nothing to learn"),
        (CHATML, TALK[2:], "row 7: the conversation begins with the assistant; it must begin with what that answers"),
        (
            THINKING,
            [TALK[1], {"role": "assistant", "content": "hm!ab"}, *TALK[3:]],
            "row 7: the chat template writes message 1, one of the assistant's, or what is before it, otherwise "
            "where the conversation goes on: 'hm!ab",
        ),
        (
            MARKED.replace("{% if m.role", "{% if loop.last and m.role"),
            TALK,
            "row 7: the conversation has 2 messages of the assistant's, and the chat template's {% generation %} "
            "marks 1 stretches",
        ),
        (MARKED.replace("{% generation %}", "{% generation %}{% endgeneration %}").replace("<eos>{% endgen", "<eos>{# "
         ).replace("eration %}{{ '\n'", "#}{{ '\n'"), TALK, "marks 0 stretches of tokens; mend the template"),
        (None, TALK, "row 7: the prompt is made of messages, and the tokenizer has no chat template"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_apart_is_refused(template, messages, message):
    tokenizer = made(template)
    with pytest.raises(ValueError) as told:
        conversation_tokens(tokenizer, messages, (1,), "row 7", {})
    assert message in str(told.value) and "\n" not in str(told.value)


def test_a_row_s_tools_and_arguments_reach_the_template():
    template = "{% if tools %}{{ tools[0].name }}|{% endif %}{% if loud %}LOUD|{% endif %}" + CHATML
    tokenizer = made(template)
    row = {
        "messages": TALK,
        "tools": json.dumps([{"name": "sum"}]),
        "chat_template_kwargs": {"loud": True, "old": None},
    }
    given = template_arguments(row, "row 0")
    assert given == {"tools": [{"name": "sum"}], "loud": True}
    for learn in (None, "all"):
        tokens, learned = demonstration_tokens(tokenizer, row, ends(tokenizer, "<|im_end|>"), learn)
        assert tokenizer.decode(tokens).startswith("sum|LOUD|<|im_start|>system")
        assert any(learned[:20]) == (learn == "all")
    assert tokenizer.decode(prompt_tokens(tokenizer, TALK[:2], "row 0", given)).startswith("sum|LOUD|")
    for wrong, message in (
        ({"tools": "sum"}, "row 0: 'tools' is text, but not JSON: "),
        ({"tools": {"name": "sum"}}, "row 0: 'tools' must be a list of what the assistant may call"),
        ({"chat_template_kwargs": ["loud"]}, "row 0: 'chat_template_kwargs' must be names with values"),
    ):
        with pytest.raises(ValueError, match=message):
            template_arguments({"messages": TALK, **wrong}, "row 0")
    assert template_arguments({"prompt": "plain", "tools": "hammer"}, "row 0") == {}


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
def test_what_each_type_of_row_learns(row, learn, expected):
    tokenizer = made(MARKED, adds="<bos> $A <eos>")
    tokens, learned = demonstration_tokens(tokenizer, row, (tokenizer.eos_token_id,), learn)
    assert shown(tokenizer, tokens, learned) == expected


@pytest.mark.parametrize(
    ("row", "learn", "message"),
    [
        ({"text": "a"}, "assistant", "data: row 0: all of a text is learned; it has no assistant to learn alone"),
        (
            {"messages": TALK},
            "completion",
            "data: row 0: a whole conversation has no completion; learn the assistant's",
        ),
        (PLAIN, "assistant", "data: row 0: plain text has no messages of an assistant's; learn the completion, or all"),
    ],
)
def test_a_row_that_has_not_what_is_asked_for_is_refused(row, learn, message):
    with pytest.raises(ValueError) as told:
        tokenize_demonstrations([row], made(MARKED), (1,), 99, learn=learn)
    assert str(told.value).startswith(message)


def test_a_conversation_that_is_cut_loses_its_end_token_and_later_messages():
    tokenizer = made(MARKED)
    whole, _ = conversation_tokens(tokenizer, TALK, (1,), "row 0", {})
    first = whole.index(1)  # the first end token: "U:s\nU:hi\nA:ab" stands before it
    for limit, expected in ((first, "ab"), (first + 1, "ab<eos>"), (first + 7, "ab<eos>"), (999, "abc")):
        kept, lengths = tokenize_demonstrations([{"messages": TALK}], tokenizer, (1,), limit)
        batch = collate_examples(kept)
        said = tokenizer.decode(batch.tokens[0][batch.mask[0]])
        assert said.replace("<eos>", "" if limit == 999 else "<eos>") == expected
        assert (lengths.truncated, lengths.dropped, lengths.tokens) == (int(limit < 999), 0, int(batch.mask.sum()))
        whole_row = [*batch.prompts[0].tolist(), *batch.tokens[0].tolist()]
        assert whole_row == whole[: len(whole_row)], "what stands between is read, and not learned"
    kept, lengths = tokenize_demonstrations([{"messages": TALK}, {"text": "abc"}], tokenizer, (1,), first - 2)
    assert (len(kept), lengths.dropped) == (1, 1)
    assert torch.equal(kept[0].learned, torch.ones(len(kept[0].completion), dtype=torch.bool))
