"""Run a command and record its time and peak memory: ``python launch.py OUT COMMAND ...``.

The launcher is a small process of its own. The peak memory of a process includes the memory before ``exec``: started
from a large process, every command would appear at least as large.
"""

import json
import os
import subprocess
import sys
import time


def main(out: str, command: list[str]) -> None:
    """Run the command, and write its wall-clock seconds, its peak memory in bytes and its exit code."""
    began = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    with open(out, "w", encoding="utf-8") as file:
        json.dump({"seconds": seconds, "peak": peak, "code": process.returncode}, file)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
