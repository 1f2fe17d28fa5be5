"""Command lines: a few flags of the command's own, and any setting of the configuration by its dotted name."""

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
    """The plain words, the command's own flags, and the settings, as nested data.

    ``flags`` are names that stand alone (``--resume``), ``known`` those that take a value (``--config FILE``). With
    ``settings``, every other ``--a.b VALUE`` or ``--a.b=VALUE`` is the setting ``{"a": {"b": VALUE}}``; whether there
    is such a setting is for the configuration to say. Its value is a number, true, false or null, or what YAML makes of
    ``[…]`` and ``{…}``, and else the text itself; for the names in ``texts`` it is the text whatever it says.

    Raises:
        ValueError: an unknown flag, or one without its value.

    >>> parsed_arguments(["grpo", "--seed", "3", "--options.kl=0.1"], settings=True)
    (['grpo'], {}, {'seed': 3, 'options': {'kl': 0.1}})
    """
    words: list[str] = []
    own: dict[str, str | bool] = {}
    given: dict[str, Any] = {}
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("--"):
            words.append(argument)
            continue
        name, equals, value = argument[2:].partition("=")
        name = name.replace("-", "_")
        if name in own or _has(given, name.split(".")):
            raise ValueError(f"--{name} is given twice")
        if name in flags:
            if equals:
                raise ValueError(f"--{name} stands alone, without a value")
            own[name] = True
        elif name in known:
            own[name] = value if equals else _next(rest, argument)
        elif settings:
            text = value if equals else _next(rest, argument)
            _set(given, name.split("."), text if name in texts else _value(text))
        else:
            raise ValueError(f"unknown flag {argument!r}{nearest(name, [*flags, *known])}")
    return words, own, given


def listed(value: str | bool) -> list[str]:
    """The names in a flag's value, which stand with commas between them."""
    return [name for name in str(value).split(",") if name]


def _next(rest: Iterator[str], flag: str) -> str:
    value = next(rest, None)
    if value is None or value.startswith("--"):
        raise ValueError(f"{flag} needs a value behind it")
    return value


WORDS = {"true": True, "false": False, "null": None}


def _value(text: str) -> Any:
    if text in WORDS:
        return WORDS[text]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    try:
        return yaml.safe_load(text) if text[:1] in ("[", "{") else text
    except yaml.YAMLError as error:
        raise ValueError(f"{text}: {' '.join(str(error).split())}") from None


def _has(data: Any, keys: list[str]) -> bool:
    for key in keys:
        if not isinstance(data, dict) or key not in data:
            return False
        data = data[key]
    return not isinstance(data, dict)


def _set(data: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        data = data.setdefault(key, {})
        if not isinstance(data, dict):
            raise ValueError(f"--{'.'.join(keys)}: {key} was given a value already")
    data[keys[-1]] = value
