"""Chat templates as current model families behave: the text that a policy is trained on, and the answers in it.

Each template is our own shortest form of a behavior. Expected texts are written by hand, with the learned part in
[brackets].
"""

import json

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from grape_rl.data.chat import completion_tokens, prompt_tokens
from grape_rl.data.comparisons import tokenize_comparisons
from grape_rl.data.conversation import conversation_tokens
from grape_rl.data.demonstrations import tokenize_demonstrations
from grape_rl.data.labels import tokenize_labeled_responses
from grape_rl.data.messages import text_or_messages
from grape_rl.data.preferences import tokenize_pairs
from grape_rl.data.steps import tokenize_solutions

END = "<|end|>"
TALK = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "ab"},
    {"role": "user", "content": "so"},
    {"role": "assistant", "content": "cd"},
]


def build_tokenizer(template):
    """Tokens of one byte, and one token for two line breaks: the merge that spans the end of many prompts."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate([END, *alphabet, "ĊĊ"])}
    inner = Tokenizer(models.BPE(vocabulary, [("Ċ", "Ċ")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(END, special=True)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=END)
    tokenizer.chat_template = template
    return tokenizer


def shown(tokenizer, tokens, loss_mask):
    """The text of the tokens, the learned parts in [brackets]."""
    text = ""
    for before, token, learned in zip([False, *loss_mask], tokens, loss_mask, strict=False):
        text += ("[" if learned and not before else "]" if before and not learned else "") + tokenizer.decode([token])
    return text + "]" * loss_mask[-1]


def examples(template, row, form="messages", learn=None, max_length=999):
    tokenizer = build_tokenizer(template)
    given, stats = tokenize_demonstrations([row], form, tokenizer, (0,), max_length, learn=learn)
    texts = [
        shown(tokenizer, [*e.prompt.tolist(), *e.completion.tolist()], [False] * len(e.prompt) + e.loss_mask.tolist())
        for e in given
    ]
    return texts, stats


GENERATION = "{% if add_generation_prompt %}A:{% endif %}"
TURNS = "{% for m in messages %}{{ m.role[0] | upper }}:{{ m.content }}<|end|>\n{% endfor %}" + GENERATION
HEADER_LINES = TURNS.replace("}}:{{", "}}\n{{").replace("A:{%", "A\n{%")
TRIMS = TURNS.replace("m.content", "m.content | trim")
"""Thinking before the last user message is dropped, as by Qwen 3 and its kin."""
DROPS_THINKING = (
    "{% for m in messages %}{% set last = loop.last %}{{ m.role[0] | upper }}:"
    "{% if m.role == 'assistant' and not last %}{{ m.content.split('</think>')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}"
    "<|end|>\n{% endfor %}" + GENERATION
)
"""Turns are closed only by the next one, and the end token is written once, after the last."""
ENDS_ONCE = (
    "{% for m in messages %}{{ m.role[0] | upper }}:{{ m.content }}{{ '' if loop.last else '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\nA:' }}{% else %}<|end|>{% endif %}"
)
"""A thinking block is opened by the prompt and written before each answer that has none."""
OPENS_THINKING = (
    "{% for m in messages %}{{ m.role[0] | upper }}:"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>{% endif %}{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}A:<think>\n{% endif %}"
)
NO_END = "{% for m in messages %}{{ m.role[0] | upper }}:{{ m.content }}\n{% endfor %}" + GENERATION
"""The system message is folded into the first user message."""
FOLDS_SYSTEM = (
    "{% if messages[0].role == 'system' %}{% set s = messages[0].content + '|' %}{% set ms = messages[1:] %}"
    "{% else %}{% set s = '' %}{% set ms = messages %}{% endif %}{% for m in ms %}{{ m.role[0] | upper }}:"
    "{{ s if loop.first else '' }}{{ m.content }}<|end|>\n{% endfor %}" + GENERATION
)
MARKED = DROPS_THINKING.replace(
    "{% else %}{{ m.content }}",
    "{% elif m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}",
)


@pytest.mark.parametrize(
    ("template", "messages", "expected"),
    [
        (TURNS, TALK, ["U:hi<|end|>\nA:[ab<|end|>]\nU:so<|end|>\nA:[cd<|end|>]"]),
        (HEADER_LINES, TALK, ["U\nhi<|end|>\nA\n[ab<|end|>]\nU\nso<|end|>\nA\n[cd<|end|>]"]),
        # The answer begins with a line break, which merges with the header's.
        (
            HEADER_LINES,
            [TALK[0], {"role": "assistant", "content": "\nab"}, *TALK[2:]],
            ["U\nhi<|end|>\nA\n[\nab<|end|>]\nU\nso<|end|>\nA\n[cd<|end|>]"],
        ),
        (TRIMS, [TALK[0], {"role": "assistant", "content": " ab \n"}, *TALK[2:]], [
            "U:hi<|end|>\nA:[ab<|end|>]\nU:so<|end|>\nA:[cd<|end|>]"]),
        (FOLDS_SYSTEM, [{"role": "system", "content": "s"}, *TALK], [
            "U:s|hi<|end|>\nA:[ab<|end|>]\nU:so<|end|>\nA:[cd<|end|>]"]),
        (NO_END, TALK, ["U:hi\nA:[ab]\nU:so\nA:[cd\n<|end|>]"]),
        # An example for each answer: at inference, the model sees its earlier answer without thinking.
        (
            DROPS_THINKING,
            [TALK[0], {"role": "assistant", "content": "x</think>ab"}, TALK[2],
             {"role": "assistant", "content": "y</think>cd"}],
            ["U:hi<|end|>\nA:[x</think>ab<|end|>]", "U:hi<|end|>\nA:ab<|end|>\nU:so<|end|>\nA:[y</think>cd<|end|>]"],
        ),
        (ENDS_ONCE, TALK, ["U:hi\nA:[ab<|end|>]", "U:hi\nA:ab\nU:so\nA:[cd<|end|>]"]),
        (
            OPENS_THINKING,
            TALK,
            [
                "U:hi<|end|>\nA:<think>\n[\n</think>ab<|end|>]",
                "U:hi<|end|>\nA:ab<|end|>\nU:so<|end|>\nA:<think>\n[\n</think>cd<|end|>]",
            ],
        ),
    ],
    ids=["turns", "headers", "line breaks", "trims", "folds system", "no end", "drops thinking", "ends once", "opens"],
)  # fmt: skip
def test_each_answer_is_learned_as_the_model_will_write_it(template, messages, expected):
    texts, stats = examples(template, {"messages": messages})
    assert texts == expected
    assert (stats.rows, stats.dropped, stats.split) == (1, 0, int(len(expected) > 1))


@pytest.mark.parametrize("template", [TURNS, HEADER_LINES, TRIMS, DROPS_THINKING, ENDS_ONCE, OPENS_THINKING, NO_END])
@pytest.mark.parametrize("answer", ["ab", "\nab", "\n\nab", "ab\n", "é🙂"])
def test_a_completion_is_the_text_that_follows_the_prompt(template, answer):
    """The prompt's tokens and the completion's tokens spell the template's text, up to the end token."""
    tokenizer = build_tokenizer(template)
    prompt, reply = TALK[:3], [{"role": "assistant", "content": answer}]
    before, after = prompt_tokens(tokenizer, prompt), completion_tokens(tokenizer, prompt, reply, (0,))
    whole = tokenizer.apply_chat_template(prompt + reply, tokenize=False)
    assert (
        (tokenizer.decode(before) + tokenizer.decode(after)).split(END)[:3] == whole.removesuffix(END).split(END)[:3]
        or (template is NO_END and tokenizer.decode([*before, *after]) == whole + END)
        or (template is ENDS_ONCE and tokenizer.decode([*before, *after]) == whole)
    )
    assert tokenizer.decode(before) == tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    assert after[-1] == 0


