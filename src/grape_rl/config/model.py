"""Settings of the model that is trained: a pretrained one, a small one from scratch, with or without LoRA."""

from typing import Literal

from pydantic import PositiveFloat, PositiveInt, model_validator

from grape_rl.config.section import Section


class ScratchConfig(Section):
    """A small model with random weights and a tokenizer built from the data. Nothing is downloaded."""

    tokenizer: Literal["characters", "bpe"] = "characters"
    """One token per character, or byte-level BPE."""
    vocabulary: PositiveInt = 8192
    """Vocabulary size of a BPE tokenizer."""
    hidden: PositiveInt = 128
    """Hidden size."""
    layers: PositiveInt = 4
    """Number of transformer layers."""
    heads: PositiveInt = 4
    """Number of attention heads."""
    context: PositiveInt = 512
    """Context length in tokens."""


class LoraConfig(Section):
    """LoRA: low-rank adapters are trained instead of the model's weights."""

    rank: PositiveInt = 16
    """Rank of the adapters. Any lora setting turns LoRA on: only adapters are trained. Needs 'grape-rl[lora]'."""
    alpha: PositiveFloat = 32.0
    """LoRA scaling: adapter outputs are multiplied by alpha / rank."""
    targets: tuple[str, ...] = ()
    """Linear layers with an adapter, by the end of their names ([q_proj, v_proj]). Default: all except the LM head."""


class ModelConfig(Section):
    """The model to train."""

    name: str = "Qwen/Qwen2.5-0.5B-Instruct"
    """A folder in Hugging Face layout, or a model on the Hub."""
    chat_template: str | None = None
    """A file with a chat template (Jinja) to use instead of the tokenizer's own. It is saved with the model."""
    scratch: ScratchConfig | None = None
    """A small model from scratch instead of ``name``."""
    lora: LoraConfig | None = None
    """Train LoRA adapters instead of the weights."""

    @model_validator(mode="after")
    def _exactly_one_origin(self) -> "ModelConfig":
        if self.scratch and self.name != ModelConfig.model_fields["name"].default:
            raise ValueError(f"set exactly one of name ({self.name}) and scratch")
        return self
