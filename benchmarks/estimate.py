"""How near ``grape train … --dry-run`` comes: each shape estimated, then run; both in a process of their own.

    python shared/bench/shapes.py NAME MODELS/NAME     (once for each of tiny, gsm and wide)
    python benchmarks/estimate.py [SHAPE ...] --models MODELS [--data gsm8k_train.jsonl] [--steps 5]

Prints for each shape the estimate, what was measured, and the ratios of the two. A step's time is the median of all
steps but the first; the peak is the process's own. Responses are random text, and end at the limit but for ``tiny``,
where one token in 81 is the end: the estimate takes them to be as long as they may become.
"""

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from grape_rl import train
from grape_rl.estimate.plan import estimated
from grape_rl.model.load import no_progress_bars
from grape_rl.validation import load_config

REWARD = (
    "import random\n\n\ndef f(prompts, completions, **columns):\n    return [random.random() for _ in completions]\n"
)

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": ("tiny", {"method": "grpo", "prompts_per_step": 4}),
    "wide": ("wide", {"method": "grpo", "prompts_per_step": 4}),
    "gsm": ("gsm", {"method": "grpo", "prompts_per_step": 4}),
    "wide-reference": ("wide", {"method": "grpo", "prompts_per_step": 4, "log_kl": True}),
    "wide-bf16": ("wide", {"method": "grpo", "prompts_per_step": 4, "precision": "bf16"}),
    "wide-ppo": ("wide", {"method": "ppo", "prompts_per_step": 4}),
    "sft": ("gsm", {"method": "sft", "prompts_per_step": 16, "data": {"max_length": 512}}),
    "sft-small": ("gsm", {"method": "sft", "prompts_per_step": 16, "tokens_per_microbatch": 1024}),
}
"""The model's shape, and the settings: those sampled are 256 tokens of prompt, and up to 64 of each of 8 responses."""


def settings(shape: str, models: Path, data: Path, folder: Path, steps: int) -> dict[str, Any]:
    """The run's settings, its data written into ``folder``."""
    name, given = SHAPES[shape]
    rows = folder / "rows.jsonl"
    if given["method"] == "sft":
        found = [json.loads(line) for line in data.open()][: 16 * given["prompts_per_step"]]
        told = [{"prompt": row["question"] + "\n", "completion": row["answer"]} for row in found]
    else:
        told = [{"prompt": text} for text in prompts(models / name, 256, 64)]
        (folder / "reward.py").write_text(REWARD)
        given = {"reward": {"function": f"{folder}/reward.py:f"}, "sampling": {"max_tokens": 64}} | given
    rows.write_text("".join(json.dumps(row) + "\n" for row in told))
    fixed = {
        "model": {"name": str(models / name)},
        "steps": steps,
        "output": str(folder / "run"),
        "checkpoint_every": 0,
    }
    return {"log_kl": False, "device": "cpu"} | given | fixed | {"data": {"source": str(rows), **given.get("data", {})}}


def prompts(model: Path, tokens: int, count: int) -> list[str]:
    """Random text of so many tokens."""
    tokenizer: Any = AutoTokenizer.from_pretrained(str(model))
    chance = random.Random(0)
    words = [word for i in range(10, min(len(tokenizer), 4000)) if (word := tokenizer.decode([i])).isascii()]
    texts = ("".join(chance.choices(words, k=2 * tokens)) for _ in range(count))
    return [tokenizer.decode(tokenizer(text).input_ids[:tokens]) for text in texts]


def child(config: dict[str, Any], what: str) -> dict[str, Any]:
    """The estimate of a run, or what it measured, in this process."""
    if what == "estimate":
        with no_progress_bars():
            found = estimated(load_config(config))
        return {"memory": dict(found.memory), "seconds": dict(found.seconds), "text": str(found)}
    run = train(config)
    times = [line["time"] for line in run.metrics]
    timed = [name for name in run.metrics[-1] if name.endswith("_seconds")]
    return {
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "seconds": statistics.median(after - before for before, after in pairwise(times)),
        "parts": {name: statistics.median(line[name] for line in run.metrics[1:]) for name in timed},
        "length": statistics.mean(line.get("length", 0.0) for line in run.metrics),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", choices=[[], *SHAPES], default=["tiny", "wide", "sft"])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("shared/data/gsm8k_train.jsonl"))
    parser.add_argument("--steps", type=int, default=5)
    of = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for shape in of.shapes:
        told, ran = (apart(shape, what, of) for what in ("estimate", "run"))
        memory, seconds = sum(told["memory"].values()), sum(told["seconds"].values())
        parts = ", ".join(f"{name.removesuffix('_seconds')} {value:.3g}" for name, value in ran["parts"].items())
        print(f"\n{shape}: {told['text']}")
        print(f"  measured: {ran['memory'] / 1e9:.2f} GB, {ran['seconds']:.3g} s ({parts}), length {ran['length']:.0f}")
        ratios = f"memory {memory / ran['memory']:.2f}, time {seconds / ran['seconds']:.2f}"
        print(f"  estimate / measured: {ratios}", flush=True)


def apart(shape: str, what: str, of: argparse.Namespace) -> dict[str, Any]:
    """What ``child`` finds in a process of its own, whose peak of memory is its own too."""
    code = f"import json, sys, estimate; print(json.dumps(estimate.child(json.loads(sys.argv[1]), {what!r})))"
    with tempfile.TemporaryDirectory() as folder:
        config = settings(shape, of.models.resolve(), of.data, Path(folder), of.steps)
        command = [sys.executable, "-c", code, json.dumps(config)]
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{shape}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
