"""The base class of every section of the configuration."""

from collections.abc import Mapping
from typing import Any, get_origin

from pydantic import ConfigDict, model_validator

from grape_rl.schema import Strict


class Section(Strict):
    """One section of the configuration. The string below a setting is its description in ``grape train --help``.

    A list may be given as one text with commas: ``q_proj,v_proj``.
    """

    model_config = ConfigDict(use_attribute_docstrings=True)

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
