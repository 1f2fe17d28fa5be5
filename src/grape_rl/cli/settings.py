"""Settings as text: the help of each setting, and a run's settings in one line."""

import inspect
import textwrap
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from grape_rl.algorithms import method_named
from grape_rl.cli.method_text import wrapped
from grape_rl.config.config import Config
from grape_rl.config.section import section_type, settings_of
from grape_rl.methods import resolve_options


def settings_help() -> str:
    """Every setting by its dotted name, with its choices, default and meaning: the text of ``cli/settings.txt``.

    The text is kept in that file because ``--help`` should not wait for the imports that this function needs.
    """
    return "\n".join(["settings, with defaults in parentheses:", *_section_help(Config, "")])


def _section_help(model: type[BaseModel], prefix: str) -> list[str]:
    """Lines for a section and the sections inside it. Those of ``Config`` come before its own settings, the run's."""
    heading = prefix.removesuffix(".") or "run"
    own = ["", wrapped(f"{heading}: {' '.join((inspect.getdoc(model) or '').split(chr(10) * 2)[0].split())}")]
    nested: list[str] = []
    for name, field in model.model_fields.items():
        if section := section_type(field.annotation):
            nested += _section_help(section, f"{prefix}{name}.")
        elif name != "method":  # METHOD is a word of its own on the command line
            choices = "|".join(_choices(field.annotation))
            own.append(f"  --{prefix}{name}{' ' * bool(choices)}{choices} ({_default(field)})")
            meaning = " ".join((field.description or "").replace("``", "").split())
            own += [wrapped(meaning, indent=6)] if meaning else []
    return own + nested if prefix else nested + own


def text_settings() -> frozenset[str]:
    """The dotted names of the settings whose value is text, which the command line must not parse as a number."""
    texts = (str, str | None)
    return frozenset(name for name, field in settings_of(Config) if field.annotation in texts)


def _choices(annotation: Any) -> tuple[str, ...]:
    """The values of a ``Literal``, also of an optional one; else none."""
    for kind in (annotation, *get_args(annotation)):
        if get_origin(kind) is Literal:
            return get_args(kind)
    return ()


def _default(field: FieldInfo) -> str:
    if not field.default_factory_takes_validated_data:
        return _shown(field.get_default(call_default_factory=True))
    on = (field.get_default(call_default_factory=True, validated_data={"device": kind}) for kind in ("cpu", "cuda"))
    return "{} on a CPU, {} on a GPU".format(*on)


def _shown(value: Any) -> str:
    """A default as YAML would have it, on one short line."""
    if value is None or value in ((), {}):
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return str(list(value))
    return textwrap.shorten(str(value), 60, placeholder=" …")


def run_summary(config: Config) -> str:
    """One line on a run: examples, tokens and optimizer steps per step, micro-batches, device."""
    from grape_rl.setup.policy import device

    method = method_named(config.method)
    options = resolve_options(method, config.options)
    updates = "1 update without an optimizer"
    if "optimizer" in method.update_function.reads:
        updates = _counted(options.get("epochs", 1) * options.get("minibatches", 1), "optimizer step")
    if method.source.samples:
        responses = config.prompts_per_step * config.group_size
        revisions = config.prompts_per_step * config.revise.per_group
        batch = (
            f"{config.prompts_per_step} prompts x {config.group_size} responses = {responses} responses"
            f"{f' and {revisions} revisions' if revisions else ''}, "
            f"up to {(responses + revisions) * config.sampling.max_tokens} tokens"
        )
    else:
        batch = f"{config.prompts_per_step} {method.source.unit}"
    return (
        f"{method.name}: {_counted(config.steps, 'step')} of {batch}; {updates} each, in micro-batches of up to "
        f"{config.tokens_per_microbatch} token positions; {device(config.device)}, {config.precision}"
    )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


if __name__ == "__main__":  # python -m grape_rl.cli.settings > src/grape_rl/cli/settings.txt
    print(settings_help())
