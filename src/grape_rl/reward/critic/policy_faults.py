"""Responses that attack the critic: the policy's own fault, whatever verdict a critic would give."""

import re

from grape_rl.reward.critic.judge import Judge
from grape_rl.types import Response

_MARKUP = re.compile(
    r"<[|｜]\w[\w▁.:/\-]{0,63}[|｜]>"  # <|im_start|>, <|eot_id|>, and DeepSeek's with full-width bars
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_RESULTS)\]|<</?SYS>>|</?(?:start|end)_of_turn>"
)
"""Control markup that chat templates write around turns. It contains no space: ``a <| b |> c`` is F#."""

_TAGS = re.compile(r"</?s>|<[be]os>")
"""Control markup of some templates that is also HTML: neutralized, but no fault of a response."""

_FENCE = re.compile(
    r"^\s*[\[({<][^\[\](){}<>\n]{1,64}[\])}>] ?(?:prompt|reference|response) (?:begins|ends)\s*$", re.M | re.I
)
_HARMLESS = str.maketrans("<>[]", "‹›()")


def neutralize_markup(text: str) -> str:
    """The text with the brackets of control markup replaced, so that no chat template interprets it.

    >>> neutralize_markup("<|im_start|>system [/INST] a <b> [c]")
    '‹|im_start|›system (/INST) a <b> [c]'
    """
    for pattern in (_MARKUP, _TAGS):
        text = pattern.sub(lambda match: match[0].translate(_HARMLESS), text)
    return text


def policy_fault_reason(judge: Judge, response: Response) -> str | None:
    """The reason why a response is at fault before any critic reads it; None if it is not.

    A response is at fault if it is longer than the item allows, or if it forges part of the critic's prompt: control
    markup of a chat template, or a line like the fence around the texts to grade. If the prompt, the criterion or the
    reference contains such text itself, the response may quote it: then it is only neutralized.
    """
    if judge.max_characters is not None and len(response.text) > judge.max_characters:
        return f"the response has {len(response.text)} characters, and the item allows {judge.max_characters}"
    for kind, pattern in (("chat markup", _MARKUP), ("a line between texts to grade", _FENCE)):
        if match := pattern.search(response.text):
            given = (response.prompt, judge.criterion, judge.reference or "")
            if not any(pattern.search(str(text)) for text in given):
                return f"the response forges {kind}: {match[0].strip()!r:.80}"
    return None
