"""Configuration files: read with their ``extends``, merged in layers, and written with every default."""

from pathlib import Path
from typing import Any, cast

import yaml

from grape_rl.config.config import Config
from grape_rl.schema import parsed

EXCLUSIVE = (("name", "scratch"), ("source", "tasks"), ("rubric", "function", "model"))
"""Groups of settings that exclude each other within their section."""

WHOLE = ("tasks", "styles", "chat_template_kwargs")
"""Settings whose value is a mapping that is replaced as a whole, never merged key by key."""


def from_file(path: Path, method: str) -> dict[str, Any]:
    """Load a YAML or JSON configuration file as plain data, with the files that it ``extends``.

    ``extends: other.yaml`` merges this file's settings over the other's. Paths in ``method``, in ``reward``'s
    ``rubric``, ``function`` and ``model``, and in ``model.chat_template`` are relative to the file that contains them,
    if such a file exists.

    Raises:
        ValueError: the file does not exist, does not parse, or sets another method than ``method``.
    """
    data = _with_base(path)
    if data.setdefault("method", method) != method:
        raise ValueError(f"{path}: its method is {data['method']!r}, but {method!r} was requested")
    return data


def merge(base: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    """Two layers of settings as one: mappings are merged key by key; any other value of ``override`` wins.

    Values of ``WHOLE`` are replaced as a whole. A setting in ``override`` removes those of ``base`` that it excludes
    (``EXCLUSIVE``): a ``name`` for the model removes ``scratch``.

    >>> merge({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}})
    {'a': {'b': 1, 'c': 3}}
    """
    removed = {name for group in EXCLUSIVE if any(map(override.get, group)) for name in group} - override.keys()
    merged = {key: value for key, value in base.items() if key not in removed}
    for key, value in override.items():
        old = merged.get(key)
        both_mappings = isinstance(old, dict) and isinstance(value, dict) and key not in WHOLE
        merged[key] = merge(cast(dict[str, Any], old), value) if both_mappings else value
    return merged


def dump(config: Config) -> str:
    """The configuration as YAML, with every default."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _with_base(path: Path, extended_by: tuple[Path, ...] = ()) -> dict[str, Any]:
    if path.resolve() in extended_by:
        raise ValueError(f"{path}: extends itself")
    data = parsed(path)
    if not isinstance(data, dict):
        raise ValueError(f"{path}: should be keys with values")
    for section, keys in (("reward", ("rubric", "function", "model")), ("model", ("chat_template",))):
        if isinstance(data.get(section), dict):
            for key in keys:
                _make_relative(data[section], key, path.parent)
    if ":" in str(data.get("method")):
        _make_relative(data, "method", path.parent)
    base = data.pop("extends", None)
    return merge(_with_base(path.parent / str(base), (*extended_by, path.resolve())), data) if base else data


def _make_relative(settings: dict[str, Any], key: str, folder: Path) -> None:
    """Prefix a path, or the file in "file.py:name", with ``folder`` if the file exists there."""
    value = settings.get(key)
    if isinstance(value, str) and (folder / value.split(":")[0]).exists():
        settings[key] = str(folder / value)
