"""The ``defaults`` section of a rubric: settings that every ``judge`` inherits."""

from collections.abc import Collection, Mapping
from typing import Annotated, Any

from pydantic import Field, create_model

from grape_rl.reward.critic.judge import Judge
from grape_rl.schema import Strict


def _optional(model: type[Strict], without: Collection[str] = ()) -> type[Strict]:
    """A model with the same fields, all optional. Rules that span several fields are left to the items."""
    fields: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if name not in without:
            kind: Any = field.annotation
            kind = _optional(kind) if _is_section(kind) else kind
            kind = Annotated[kind, *field.metadata] if field.metadata else kind
            fields[name] = (kind, Field(default=None, alias=field.alias))
    return create_model(f"{model.__name__}Defaults", __base__=Strict, **fields)


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Strict)


JudgeDefaults = _optional(Judge, without=["criterion"])
"""The fields of a ``judge``, all optional, without the criterion, which every item has for itself."""


class Defaults(Strict):
    """Settings that each ``judge`` of the rubric inherits unless it sets them itself."""

    judge: JudgeDefaults | None = None  # pyright: ignore[reportInvalidTypeForm]


class RubricHeader(Strict):
    """The section of a rubric that is read before its items."""

    defaults: Defaults = Defaults()


def with_defaults(judge: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """An item's ``judge`` with the defaults for the keys that it does not set, as plain data.

    Nested sections (``confidence``) are merged key by key. A default that belongs to a setting which the item overrides
    is dropped: the anchors of other labels, a reference that is not shown, the ``k`` of another mode.

    >>> with_defaults({"criterion": "Brief."}, {"critic": "small"})
    {'critic': 'small', 'criterion': 'Brief.'}
    """
    merged = dict(defaults)
    if "labels" in judge:
        merged.pop("anchors", None)
    if isinstance(shown := judge.get("show"), list) and "reference" not in shown:
        merged.pop("reference", None)
    for name, own in judge.items():
        default, field = merged.get(name), Judge.model_fields.get(name)
        nested = field is not None and _is_section(field.annotation)
        both = isinstance(own, Mapping) and isinstance(default, Mapping)
        merged[name] = _merge_confidence(default, own) if nested and both else own
    return merged


def _merge_confidence(default: Any, own: Any) -> dict[str, Any]:
    merged = {**default, **own}
    if "k" not in own and merged.get("mode") != default.get("mode"):
        merged.pop("k", None)
    return merged
