"""Matrix rate and memory bandwidth of the machine: ``python -m speed.machine SPEC OUT``; SPEC is ``Workload.spec``.

The measurement is a process of its own, so that its memory counts for neither side of the comparison.
"""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from grape_rl.estimate.flops import matmul_throughput


def machine_rates(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Operations per second on large matrices in the workload's precision, memory bandwidth, and the device."""
    device = torch.device("cuda" if spec["gpu"] else "cpu")
    return {
        "matrix_rate": matmul_throughput(device, torch.bfloat16 if spec["bf16"] else torch.float32),
        "bandwidth": bandwidth(device),
        "device": torch.cuda.get_device_name() if spec["gpu"] else "cpu",
    }


def bandwidth(device: torch.device, megabytes: int = 512, repeats: int = 5) -> float:
    """Memory bandwidth in bytes per second, from a large copy (one read, one write); the best of ``repeats``."""
    source = torch.ones(megabytes * 2**18, device=device)
    target = torch.empty_like(source)

    def seconds() -> float:
        began = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    seconds()
    return 2 * source.nbytes / min(seconds() for _ in range(repeats))


if __name__ == "__main__":
    specification = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(sys.argv[2]).write_text(json.dumps(machine_rates(specification)))
