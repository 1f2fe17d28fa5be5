"""Configurations and data checked against the table of methods: every fault is reported before any work."""

from collections.abc import Iterable, Mapping
from typing import Any

from grape_rl.algorithms import ALGORITHMS, method_named
from grape_rl.config.config import Config
from grape_rl.config.names import setting_hint
from grape_rl.data.types import DataType
from grape_rl.methods import Method, build_objective, method_options, resolve_options
from grape_rl.schema import nearest, validated
from grape_rl.setup.rows import Row
from grape_rl.sources.requirement import UnsuitableDataError

EXAMPLES = 3
"""Methods that an error names as suitable for the data, if there are many."""


def load_config(data: Config | Mapping[str, Any], origin: str = "config") -> Config:
    """The configuration of plain data, checked against its method, with the default of every option.

    A run saves all options, so that it is not resumed once a method's default has changed. For a method from a file,
    {method} in ``output`` becomes the method's own name.

    Raises:
        ValueError: one line, which starts with ``origin``.
    """
    if isinstance(data, Config):
        config = data
    else:
        _require_known_settings(data, origin)
        config = validated(Config, dict(data), origin, {})
    try:
        method = method_named(config.method)
        options = resolve_options(method, config.options)
        method.source.check(config, options)
        build_objective(method, options)
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from None
    output = config.output
    if method.name != config.method:
        output = output.replace("{method}", method.name)
    return config.model_copy(update={"options": options, "output": output})


def _require_known_settings(data: Mapping[str, Any], origin: str) -> None:
    """Raise for a top-level setting that does not exist, and suggest the nearest one in any section."""
    for key in data:
        if key not in Config.model_fields:
            try:
                options: Iterable[str] = method_options(method_named(str(data.get("method"))))
            except ValueError:
                options = ()
            hint = setting_hint(key, options) or nearest(key, Config.model_fields)
            raise ValueError(f"{origin}: unknown key {key!r}{hint}")


def load_rows(config: Config, method: Method, options: Mapping[str, Any]) -> tuple[list[Row], list[Row]]:
    """Training rows and held-out rows as the method's source reads them.

    Raises:
        ValueError: the data is of another type, with the methods that learn from it; or it does not fit.
    """
    try:
        return method.source.rows(config, options)
    except UnsuitableDataError as error:
        raise ValueError(f"{error}, which {_learners(error.found_type)} from") from None


def _learners(data: DataType) -> str:
    """The methods that learn from that type of data, with the verb: "kto, bco_unpaired and 5 more learn"."""
    names = [
        method.name
        for method in ALGORITHMS.values()
        if data in method.source.requirement.types and not method.online_of
    ]
    if len(names) > EXAMPLES + 1:
        names = [*names[:EXAMPLES], f"{len(names) - EXAMPLES} more"]
    words = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    return f"{words} learn{'s' * (len(names) == 1)}"
