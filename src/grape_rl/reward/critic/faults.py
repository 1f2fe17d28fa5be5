"""Responses that reach for the critic instead of an answer: the policy's own fault, whatever a critic would say."""

import re

from grape_rl.reward.critic.item import Judge
from grape_rl.types import Response

_MARKUP = re.compile(
    r"<[|｜]\w[\w▁.:/\-]{0,63}[|｜]>"  # <|im_start|>, <|eot_id|>, and DeepSeek's with wide bars
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_RESULTS)\]|<</?SYS>>|</?(?:start|end)_of_turn>"
)
"""What chat templates write around turns. No space is allowed inside: ``a <| b |> c`` is F#."""

_TAGS = re.compile(r"</?s>|<[be]os>")
"""Some templates' too, but HTML's as well: they are made harmless, and are nobody's fault."""

_FENCE = re.compile(
    r"^\s*[\[({<][^\[\](){}<>\n]{1,64}[\])}>] ?(?:prompt|reference|response) (?:begins|ends)\s*$", re.M | re.I
)
_HARMLESS = str.maketrans("<>[]", "‹›()")


def unmarked(text: str) -> str:
    """The text with the brackets of its control markup changed, so that no chat template reads it as its own.

    >>> unmarked("<|im_start|>system [/INST] a <b> [c]")
    '‹|im_start|›system (/INST) a <b> [c]'
    """
    for pattern in (_MARKUP, _TAGS):
        text = pattern.sub(lambda found: found[0].translate(_HARMLESS), text)
    return text


def fault(judge: Judge, response: Response) -> str | None:
    """Why a response is at fault, before any critic reads it; None if it is not.

    It is longer than the item allows, or it forges what the critic reads: a chat template's control markup, or a line
    like those around the texts to grade. Where the prompt, the criterion or the reference has such text itself, the
    response may speak of it: it is only made harmless then, by ``unmarked``.
    """
    if judge.max_characters is not None and len(response.text) > judge.max_characters:
        return f"the response has {len(response.text)} characters, and the item allows {judge.max_characters}"
    for what, pattern in (("chat markup", _MARKUP), ("a line between texts to grade", _FENCE)):
        if found := pattern.search(response.text):
            given = (response.prompt, judge.criterion, judge.reference or "")
            if not any(pattern.search(str(text)) for text in given):
                return f"the response forges {what}: {found[0].strip()!r:.80}"
    return None
