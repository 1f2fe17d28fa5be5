"""Existing responses to grade: rows of a file, as responses that a rubric has a category for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

    from grape_rl.reward.critic.where import Endpoint
    from grape_rl.reward.rubric import Rubric
    from grape_rl.types import Response


@dataclass(frozen=True)
class Existing:
    """Rows with a response each. Those with the same prompt, and of the same category, are one ``group``."""

    rows: "list[dict[str, Any]]"
    answers: "list[Response]"
    category: tuple[str, ...]
    group: "Int[Tensor, ' b']"


def existing(rubric: "Rubric", source: str, response: str, prompt: str, counted: Callable[[str], int]) -> Existing:
    """The responses in the columns so named of a data file. ``counted`` tells how long one is.

    Raises:
        ValueError: a row that lacks a column, or whose prompt or response is no text, or that the rubric cannot grade.
    """
    import torch

    from grape_rl.data.rows import require, rows
    from grape_rl.reward.rubric import category_name, check_rows
    from grape_rl.types import Response

    found = rows(source)
    require(found, [response, prompt], source)
    check_rows(rubric, found)
    for index, row in enumerate(found):
        for column in (response, prompt):
            if not isinstance(row[column], str):
                raise ValueError(f"{source}, row {index}: {column!r} is {row[column]!r:.40}, and should be text")
    answers = [Response(row[prompt], row[response], row, counted(row[response]), "stop") for row in found]
    category = tuple(category_name(rubric, row) for row in found)
    number: dict[tuple[str, str], int] = {}
    group = [number.setdefault((name, each.prompt), len(number)) for name, each in zip(category, answers, strict=True)]
    return Existing(found, answers, category, torch.tensor(group))


def endpoints_of(file: str | bool | None) -> "Mapping[str, Endpoint]":
    """The critics of a YAML file, by name; none without a file.

    Raises:
        ValueError: the file says something else.
    """
    from grape_rl.reward.critic.where import endpoints
    from grape_rl.reward.strict import parsed

    if not isinstance(file, str):
        return {}
    told = parsed(Path(file))
    if not isinstance(told, dict):
        raise ValueError(f"{file}: should be critics by name, each with base_url and model")
    return endpoints(told, file)


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
