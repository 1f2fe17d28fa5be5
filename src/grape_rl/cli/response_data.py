"""Existing responses to grade: rows of a file, as responses that a rubric has a category for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grape_rl.cli.arguments import listed

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

    from grape_rl.reward.critic.settings import CriticSettings
    from grape_rl.reward.rubric import Rubric
    from grape_rl.types import Response


@dataclass(frozen=True)
class Existing:
    """Rows with a response each. Those with the same prompt are one ``group``."""

    rows: "list[dict[str, Any]]"
    answers: "list[Response]"
    group: "Int[Tensor, ' b']"


def existing(rubric: "Rubric", source: str, response: str, prompt: str, counted: Callable[[str], int]) -> Existing:
    """The responses in the columns so named of a data file. ``counted`` tells how long one is.

    Raises:
        ValueError: a row that lacks a column, or whose prompt is neither text nor messages, or whose response is no
            text, or that the rubric cannot grade.
    """
    import torch

    from grape_rl.data.messages import text_or_messages
    from grape_rl.data.rows import read_rows, require_columns
    from grape_rl.reward.rubric import check_rows
    from grape_rl.setup.rows import graders_text
    from grape_rl.types import Response

    found = read_rows(source)
    require_columns(found, [response, prompt], source)
    check_rows(rubric, found)
    answers: list[Response] = []
    for index, row in enumerate(found):
        if not isinstance(row[response], str):
            raise ValueError(f"{source}, row {index}: {response!r} is {row[response]!r:.40}, and should be text")
        asked = text_or_messages(row[prompt], f"{source}, row {index}: {prompt!r}")
        answers.append(Response(graders_text(asked), row[response], row, counted(row[response]), "stop"))
    number: dict[str, int] = {}
    group = [number.setdefault(each.prompt, len(number)) for each in answers]
    return Existing(found, answers, torch.tensor(group))


def endpoints_of(own: Mapping[str, str | bool]) -> "Mapping[str, CriticSettings]":
    """The critics of the YAML file ``--critics``, by name; none without a file.

    Raises:
        ValueError: the file says something else.
    """
    from grape_rl.reward.critic.settings import parse_critics
    from grape_rl.schema import parsed

    file = own.get("critics")
    if not isinstance(file, str):
        return {}
    told = parsed(Path(file))
    if not isinstance(told, dict):
        raise ValueError(f"{file}: should be critics by name, each with base_url and model")
    return parse_critics(told, file, Path(str(own["rubric"])).parent, listed(own.get("allow", "")))


def counter(tokenizer: str | bool | None) -> Callable[[str], int]:
    """How long a response is: in a tokenizer's tokens, or in words.

    Raises:
        ValueError: the tokenizer cannot be loaded.
    """
    if not isinstance(tokenizer, str):
        return lambda response: len(response.split())
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(tokenizer)
    except (OSError, ValueError) as error:
        raise ValueError(f"tokenizer {tokenizer!r}: {str(error).splitlines()[0]}") from None
    return lambda response: len(loaded(response, add_special_tokens=False).input_ids)
