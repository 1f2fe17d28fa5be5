"""Settings of sampling: responses to train on, and responses to held-out prompts."""

from typing import Annotated

from pydantic import Field, PositiveInt

from grape_rl.config.section import Section
from grape_rl.maths.bounds import NonNegativeInt


class SamplingConfig(Section):
    """Sampling of responses."""

    max_tokens: PositiveInt = 256
    """Maximum length of a response in tokens."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Sampling temperature; 0 takes the most likely token."""
    top_k: NonNegativeInt = 0
    """Sample from the k most likely tokens only; 0 for all."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling: the smallest set of tokens with at least this probability; 1 for all."""


class EvaluationConfig(Section):
    """Evaluation of the policy on held-out rows."""

    every: NonNegativeInt = 0
    """Steps between evaluations; 0 for only before and after training."""
    samples: PositiveInt = 1
    """Responses per held-out prompt."""
    temperature: Annotated[float, Field(ge=0)] | None = None
    """Sampling temperature of evaluations. Default: ``sampling.temperature``."""
