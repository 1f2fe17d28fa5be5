"""Cells with a prompt, a completion or a conversation, in the data types that TRL documents."""

import json

import pytest

from grape_rl.data.messages import text_or_messages
from grape_rl.data.preferences import with_preferences
from grape_rl.data.rows import read_rows, with_language_modeling, with_prompts


def user(content):
    return {"role": "user", "content": content}


def bot(content):
    return {"role": "assistant", "content": content}


def parts(*texts):
    return [{"type": "text", "text": text} for text in texts]


def test_parts_of_text_are_joined():
    assert text_or_messages([user(parts("a ", "b")), bot([])], "x") == [user("a b"), bot("")]
    arrow = [{"type": "text", "text": "a", "image": None}, {"type": None, "text": "b"}]
    assert text_or_messages([user(arrow)], "x") == [user("ab")]
    calls = [{"function": {"name": "f", "arguments": {"a": 1, "b": None}}}]
    normalized = text_or_messages([{"role": "assistant", "content": None, "tool_calls": calls}], "x")
    assert normalized == [{"role": "assistant", "tool_calls": calls}], "the null of an argument is kept"


@pytest.mark.parametrize(
    "content", [[{"type": "image", "image": "x.png"}], [*parts("a"), {"type": "image"}], ["a"], {"text": "a"}, 3]
)
def test_content_that_is_not_text_is_refused(content):
    with pytest.raises(ValueError) as error:
        with_prompts([{"prompt": [user("a")]}, {"prompt": [user(content)]}], "prompt", source="d.jsonl")
    message = str(error.value)
    assert message.startswith("d.jsonl: row 1: the prompt ('prompt') has a message whose content is neither text nor")
    assert message.endswith("images and other media are not supported") and "\n" not in message


CHOSEN, REJECTED = [user("hi"), bot("yes")], [user("hi"), bot("no")]
APART = [user("hi")], [bot("yes")], [bot("no")]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, ("a", "b", "c")),
        ({"chosen": "a b", "rejected": "a c"}, ("a", " b", " c")),
        ({"prompt": CHOSEN[:1], "chosen": CHOSEN[1:], "rejected": REJECTED[1:]}, APART),
        ({"chosen": CHOSEN, "rejected": REJECTED}, APART),
        ({"chosen": [user(parts("h", "i")), bot(parts("yes"))], "rejected": [user(parts("h", "i")), bot(parts("no"))]},
         APART),
    ],
)  # fmt: skip
def test_every_form_of_a_preference_is_read(row, expected):
    (preference,) = with_preferences([row])
    assert (preference["prompt"], preference["chosen"], preference["rejected"]) == expected


def test_whole_conversations_and_texts():
    talk = [user("a"), bot("b"), user("c"), bot(parts("d")), user("e")]
    (row,) = with_language_modeling([{"talk": talk, "n": 1}], "talk", "messages", system="Be brief.")
    assert row["messages"][0] == {"role": "system", "content": "Be brief."} and row["messages"][4] == bot("d")
    assert row["prompt"] == row["messages"][:4] and row["n"] == 1
    assert with_language_modeling([{"t": "abc"}], "t", "text") == [{"t": "abc", "text": "abc"}]
    for row, kind, system, message in (
        ({"x": "abc"}, "messages", None, "d: row 0: the messages ('x') must be messages, but it is plain text"),
        ({"x": talk}, "text", None, "d: row 0: the text ('x') must be text, but it is messages"),
        ({"x": "abc"}, "text", "s", "d: row 0: plain text has no prompt to prepend `system` to; do not set `system`"),
        ({"x": " "}, "text", None, "d: row 0: the text ('x') is empty"),
        ({"x": []}, "messages", None, "d: row 0: the messages ('x') has no messages"),
        ({"y": "abc"}, "text", None, "d: row 0 has no column 'x'; it has 'y'"),
    ):
        with pytest.raises(ValueError) as error:
            with_language_modeling([row], "x", kind, system, "d")
        assert str(error.value) == message


@pytest.mark.parametrize(
    "value", ["a\ud83d", {"role": "user", "content": "\udc00"}, [{"content": [{"text": "b\ud800b"}]}]]
)
def test_a_lone_surrogate_is_refused_with_its_row_and_column(value, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"answer": "fine \U0001f600"}) + "\n" + json.dumps({"id": 3, "answer": value}))
    with pytest.raises(ValueError) as error:
        read_rows(path)
    message = str(error.value)
    assert message.startswith(f"{path}: row 1: column 'answer' contains a lone surrogate (\\ud") and "\n" not in message
    assert message.encode() and "fix or remove the row" in message
    assert len(read_rows(path, limit=1)) == 1
