"""Settings as text: every one with its default and meaning, and what follows from those chosen."""

from types import NoneType
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from grape_rl.algorithms import method_named
from grape_rl.config.config import Config
from grape_rl.methods import resolve_options


def settings_help() -> str:
    """Every setting by its dotted name, with its default and what it is for: what ``cli/settings.txt`` holds.

    It lies there so that help need not wait for all that a run imports.
    """
    return "settings:\n" + "\n".join(_lines(Config, ""))


def _lines(model: type[BaseModel], prefix: str) -> list[str]:
    out: list[str] = []
    for name, field in model.model_fields.items():
        if name == "method":  # it is the word before the settings
            continue
        part = _section(field.annotation)
        if part:
            out += _lines(part, f"{prefix}{name}.")
        else:
            default = "" if field.is_required() else f" ({_default(field)})"
            meaning = " ".join((field.description or "").replace("``", "").split())
            out.append(f"  --{prefix}{name}{default}" + (f"  {meaning}" if meaning else ""))
    return out


def text_settings(model: type[BaseModel] = Config, prefix: str = "") -> frozenset[str]:
    """The dotted names of the settings whose value is text, so that it is taken as it stands."""
    found: set[str] = set()
    for name, field in model.model_fields.items():
        part = _section(field.annotation)
        if part:
            found |= text_settings(part, f"{prefix}{name}.")
        elif field.annotation is str or set(getattr(field.annotation, "__args__", ())) == {str, NoneType}:
            found.add(prefix + name)
    return frozenset(found)


def _section(annotation: Any) -> type[BaseModel] | None:
    for kind in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _default(field: FieldInfo) -> str:
    if not field.default_factory_takes_validated_data:
        return _short(field.get_default(call_default_factory=True))
    on = (field.get_default(call_default_factory=True, validated_data={"device": kind}) for kind in ("cpu", "cuda"))
    return "{} on a CPU, {} elsewhere".format(*on)


def _short(value: Any) -> str:
    return "none" if value is None else str(value)


def derived(config: Config) -> str:
    """What follows from the settings: responses and tokens a step, optimizer steps, the device."""
    from grape_rl.setup.policy import device

    method = method_named(config.method)
    options = resolve_options(method, config.options)
    changes = "1 update each, without the optimizer"
    if "optimizer" in method.update_function.reads:
        updates = options.get("epochs", 1) * options.get("minibatches", 1)
        changes = f"{updates} optimizer step{'s' * (updates > 1)} each"
    if method.source.samples:
        count = config.prompts_per_step * config.group_size
        anew = config.prompts_per_step * config.revise.per_group
        batch = (
            f"{config.prompts_per_step} prompts x {config.group_size} responses = {count} responses a step"
            f"{f' and {anew} revisions' if anew else ''}, up to {(count + anew) * config.sampling.max_tokens} tokens"
        )
    else:
        batch = f"{config.prompts_per_step} {method.source.unit} a step"
    return (
        f"{config.method}: {config.steps} steps, {batch}; {changes}, in "
        f"micro-batches of up to {config.tokens_per_microbatch} positions; {device(config.device)}, {config.precision}"
    )


if __name__ == "__main__":  # python -m grape_rl.cli.settings > src/grape_rl/cli/settings.txt
    print(settings_help())
