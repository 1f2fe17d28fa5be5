"""The configuration of a run: every setting with its type, default and description.

These classes check what can be checked without the table of methods. ``grape_rl.validation`` checks the rest.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt, model_validator

from grape_rl.config.data import DataConfig
from grape_rl.config.model import ModelConfig
from grape_rl.config.optimizer import OptimizerConfig
from grape_rl.config.revise import ReviseConfig
from grape_rl.config.reward import RewardConfig
from grape_rl.config.sampling import EvaluationConfig, SamplingConfig
from grape_rl.config.section import Section
from grape_rl.maths.bounds import NonNegativeInt
from grape_rl.reward.critic.settings import parse_critics


def on_cpu(device: str) -> bool:
    """True if ``device`` ("cpu", "cuda" or "auto") is the CPU, where small micro-batches are as fast as large ones."""
    return device == "cpu" or (device == "auto" and not torch.cuda.is_available())


def _default_microbatch(settings: dict[str, Any]) -> int:
    return 4096 if on_cpu(settings["device"]) else 16384


class Config(Section):
    """The configuration of one run."""

    method: str
    """A method of the table (see ``grape algorithms``), or a method of your own: "file.py:NAME" or "module:NAME"."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = Field(DataConfig.model_validate({}))
    reward: RewardConfig = Field(RewardConfig.model_validate({}))
    sampling: SamplingConfig = SamplingConfig()
    revise: ReviseConfig = ReviseConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    options: dict[str, Any] = Field({})
    """The method's own options: see ``grape explain METHOD``."""
    steps: PositiveInt = 100
    """Training steps."""
    prompts_per_step: PositiveInt = 8
    """Prompts per step; for methods that learn from data: demonstrations, pairs, labeled responses or solutions."""
    group_size: PositiveInt = 8
    """Responses per prompt."""
    device: str = "auto"
    """"cpu", "cuda", or "auto" for CUDA if available."""
    tokens_per_microbatch: PositiveInt = Field(default_factory=_default_microbatch)
    """Maximum token positions in one forward pass. Trades memory for time and never changes a result."""
    gradient_checkpointing: bool = False
    """Recompute each layer in the backward pass instead of storing its activations. Trades time for memory."""
    seed: NonNegativeInt = 0
    """Random seed of the data order, the weights and sampling."""
    output: str = "runs/{method}"
    """The run's folder. May contain {method} and {seed}."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of forward passes. The weights stay in fp32."""
    log_kl: bool = True
    """Log the KL divergence to the initial model, at the cost of one more forward pass per step."""
    reference_cache: str | None = None
    """A folder that caches the reference model's log-probs of data rows. Runs may share it. Default: in the run's."""
    generation_batch_size: PositiveInt = 512
    """Maximum number of responses generated at once. Trades memory for time and never changes a result."""
    checkpoint_every: NonNegativeInt = 50
    """Steps between checkpoints; 0 for only the last."""
    keep_checkpoints: PositiveInt = 2
    """Number of newest checkpoints to keep."""

    @model_validator(mode="after")
    def _is_complete(self) -> "Config":
        if bool(self.data.source) == bool(self.data.tasks):
            raise ValueError("data: set exactly one of source (a file or a dataset) and tasks")
        parse_critics(self.reward.critics, "reward.critics")
        try:
            _ = self.folder
        except (LookupError, ValueError, AttributeError):
            raise ValueError(f"output: {self.output!r}: only {{method}} and {{seed}} may be in braces") from None
        return self

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.output.format(method=self.method, seed=self.seed)).expanduser()