def test_marks_identify_answers_that_prefixes_cannot():
    messages = [TALK[0], {"role": "assistant", "content": "x"}]
    texts, stats = examples(MARKED, {"messages": messages})
    assert texts == ["U:hi<|end|>\nA:[x<|end|>]"] and not stats.split


def test_a_prompt_may_begin_the_answer():
    prompt = [TALK[0], {"role": "assistant", "content": "a"}]
    row = {"prompt": prompt, "completion": [{"role": "assistant", "content": "b"}]}
    assert examples(TURNS, row, "completion")[0] == ["U:hi<|end|>\nA:a[b<|end|>]"]
    tokenizer = build_tokenizer(TURNS)
    assert tokenizer.decode(prompt_tokens(tokenizer, prompt)) == "U:hi<|end|>\nA:a"


def test_a_completion_of_several_messages_is_learned_without_the_tool_s_results():
    completion = [TALK[1], {"role": "tool", "content": "42"}, TALK[3]]
    row = {"prompt": TALK[:1], "completion": completion}
    assert examples(TURNS, row, "completion")[0] == ["U:hi<|end|>\nA:[ab<|end|>]\nT:42<|end|>\nA:[cd<|end|>]"]
    assert examples(TURNS, row, "completion", "all")[0][0].startswith("U[:hi")
    with pytest.raises(ValueError, match=r"row 0: a response must be one assistant message; only SFT learns"):
        tokenize_labeled_responses([row | {"label": True}], build_tokenizer(TURNS), (0,), 99)


