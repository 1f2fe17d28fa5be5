"""Data for ``grape score`` and ``grape calibrate``: rows that contain responses, and the critics of ``--critics``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from grape_rl.cli.arguments import listed

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

    from grape_rl.reward.critic.settings import CriticSettings
    from grape_rl.reward.rubric import Rubric
    from grape_rl.types import Response


@dataclass(frozen=True)
class ResponseData:
    """The responses of a data file. Responses to the same prompt have equal ``group``."""

    responses: "list[Response]"
    group: "Int[Tensor, ' b']"


def read_responses(
    rubric: "Rubric", source: str, own: Mapping[str, str | bool], count_tokens: Callable[[str], int]
) -> ResponseData:
    """Read the responses of a data file, from the columns ``--response`` and ``--prompt``.

    ``count_tokens`` returns a response's length.

    Raises:
        ValueError: a row lacks a column, its prompt is neither text nor messages, its response is not text, or the
            rubric cannot grade it.
    """
    import torch

    from grape_rl.data.messages import text_or_messages
    from grape_rl.data.rows import read_rows, require_columns
    from grape_rl.reward.rubric import check_rows
    from grape_rl.setup.rows import graders_text
    from grape_rl.types import Response

    response_column, prompt_column = str(own.get("response", "response")), prompt_column_of(own)
    data_rows = read_rows(source)
    require_columns(data_rows, [response_column, prompt_column], source)
    check_rows(rubric, data_rows)
    responses: list[Response] = []
    for index, row in enumerate(data_rows):
        text = row[response_column]
        if not isinstance(text, str):
            raise ValueError(f"{source}, row {index}: {response_column!r} should be text but is {text!r:.40}")
        prompt = text_or_messages(row[prompt_column], f"{source}, row {index}: {prompt_column!r}")
        responses.append(Response(graders_text(prompt), text, row, count_tokens(text), "stop"))
    group_ids: dict[str, int] = {}
    group = [group_ids.setdefault(response.prompt, len(group_ids)) for response in responses]
    return ResponseData(responses, torch.tensor(group))


def prompt_column_of(own: Mapping[str, str | bool]) -> str:
    """The column that ``--prompt`` names, or its default."""
    return str(own.get("prompt", "prompt"))


def read_endpoints(own: Mapping[str, str | bool]) -> "Mapping[str, CriticSettings]":
    """The critics of the YAML file ``--critics``, by name; none without the option.

    Raises:
        ValueError: the file is not a valid list of critics.
    """
    from grape_rl.reward.critic.settings import parse_critics
    from grape_rl.schema import parsed

    file = own.get("critics")
    if not isinstance(file, str):
        return {}
    data = parsed(Path(file))
    if not isinstance(data, dict):
        raise ValueError(f"{file}: should map the name of each critic to its base_url and model")
    return parse_critics(data, file, Path(str(own["rubric"])).parent, listed(own.get("allow", "")))


def token_counter(tokenizer: str | bool | None) -> Callable[[str], int]:
    """A function that counts a response's tokens by a tokenizer, or its words without one.

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
