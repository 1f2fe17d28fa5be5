"""Reading and validating hand-written YAML and JSON files.

Unknown and duplicate keys are errors. An error message is one line that names the place in the file.
"""

import difflib
import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

_Model = TypeVar("_Model", bound=BaseModel)


class Strict(BaseModel):
    """A frozen section of a file. An unknown key is an error that suggests the nearest known key."""

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
            raise ValueError(f"should be a mapping but is {data!r:.80}")
        return data


def require_allowed(name: str, context: Mapping[str, Any] | None) -> None:
    """Raise unless a file or model may be read.

    The rubric itself may name any file or model. A data row may name only those in ``allow``.

    Raises:
        ValueError: a data row names it, and ``allow`` does not.
    """
    if context and context.get("of_row") and name not in context["allow"]:
        raise ValueError(
            f"{name!r} is a file or model that a data row names, and is not allowed: if you trust it, add {name!r} to "
            "reward.allow"
        )


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The end of an error message that suggests the nearest of the names; "" if none is near.

    >>> did_you_mean("promt", ["prompt", "answer"])
    "; did you mean 'prompt'?"
    """
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name: the nearest known name, or all known names.

    >>> nearest("wieght", ["id", "weight"])
    "; did you mean 'weight'?"
    """
    names = list(known)
    return did_you_mean(name, names) or f"; known: {', '.join(names) or 'none'}"


def parsed(path: Path) -> Any:
    """The data of a YAML file, or of a JSON file if its name ends in ``.json``.

    Raises:
        ValueError: the file does not exist, is not valid YAML or JSON, or has a duplicate key.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            return json.loads(text, object_pairs_hook=_without_duplicates)
        return yaml.load(text, Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None


def validated(model: type[_Model], data: Any, source: str, context: Mapping[str, Any]) -> _Model:
    """``data`` as a ``model``. All errors are reported in one line that starts with ``source``.

    Raises:
        ValueError: the data does not fit the model.
    """
    try:
        return model.model_validate(data, context=dict(context))
    except ValidationError as error:
        entries = error.errors(include_url=False)
        # A default that depends on other fields is not computed once one of them is wrong: that is no error of its own.
        own = [entry for entry in entries if entry["type"] != "default_factory_not_called"] or entries
        lines = [f"{_place(entry['loc'], data)}{_message(entry)}" for entry in own]
        raise ValueError(f"{source}: {'; '.join(dict.fromkeys(lines))}") from None


def _place(loc: Sequence[int | str], data: Any) -> str:
    """The place in the file: keys joined by dots. A list entry is named by its id if it has one."""
    words: list[str] = []
    for step, key in enumerate(loc):
        if key == "[key]":  # pydantic's mark for an error in the key itself
            return "".join(words[:-1]).removeprefix(".") + ": a key "
        exists = isinstance(data, Mapping) and key in data
        # pydantic puts the check's type into the path, but the file has no such key.
        tag = isinstance(data, Mapping) and data.get("type") == key
        if isinstance(key, int) and isinstance(data, list):
            data = data[key]
            words.append(f"[{data.get('id', key) if isinstance(data, Mapping) else key}]")
        elif exists or not (tag or step < len(loc) - 1):
            data = data[key] if exists else None
            words.append(f".{key}")
    return "".join(words).removeprefix(".") + ": " if words else ""


def _message(error: Any) -> str:
    kind, value, detail = error["type"], error["input"], error.get("ctx", {})
    if kind == "string_type" and isinstance(value, bool):
        written = "yes, on or true" if value else "no, off or false"
        return f"should be text but is the boolean {value}: YAML reads an unquoted {written} so; put it in quotes"
    if kind == "string_type" and value is not None and not isinstance(value, (Mapping, list)):
        return f"should be text but is {value!r}: put it in quotes"
    if kind == "union_tag_invalid":
        known = [tag.strip(" '") for tag in detail["expected_tags"].split(",")]
        return f"unknown {detail['discriminator'].strip(chr(39))} {detail['tag']!r}{nearest(detail['tag'], known)}"
    if kind == "missing":
        return "is missing"
    if kind == "union_tag_not_found":
        return f"has no {detail['discriminator'].strip(chr(39))}"
    if kind == "tuple_type":
        return f"should be a list, such as [a, b] or a,b; got {value!r:.80}"
    if kind == "model_attributes_type":
        return f"should be a mapping but is {value!r:.80}"
    return error["msg"].removeprefix("Value error, ")


def _without_duplicates(pairs: Sequence[tuple[Hashable, Any]]) -> dict[Hashable, Any]:
    mapping: dict[Hashable, Any] = {}
    for key, value in pairs:
        if key in mapping:
            raise ValueError(f"duplicate key {key!r}")
        mapping[key] = value
    return mapping


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise ValueError(f"line {key.start_mark.line + 1}: duplicate key {key.value!r}")
                seen.add(key.value)
        return super().construct_mapping(node, deep)
