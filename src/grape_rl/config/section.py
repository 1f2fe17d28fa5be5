"""The base class of every section of the configuration."""

from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.fields import FieldInfo

from grape_rl.schema import Strict


class Section(Strict):
    """One section of the configuration. The string below a setting is its description in ``grape train --help``.

    A list may be given as one text with commas: ``q_proj,v_proj``.
    """

    model_config = ConfigDict(use_attribute_docstrings=True, ser_json_inf_nan="constants")

    @model_validator(mode="before")
    @classmethod
    def _lists_by_commas(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        lists = {name for name, field in cls.model_fields.items() if get_origin(field.annotation) is tuple}
        return {
            key: [part.strip() for part in value.split(",") if part.strip()]
            if key in lists and isinstance(value, str)
            else value
            for key, value in data.items()
        }


def settings_of(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every setting of a section and of the sections inside it, by its dotted name."""
    for name, field in section.model_fields.items():
        if inner := section_type(field.annotation):
            yield from settings_of(inner, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def section_type(annotation: Any) -> type[BaseModel] | None:
    """The section that a setting of this type is, also an optional one; None for any other type."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None
