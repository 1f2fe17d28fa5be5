"""The TRL side of the comparison: ``python peer.py SPEC OUT``, run by a Python that has trl==1.16.0.

SPEC is a file with ``Workload.spec``. OUT gets the seconds, tokens and lengths of the steps. TRL has its defaults,
except that gradient checkpointing, saving and progress bars are off. Demonstrations and pairs are read in the order of
the file, which is the order in which the grape-rl side draws them.
"""

import json
import random
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any


def trainer(spec: dict[str, Any], folder: str) -> Any:
    """TRL trainer of the spec's method."""
    import trl  # pyright: ignore[reportMissingImports]
    from datasets import Dataset

    data = Dataset.from_list([json.loads(line) for line in Path(spec["data"]).read_text(encoding="utf-8").splitlines()])
    common = {
        "output_dir": folder,
        "max_steps": spec["steps"],
        "learning_rate": spec["rate"],
        "per_device_train_batch_size": spec["per_step"] * spec["group"],
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "bf16": spec["bf16"],
        "use_cpu": not spec["gpu"],
        **spec["peer"],
    }
    given = {"model": spec["model"], "train_dataset": data}
    if spec["method"] == "grpo":
        own = {"num_generations": spec["group"], "max_completion_length": spec["new_tokens"], "beta": 0.0}
        config = trl.GRPOConfig(**common, **own, temperature=1.0)
        return trl.GRPOTrainer(**given, args=config, reward_funcs=random_reward)
    classes = {"sft": (trl.SFTConfig, trl.SFTTrainer), "dpo": (trl.DPOConfig, trl.DPOTrainer)}
    config_class, trainer_class = classes[spec["method"]]
    config = config_class(**common, max_length=spec["max_length"], train_sampling_strategy="sequential")
    return trainer_class(**given, args=config)


def random_reward(completions: list[Any], **_: Any) -> list[float]:
    """A random reward for each response."""
    return [random.random() for _ in completions]


def main(spec: dict[str, Any], out: Path) -> None:
    """Train, and write the seconds, tokens, lengths and memory of the steps."""
    import torch
    from transformers import TrainerCallback

    began: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            began.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        built = trainer(spec, folder)
        built.add_callback(Clock())
        built.train()
    if spec["gpu"]:
        torch.cuda.synchronize()
    began.append(time.perf_counter())  # the end of the last step
    logged = [entry for entry in built.state.log_history if "loss" in entry]
    seen = [0, *(entry["num_tokens"] for entry in logged)]
    result = {
        "seconds": [b - a for a, b in zip(began, began[1:])][1:],  # noqa: B905, RUF007 (the peer's Python may be old)
        "tokens": [b - a for a, b in zip(seen, seen[1:])][1:],  # noqa: B905, RUF007
        "length": [entry["completions/mean_length"] for entry in logged[1:]] if spec["method"] == "grpo" else None,
        "peak": torch.cuda.max_memory_allocated() if spec["gpu"] else None,
        "versions": {name: version(name) for name in ("trl", "transformers", "torch")},
    }
    out.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
