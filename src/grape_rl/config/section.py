"""The base class of every section of the configuration."""

from pydantic import ConfigDict

from grape_rl.schema import Strict


class Section(Strict):
    """One section of the configuration. The string below a setting is its description in ``grape train --help``."""

    model_config = ConfigDict(use_attribute_docstrings=True)
