"""Files that people write by hand: unknown and repeated keys are refused, and a complaint says where, in one line."""

import difflib
import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

Model = TypeVar("Model", bound=BaseModel)


class Strict(BaseModel):
    """A frozen part of a file. An unknown key is refused with the nearest known name."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            known = [field.alias or name for name, field in cls.model_fields.items()]
            for key in data:
                if key not in known:
                    raise ValueError(f"unknown key {key!r}{nearest(str(key), known)}")
        elif not isinstance(data, cls):
            raise ValueError(f"should be keys with values but is {data!r:.80}")
        return data


def entrusted(name: str, context: Mapping[str, Any] | None) -> None:
    """That a file or a model may be read: any that the rubric names, and of what rows name only what ``allow`` has.

    Raises:
        ValueError: a row names it, and nobody has allowed it.
    """
    if context and context.get("of_row") and name not in context["allow"]:
        raise ValueError(
            f"{name!r} is a file or model that a row names, and is not allowed: if you trust it, add {name!r} to "
            "reward.allow"
        )


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The end of an error message that suggests the nearest of the names, or nothing where none is near.

    >>> did_you_mean("promt", ["prompt", "answer"])
    "; did you mean 'prompt'?"
    """
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a complaint about an unknown name: the nearest known one, or all of them.

    >>> nearest("wieght", ["id", "weight"])
    "; did you mean 'weight'?"
    """
    names = list(known)
    return did_you_mean(name, names) or f"; known: {', '.join(names) or 'none'}"


def parsed(path: Path) -> Any:
    """The data of a YAML file, or of a JSON file if its name ends in ``.json``.

    Raises:
        ValueError: the file is not there, is not YAML or JSON, or repeats a key.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            return json.loads(text, object_pairs_hook=_unrepeated)
        return yaml.load(text, Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None


def validated(model: type[Model], data: Any, source: str, context: Mapping[str, Any]) -> Model:
    """``data`` as a ``model``, with every complaint about it in one line that starts with ``source``.

    Raises:
        ValueError: the data does not fit the model.
    """
    try:
        return model.model_validate(data, context=dict(context))
    except ValidationError as error:
        lines = [f"{_place(entry['loc'], data)}{_complaint(entry)}" for entry in error.errors(include_url=False)]
        raise ValueError(f"{source}: {'; '.join(dict.fromkeys(lines))}") from None


def _place(loc: Sequence[int | str], data: Any) -> str:
    """Where in the file: keys joined by dots, a list's entry by its id if it has one."""
    words: list[str] = []
    for step, key in enumerate(loc):
        if key == "[key]":  # pydantic's mark for a key that is itself at fault
            return "".join(words[:-1]).removeprefix(".") + ": a key "
        here = isinstance(data, Mapping) and key in data
        tag = isinstance(data, Mapping) and data.get("type") == key  # pydantic names the check's type, the file doesn't
        if isinstance(key, int) and isinstance(data, list):
            data = data[key]
            words.append(f"[{data.get('id', key) if isinstance(data, Mapping) else key}]")
        elif here or not (tag or step < len(loc) - 1):
            data = data[key] if here else None
            words.append(f".{key}")
    return "".join(words).removeprefix(".") + ": " if words else ""


def _complaint(error: Any) -> str:
    kind, value, detail = error["type"], error["input"], error.get("ctx", {})
    if kind == "string_type" and isinstance(value, bool):
        written = "yes, on or true" if value else "no, off or false"
        return f"should be text but is the boolean {value}: YAML reads a bare {written} so; put it in quotes"
    if kind == "string_type" and value is not None and not isinstance(value, (Mapping, list)):
        return f"should be text but is {value!r}: put it in quotes"
    if kind == "union_tag_invalid":
        known = [tag.strip(" '") for tag in detail["expected_tags"].split(",")]
        return f"unknown {detail['discriminator'].strip(chr(39))} {detail['tag']!r}{nearest(detail['tag'], known)}"
    if kind == "missing":
        return "is missing"
    if kind == "union_tag_not_found":
        return f"has no {detail['discriminator'].strip(chr(39))}"
    if kind == "model_attributes_type":
        return f"should be keys with values but is {value!r:.80}"
    return error["msg"].removeprefix("Value error, ")


def _unrepeated(pairs: Sequence[tuple[Hashable, Any]]) -> dict[Hashable, Any]:
    found: dict[Hashable, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} is there twice")
        found[key] = value
    return found


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise ValueError(f"line {key.start_mark.line + 1}: the key {key.value!r} is there twice")
                seen.add(key.value)
        return super().construct_mapping(node, deep)