def test_a_message_of_weight_0_is_read_and_not_learned():
    weighted = [TALK[0], TALK[1] | {"weight": 0}, TALK[2], TALK[3] | {"weight": 1}]
    assert examples(TURNS, {"messages": weighted})[0] == ["U:hi<|end|>\nA:ab<|end|>\nU:so<|end|>\nA:[cd<|end|>]"]
    assert examples(ENDS_ONCE, {"messages": weighted})[0] == ["U:hi\nA:ab\nU:so\nA:[cd<|end|>]"]
    for weights, message in (((0, 0), "every assistant message has weight 0"), ((0.5, 1), "message 1 has weight 0.5")):
        odd = [TALK[0], TALK[1] | {"weight": weights[0]}, TALK[2], TALK[3] | {"weight": weights[1]}]
        with pytest.raises(ValueError, match=message):
            examples(TURNS, {"messages": odd})
    silent = {"prompt": TALK[:3], "completion": [TALK[3] | {"weight": 0}, TALK[0], TALK[3] | {"weight": 0}]}
    with pytest.raises(ValueError, match="every assistant message has weight 0"):
        examples(TURNS, silent, "completion")


CALLS = (
    "{% for m in messages %}{{ m.role[0] | upper }}:{{ m.content }}{% for c in m.tool_calls or [] %}"
    "CALL ARGUMENTS{% endfor %}<|end|>\n{% endfor %}" + GENERATION
)


@pytest.mark.parametrize(
    "written",
    ["c.function.arguments | tojson", "'' ~ c.function.arguments", "'' + c.function.arguments"],
    ids=["object", "printed", "joined"],
)
@pytest.mark.parametrize("wire", [True, False])
def test_arguments_of_tools_are_json_once(written, wire):
    """OpenAI's wire form has the arguments as JSON in a text; a template may expect either form."""
    arguments = {"city": "Rome", "seat": None}
    call = {"type": "function", "function": {"name": "f", "arguments": json.dumps(arguments) if wire else arguments}}
    raw = [TALK[0], {"role": "assistant", "content": "", "tool_calls": [call], "refusal": None}]
    messages = text_or_messages(raw, "row 0")
    template = CALLS.replace("CALL ARGUMENTS", "{{ " + written + " }}")
    assert examples(template, {"messages": messages})[0] == [
        "U:hi<|end|>\nA:[" + '{"city": "Rome", "seat": null}' + "<|end|>]"
    ]


TOOLS = "{% if tools %}{{ tools[0].name }}|{% endif %}{% if loud %}LOUD|{% endif %}" + TURNS


def test_tools_and_arguments_reach_every_kind_of_data():
    tokenizer = build_tokenizer(TOOLS)
    extra = {"tools": [{"name": "sum"}], "chat_template_kwargs": {"loud": True}}
    row = {"prompt": TALK[:1], "completion": TALK[1:2], "chosen": TALK[1:2], "rejected": TALK[3:], "label": True}
    row |= extra
    steps = extra | {"prompt": TALK[:1], "completions": ["a"], "labels": [True]}
    columns = ("margin", "chosen_reward", "rejected_reward")
    prompts = [
        tokenize_demonstrations([row], "completion", tokenizer, (0,), 99)[0][0].prompt,
        tokenize_labeled_responses([row], tokenizer, (0,), 99)[0][0].example.prompt,
        tokenize_pairs([row], tokenizer, (0,), 99)[0][0].prompt,
        tokenize_comparisons([row], tokenizer, (0,), 99, columns, "data")[0][0].pair.prompt,
        tokenize_solutions([steps], tokenizer, 99, "data")[0][0].prompt,
    ]
    assert {tokenizer.decode(prompt) for prompt in prompts} == {"sum|LOUD|U:hi<|end|>\nA:"}


def test_a_long_conversation_is_tokenized_once():
    """The work grows with the text of the prefixes that are rendered, not with tokens compared for each of them."""
    tokenizer = build_tokenizer(TURNS)
    calls = []
    encode = tokenizer._encode_plus
    tokenizer._encode_plus = lambda text, *rest, **options: calls.append(len(text)) or encode(text, *rest, **options)
    tokens, _ = conversation_tokens(tokenizer, TALK * 40, (0,), "row 0", {})
    whole = tokenizer.decode(tokens)
    assert sum(calls) <= 2 * len(whole) + 2
