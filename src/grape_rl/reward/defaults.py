"""What a rubric's judges say where they don't say it themselves: the ``defaults`` at the top of the file."""

from collections.abc import Collection, Mapping
from typing import Annotated, Any

from pydantic import Field, create_model

from grape_rl.reward.critic.judge import Judge
from grape_rl.schema import Strict


def _optional(model: type[Strict], without: Collection[str] = ()) -> type[Strict]:
    """The same fields, each of which may be left out; the rules that need several of them come with the items."""
    fields: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if name not in without:
            kind: Any = field.annotation
            kind = _optional(kind) if _is_part(kind) else kind
            kind = Annotated[kind, *field.metadata] if field.metadata else kind
            fields[name] = (kind, Field(default=None, alias=field.alias))
    return create_model(f"{model.__name__}Defaults", __base__=Strict, **fields)


def _is_part(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Strict)


JudgeDefaults = _optional(Judge, without=["criterion"])
"""What a ``judge`` may say, but for the criterion, which is each item's own."""


class Defaults(Strict):
    """What each ``judge`` of the rubric takes from here where it does not say it itself."""

    judge: JudgeDefaults | None = None  # pyright: ignore[reportInvalidTypeForm]


class Headed(Strict):
    """The part of a rubric that its items are read with."""

    defaults: Defaults = Defaults()


def completed(judge: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What an item's ``judge`` says, with the defaults for what it does not, as plain data.

    Parts with keys of their own (``confidence``) are completed key by key. What belongs to something that the item says
    otherwise does not come along: the anchors of other labels, a reference that is not shown, another mode's ``k``.

    >>> completed({"criterion": "Brief."}, {"critic": "small"})
    {'critic': 'small', 'criterion': 'Brief.'}
    """
    told = dict(defaults)
    if "labels" in judge:
        told.pop("anchors", None)
    if isinstance(shown := judge.get("show"), list) and "reference" not in shown:
        told.pop("reference", None)
    for name, own in judge.items():
        default, field = told.get(name), Judge.model_fields.get(name)
        part = field is not None and _is_part(field.annotation)
        told[name] = _over(default, own) if part and isinstance(own, Mapping) and isinstance(default, Mapping) else own
    return told


def _over(default: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    kept = {**default, **own}
    if "k" not in own and kept.get("mode") != default.get("mode"):
        kept.pop("k", None)
    return kept
