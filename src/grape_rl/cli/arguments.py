"""Command-line parsing: positional words, a command's own flags, and settings by their dotted names."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import yaml

from grape_rl.schema import nearest


def parsed_arguments(
    arguments: Sequence[str],
    flags: Collection[str] = (),
    settings: bool = False,
    known: Collection[str] = (),
    texts: Collection[str] = (),
) -> tuple[list[str], dict[str, str | bool], dict[str, Any]]:
    """Positional words, the command's own flags, and settings as nested data.

    ``flags`` are the names that take no value (``--resume``), ``known`` those that take one (``--config FILE``). With
    ``settings``, any other ``--a.b VALUE`` or ``--a.b=VALUE`` becomes ``{"a": {"b": VALUE}}``; the configuration checks
    later that the setting exists. A value is parsed as a number, true, false or null, as YAML if it starts with ``[``
    or ``{``, and else is text. Values of the settings in ``texts`` always stay text.

    Raises:
        ValueError: an unknown flag, a repeated one, or one without its value.

    >>> parsed_arguments(["grpo", "--seed", "3", "--options.kl=0.1"], settings=True)
    (['grpo'], {}, {'seed': 3, 'options': {'kl': 0.1}})
    """
    words: list[str] = []
    own: dict[str, str | bool] = {}
    nested: dict[str, Any] = {}
    remaining = iter(arguments)
    for argument in remaining:
        if not argument.startswith("--"):
            words.append(argument)
            continue
        name, equals, value = argument[2:].partition("=")
        name = name.replace("-", "_")
        if name in own or _has_value(nested, name.split(".")):
            raise ValueError(f"--{name} is given twice")
        if name in flags:
            if equals:
                raise ValueError(f"--{name} takes no value")
            own[name] = True
        elif name in known:
            own[name] = value if equals else _next_value(remaining, argument)
        elif settings:
            text = value if equals else _next_value(remaining, argument)
            _set_value(nested, name.split("."), text if name in texts else _parse_value(text))
        else:
            raise ValueError(f"unknown flag {argument!r}{nearest(name, [*flags, *known])}")
    return words, own, nested


def listed(value: str | bool) -> list[str]:
    """The names in a comma-separated list.

    >>> listed("helpful,brief,")
    ['helpful', 'brief']
    """
    return [name for name in str(value).split(",") if name]


def _next_value(remaining: Iterator[str], flag: str) -> str:
    value = next(remaining, None)
    if value is None or value.startswith("--"):
        raise ValueError(f"{flag} needs a value")
    return value


LITERALS = {"true": True, "false": False, "null": None}
"""Words that are values and not text."""


def _parse_value(text: str) -> Any:
    if text in LITERALS:
        return LITERALS[text]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    try:
        return yaml.safe_load(text) if text[:1] in ("[", "{") else text
    except yaml.YAMLError as error:
        raise ValueError(f"{text}: {' '.join(str(error).split())}") from None


def _has_value(data: Any, keys: list[str]) -> bool:
    for key in keys:
        if not isinstance(data, dict) or key not in data:
            return False
        data = data[key]
    return not isinstance(data, dict)


def _set_value(data: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        data = data.setdefault(key, {})
        if not isinstance(data, dict):
            raise ValueError(f"--{'.'.join(keys)}: {key} already has a value of its own")
    data[keys[-1]] = value
