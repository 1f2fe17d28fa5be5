"""What the machine reaches at present: ``python -m speed.machine SPEC OUT``, with what ``rows.Row.spec`` says in SPEC.

In a process of its own, whose memory is no side's.
"""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from grape_rl.estimate.flops import matmul_throughput


def reached(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Operations a second on large matrices in the row's precision, bytes a second through memory, and the device."""
    device = torch.device("cuda" if spec["gpu"] else "cpu")
    return {
        "matrix_rate": matmul_throughput(device, torch.bfloat16 if spec["bf16"] else torch.float32),
        "bandwidth": bandwidth(device),
        "device": torch.cuda.get_device_name() if spec["gpu"] else "cpu",
    }


def bandwidth(device: torch.device, megabytes: int = 512, turns: int = 5) -> float:
    """Bytes a second that the machine's memory moves: a copy, read and written, the best of some turns."""
    source = torch.ones(megabytes * 2**18, device=device)
    target = torch.empty_like(source)

    def seconds() -> float:
        began = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    seconds()
    return 2 * source.nbytes / min(seconds() for _ in range(turns))


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(reached(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
