"""What a GRPO step costs as one thing grows: prompts, groups, responses, the vocabulary or the batch.

    python benchmarks/growth.py run    [--only NAMES] [--turns 3] [--steps 5]
    python benchmarks/growth.py report

From one small model and one step, each dimension is doubled several times while the others stay. Every point is a
process of its own: seconds of sampling and of the update (the least of the turns, each the median of its steps but the
first), and the most memory that it came to hold beside the libraries. The head's memory is measured alone. What is
measured already is not run again. ``report`` writes docs/benchmarks/growth.md and its picture.

--folder   where the models are made (runs/speed)
--results  where the points go, one line each (benchmarks/results/growth.jsonl)
--small    two sizes of each, of two steps, to see that it works: the results mean nothing then
"""

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grape_rl.cli.arguments import listed, parsed_arguments
from grape_rl.schema import nearest
from measured import append, records, where
from shapes import letters, model
from speed import data
from speed.rows import Row
from speed.turns import GROWN, side, written

HERE = Path(__file__).resolve().parent
SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
BASE = {"prompt": 256, "group": 8, "completion": 32, "vocabulary": 8192, "batch": 4}
"""Tokens of a prompt, responses to each, their tokens, tokens of the vocabulary, prompts a step."""
SIZES: Mapping[str, tuple[int, ...]] = {
    "prompt": (64, 128, 256, 512, 1024),
    "group": (2, 4, 8, 16, 32),
    "completion": (8, 16, 32, 64, 128),
    "vocabulary": (2048, 4096, 8192, 16_384, 32_768),
    "batch": (1, 2, 4, 8, 16),
    "head": (1024, 2048, 4096, 8192, 16_384),
}
"""The sizes of each dimension; of the head alone, how many tokens go through it."""
HEAD = {**SHAPE, "vocab_size": 32_768}


def main(arguments: Sequence[str]) -> None:
    """Run what the command line asks for.

    Raises:
        ValueError: an unknown command, flag or dimension.
    """
    if not arguments or "--help" in arguments:
        print(__doc__)
        return
    words, own, _ = parsed_arguments(arguments, ["small"], known=["only", "turns", "steps", "folder", "results"])
    if words not in (["run"], ["report"]):
        raise ValueError(f"name one of run and report, not {' '.join(words) or 'none'}")
    small, results = bool(own.get("small")), Path(str(own.get("results", HERE / "results" / "growth.jsonl")))
    if words == ["report"]:
        from speed.growth_page import report  # matplotlib, which nothing else needs

        report(records(results), HERE.parent / "docs" / "benchmarks" / "growth.md")
        return
    if small and "results" not in own:
        raise ValueError("--small measures nothing: name a file for it with --results")
    names = listed(own.get("only", ",".join(SIZES)))
    for name in names:
        if name not in SIZES:
            raise ValueError(f"unknown dimension {name!r}{nearest(name, SIZES)}; there are {', '.join(SIZES)}")
    steps = 2 if small else int(own.get("steps", 5))
    if steps < 2:
        raise ValueError(f"--steps {steps}: the first step does not count, so at least 2 are needed")
    folder = Path(str(own.get("folder", "runs/speed")))
    for turn in range(1 if small else int(own.get("turns", 3))):
        for name in names:
            for size in SIZES[name][:2] if small else SIZES[name]:
                measured_point(name, size, turn, steps, folder, results)


def at(name: str, size: int) -> dict[str, int]:
    """The sizes of the point where ``name`` has this size, and all others theirs of the base."""
    return {"head": size} if name == "head" else BASE | {name: size}


def measured_point(name: str, size: int, turn: int, steps: int, folder: Path, results: Path) -> None:
    """Measure one point and write it down, unless it is there. The base is a point of every dimension."""
    point = at(name, size)
    if any(record["point"] == point and record["turn"] == turn for record in records(results)):
        return
    with tempfile.TemporaryDirectory() as place:
        spec = {"shape": HEAD, "tokens": size} if name == "head" else step_spec(point, steps, folder, Path(place))
        found = side(GROWN, spec, Path(place))
    append(results, {"point": point, "turn": turn, "steps": steps, **found, "where": where()})
    print(name, size, {key: value for key, value in found.items() if key != "peak"}, flush=True)


def step_spec(point: Mapping[str, int], steps: int, folder: Path, place: Path) -> dict[str, Any]:
    """What ``speed.grown`` is told of a point, with its model and its prompts written."""
    tokenizer, made = letters(), folder / f"growth-{point['vocabulary']}"
    if not (made / "tokenizer.json").is_file():
        model({**SHAPE, "vocab_size": point["vocabulary"]}).save_pretrained(made)
        tokenizer.save_pretrained(made)
    rows = data.prompts(tokenizer, point["prompt"], point["batch"] * steps)
    row = Row("growth", "grpo", "growth", point["batch"], point["group"], point["prompt"], point["completion"])
    return row.spec(made, written(place / "prompts.jsonl", rows), steps)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, RuntimeError) as error:
        sys.exit(f"{error}")
