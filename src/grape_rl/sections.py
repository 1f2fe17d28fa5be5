"""Sections of the configuration: what all of them are, and those that say which model is trained and how much of it."""

from typing import Literal

from pydantic import ConfigDict, PositiveFloat, PositiveInt, model_validator

from grape_rl.reward.strict import Strict


class Section(Strict):
    """A part of the configuration, each setting explained by the text below it."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class Scratch(Section):
    """A small model with random weights and a tokenizer made from the data: no download."""

    tokenizer: Literal["characters", "bpe"] = "characters"
    """One token a character, or byte-level BPE."""
    vocabulary: PositiveInt = 8192
    """Tokens of a BPE tokenizer."""
    hidden: PositiveInt = 128
    layers: PositiveInt = 4
    heads: PositiveInt = 4
    context: PositiveInt = 512
    """The longest sequence, in tokens."""


class Lora(Section):
    """Adapters of low rank beside the model's weights, to be trained in their place."""

    rank: PositiveInt = 16
    """With any of these, adapters of this rank are trained and nothing else: pip install 'grape-rl[lora]'."""
    alpha: PositiveFloat = 32.0
    """What an adapter says counts alpha / rank times."""
    targets: tuple[str, ...] = ()
    """The linear layers that get one, by the end of their names ([q_proj, v_proj]); without any, all but the head."""


class Model(Section):
    """Which model to train."""

    name: str = "Qwen/Qwen2.5-0.5B-Instruct"
    """A folder in Hugging Face layout, or a model of the Hub."""
    scratch: Scratch | None = None
    """Instead of ``name``: a new small model."""
    lora: Lora | None = None
    """Train adapters instead of the weights."""

    @model_validator(mode="after")
    def _one_of_them(self) -> "Model":
        if self.scratch and self.name != Model.model_fields["name"].default:
            raise ValueError(f"name exactly one of name ({self.name}) and scratch")
        return self
