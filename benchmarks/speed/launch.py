"""Runs a command and says how long it took and how much memory it held: ``python launch.py OUT COMMAND ...``.

In a small process of its own: the system counts what a process held before it became another program, so that no
command started from a large process would be seen to hold less than that.
"""

import json
import os
import subprocess
import sys
import time


def main(out: str, command: list[str]) -> None:
    """Run it to its end, and write its wall seconds, its peak of memory in bytes and its exit code."""
    began = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    with open(out, "w", encoding="utf-8") as file:
        json.dump({"seconds": seconds, "peak": peak, "code": process.returncode}, file)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
