"""Command lines: a few flags of the command's own, and any setting of the configuration by its dotted name."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import yaml

from grape_rl.reward.strict import nearest


def parsed_arguments(
    arguments: Sequence[str], flags: Collection[str] = (), settings: bool = False, known: Collection[str] = ()
) -> tuple[list[str], dict[str, str | bool], dict[str, Any]]:
    """The plain words, the command's own flags, and the settings, as nested data.

    ``flags`` are names that stand alone (``--resume``), ``known`` those that take a value (``--config FILE``). With
    ``settings``, every other ``--a.b VALUE`` or ``--a.b=VALUE`` is the setting ``{"a": {"b": VALUE}}``, its value read
    as YAML; whether there is such a setting is for the configuration to say.

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
        if name in flags:
            own[name] = True
        elif name in known:
            own[name] = value if equals else _next(rest, argument)
        elif settings:
            _set(given, name.split("."), _value(value if equals else _next(rest, argument)))
        else:
            raise ValueError(f"unknown flag {argument!r}{nearest(name, [*flags, *known])}")
    return words, own, given


def _next(rest: Iterator[str], flag: str) -> str:
    value = next(rest, None)
    if value is None or value.startswith("--"):
        raise ValueError(f"{flag} needs a value behind it")
    return value


def _value(text: str) -> Any:
    try:
        return float(text) if _exponent(text) else yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _exponent(text: str) -> bool:
    """YAML 1.1 reads 1e-5 as text, for want of a point."""
    head, e, tail = text.lower().partition("e")
    return bool(e) and head.lstrip("+-").isdigit() and tail.lstrip("+-").isdigit()


def _set(data: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        data = data.setdefault(key, {})
        if not isinstance(data, dict):
            raise ValueError(f"--{'.'.join(keys)}: {key} was given a value already")
    data[keys[-1]] = value
