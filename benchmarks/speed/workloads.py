"""The workloads of the comparison with TRL: the work of each, and its goals."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

BenchmarkMethod = Literal["grpo", "sft", "dpo"]


@dataclass(frozen=True)
class Workload:
    """A training job that both sides run: a method, a model shape, and the size of a step.

    ``per_step`` is the number of prompts, demonstrations or pairs of a step. For GRPO, each prompt of ``prompt_tokens``
    tokens gets ``group`` responses of at most ``new_tokens``. ``max_length`` truncates demonstrations and pairs.
    ``tokens_per_microbatch`` is grape-rl's setting; 0 is the default.

    ``ratio`` and ``gigabytes`` are the goals: the least speed relative to TRL, and the largest peak memory. ``peer``
    has TRL's settings that differ from its defaults; None if TRL does not run.
    """

    name: str
    method: BenchmarkMethod
    shape: str
    per_step: int
    group: int = 1
    prompt_tokens: int = 0
    new_tokens: int = 0
    max_length: int = 1024
    tokens_per_microbatch: int = 0
    bf16: bool = False
    gpu: bool = False
    ratio: float | None = None
    gigabytes: float | None = None
    peer: Mapping[str, Any] | None = None

    @property
    def title(self) -> str:
        """The workload in words, its first cell in the tables."""
        sizes = (
            f"{self.per_step} × {self.group}, {self.prompt_tokens} + {self.new_tokens} tokens"
            if self.method == "grpo"
            else f"{self.per_step} GSM8K {'rows' if self.method == 'sft' else 'pairs'}"
        )
        details = ["bfloat16 autocast"] * self.bf16 + [f"TRL: {key.replace('_', ' ')}" for key in self.peer or {}]
        return ", ".join([f"{self.method.upper()} `{self.shape}`, {sizes}", *details])

    def small(self) -> "Workload":
        """Version of the workload that runs in seconds, as a smoke test: a tiny model and tiny steps."""
        changes = {"shape": "tiny", "per_step": 2, "group": min(2, self.group), "gpu": False}
        if self.method == "grpo":
            changes |= {"prompt_tokens": 12, "new_tokens": 6}
        return replace(self, **changes)

    def spec(self, model: Path, data: Path, steps: int) -> dict[str, Any]:
        """Specification for one side: the workload, the model's folder, the data file and the number of steps."""
        return asdict(self) | {"model": str(model), "data": str(data), "steps": steps, "rate": 1e-5}


WIDE = Workload("grpo_wide", "grpo", "wide", 4, 8, 256, 64, ratio=6, gigabytes=2, peer={})
QWEN = Workload("gpu_grpo", "grpo", "qwen05", 8, 16, 512, 512, bf16=True, gpu=True, ratio=3, peer={})
WORKLOADS = (
    WIDE,
    replace(WIDE, name="grpo_wide_short", per_step=8, prompt_tokens=64, tokens_per_microbatch=2048, ratio=3.5),
    replace(WIDE, name="grpo_gsm", shape="gsm", tokens_per_microbatch=1024, ratio=4, gigabytes=1.5),
    replace(WIDE, name="grpo_tiny", shape="tiny", ratio=3, gigabytes=None),
    Workload("sft_gsm", "sft", "gsm", 16, max_length=512, tokens_per_microbatch=512, ratio=1.8, gigabytes=1.2, peer={}),
    Workload("dpo_gsm", "dpo", "gsm", 8, max_length=768, tokens_per_microbatch=512, ratio=2.5, gigabytes=1.2, peer={}),
    replace(WIDE, name="grpo_wide_bf16", bf16=True, ratio=8),
    QWEN,
    replace(QWEN, name="gpu_grpo_continuous", ratio=1.5, peer={"use_transformers_continuous_batching": True}),
    Workload("gpu_sft", "sft", "qwen05", 128, max_length=1024, bf16=True, gpu=True),
)
"""In the order of the table. TRL packs only with FlashAttention, so packed SFT on a GPU has the grape-rl side alone."""

STARTS = {
    "import": ("import grape_rl", "import trl"),
    "import_all": ("from grape_rl import train", "from trl import GRPOTrainer"),
    "help": ("grape --help", "trl --help"),
    "help_method": ("grape train grpo --help", "trl grpo --help"),
}
"""Start-up commands of grape-rl and of TRL, each a row of its own. Imports run in Python, the rest in a shell."""
START_GOAL = 0.4
"""The largest start-up time, in seconds."""
