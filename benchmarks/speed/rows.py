"""The rows of the comparison with TRL: what each runs, and what it is to reach."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

BenchmarkMethod = Literal["grpo", "sft", "dpo"]


@dataclass(frozen=True)
class Row:
    """One thing that both sides do: a method, a shape of model, and how much of it a step is.

    ``per_step`` prompts, demonstrations or pairs; of GRPO ``group`` responses of ``new_tokens`` at most to prompts of
    ``prompt_tokens``. ``longest`` is what demonstrations and pairs are cut to; ``positions``
    our micro-batch, where it is not the default. ``ratio`` and ``gigabytes`` are the
    goals: how often as fast as TRL at least, and the peak of memory at most. ``peer`` says how TRL is set where not by
    its defaults; None where it does not run.
    """

    name: str
    method: BenchmarkMethod
    shape: str
    per_step: int
    group: int = 1
    prompt_tokens: int = 0
    new_tokens: int = 0
    longest: int = 1024
    positions: int = 0
    bf16: bool = False
    gpu: bool = False
    ratio: float | None = None
    gigabytes: float | None = None
    peer: Mapping[str, Any] | None = None

    @property
    def title(self) -> str:
        """What the row is, as the table names it."""
        sizes = (
            f"{self.per_step} × {self.group}, {self.prompt_tokens} + {self.new_tokens} tokens"
            if self.method == "grpo"
            else f"{self.per_step} GSM8K {'rows' if self.method == 'sft' else 'pairs'}"
        )
        how = ["bfloat16 autocast"] * self.bf16 + [f"TRL: {each.replace('_', ' ')}" for each in self.peer or {}]
        return ", ".join([f"{self.method.upper()} `{self.shape}`, {sizes}", *how])

    def small(self) -> "Row":
        """A row of seconds, to see that it works: a tiny model, and little of everything."""
        cut = {"shape": "tiny", "per_step": 2, "group": min(2, self.group), "gpu": False}
        if self.method == "grpo":
            cut |= {"prompt_tokens": 12, "new_tokens": 6}
        return replace(self, **cut)

    def spec(self, model: Path, data: Path, steps: int) -> dict[str, Any]:
        """What a side is told: the row, the model's folder, the file of data, how many steps."""
        return asdict(self) | {"model": str(model), "data": str(data), "steps": steps, "rate": 1e-5}


WIDE = Row("grpo_wide", "grpo", "wide", 4, 8, 256, 64, ratio=6, gigabytes=2, peer={})
QWEN = Row("gpu_grpo", "grpo", "qwen05", 8, 16, 512, 512, bf16=True, gpu=True, ratio=3, peer={})
ROWS = (
    WIDE,
    replace(WIDE, name="grpo_wide_short", per_step=8, prompt_tokens=64, positions=2048, ratio=3.5),
    replace(WIDE, name="grpo_gsm", shape="gsm", positions=1024, ratio=4, gigabytes=1.5),
    replace(WIDE, name="grpo_tiny", shape="tiny", ratio=3, gigabytes=None),
    Row("sft_gsm", "sft", "gsm", 16, longest=512, positions=512, ratio=1.8, gigabytes=1.2, peer={}),
    Row("dpo_gsm", "dpo", "gsm", 8, longest=768, positions=512, ratio=2.5, gigabytes=1.2, peer={}),
    replace(WIDE, name="grpo_wide_bf16", bf16=True, ratio=8),
    QWEN,
    replace(QWEN, name="gpu_grpo_continuous", ratio=1.5, peer={"use_transformers_continuous_batching": True}),
    Row("gpu_sft", "sft", "qwen05", 128, longest=1024, bf16=True, gpu=True),
)
"""In the order of the table. TRL packs only with FlashAttention, so of SFT in packs there is our side alone."""

STARTS = {
    "import": ("import grape_rl", "import trl"),
    "import_all": ("from grape_rl import train", "from trl import GRPOTrainer"),
    "help": ("grape --help", "trl --help"),
    "help_method": ("grape train grpo --help", "trl grpo --help"),
}
"""What it takes to start, rows of their own: our command and TRL's. Imports are for Python, the others for a shell."""
START_GOAL = 0.4
"""Seconds that a start may take at most."""
