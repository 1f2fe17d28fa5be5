"""Sections of the configuration: what all of them are, and those that say which model is trained and how much of it,
and whether responses are revised."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, ConfigDict, PositiveFloat, PositiveInt, model_validator

from grape_rl.maths.bounds import NonNegativeInt
from grape_rl.schema import Strict


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


def _with_critique(request: str) -> str:
    if "{critique}" not in request:
        raise ValueError("has no {critique} in it: the policy would not know what to do better")
    return request


class Revise(Section):
    """Responses that the policy writes anew, with a critique before it: further responses to the same prompt.

    A critique is what the rubric's verdicts hold against the response.
    """

    per_group: NonNegativeInt = 0
    """How many responses to each prompt are revised, from the worst up; 0 for none."""
    items: PositiveInt = 3
    """The most items that a critique tells of, those first that cost most."""
    max_characters: PositiveInt = 2000
    """The longest critique; what is longer loses its end."""
    request: Annotated[str, AfterValidator(_with_critique)] = (
        "This answer was criticized:\n\n{critique}\n\nAnswer once more, and better in what was criticized. "
        "Write the new answer and nothing about the old one."
    )
    """What follows the response, as the user's next message, or as text before the prompt once more."""
    show_gold: bool = False
    """Whether a critique may tell what the graders know of the right answer: why a check failed, and what a critic says
    that was shown a reference or the row."""

    def check(self, method: str, rubric: str | None, group_size: int, options: Mapping[str, Any]) -> None:
        """That a run of a method that samples responses can revise as it is told to.

        Raises:
            ValueError: there is no rubric, more to revise than is sampled, or pairs of revisions and none revised.
        """
        if not self.per_group:
            if options.get("pairing") == "revised":
                raise ValueError("options: pairing is revised, and nothing is: set revise.per_group")
        elif not rubric:
            raise ValueError("revise: a critique is made of a rubric's verdicts: name reward.rubric")
        elif self.per_group > group_size:
            raise ValueError(f"revise: per_group is {self.per_group}, and {method} samples {group_size} a prompt")


def on_cpu(device: str) -> bool:
    """Whether that is a CPU, of which a small micro-batch makes as good a use as a large one."""
    return device == "cpu" or (device == "auto" and not torch.cuda.is_available())
