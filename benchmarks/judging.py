"""What judging costs beside the critic: wall and CPU seconds a verdict, and memory over many of them.

python benchmarks/judging.py [--verdicts 1000] [--concurrency 64] [--latency 0.2] [--many 100000] [--critic stub]

The server is a process of its own that waits and answers; --critic server counts memory with it, too, instead of with
the stub critic. --out FILE also writes the tables there, as Markdown.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from grape_rl.reward.critic.judge import Judge
from grape_rl.reward.critic.judging import CriticJob, Judging
from grape_rl.reward.critic.settings import parse_critics
from grape_rl.reward.grading import rubric_critics
from grape_rl.reward.rubric import Rubric
from grape_rl.types import Response

BATCH = 1000
"""Verdicts at a time, as a step of training asks for them."""

SAMPLED = 5000
"""Verdicts between two looks at the memory."""

JUDGE = Judge(criterion="Each step follows from the one before it.", labels={"no": 0.0, "partly": 0.5, "yes": 1.0})


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, latency: float) -> None:
    """Answer each request on a connection, ``latency`` seconds after it came."""
    said = json.dumps({"reasoning": "It follows.", "verdict": "yes", "confidence": 15})
    message = {"role": "assistant", "content": said}
    told = {
        "id": "x", "object": "chat.completion", "created": 0, "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 300, "completion_tokens": 30, "total_tokens": 330},
    }  # fmt: skip
    body = json.dumps(told).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    try:
        while True:
            lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
            await reader.readexactly(next(int(line.split(b":")[1]) for line in lines if b"content-length:" in line))
            await asyncio.sleep(latency)
            writer.write(head + body)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


def serve(latency: float, told: Connection) -> None:
    """Serve until the process is ended; the port is told first."""

    async def serving() -> None:
        server = await asyncio.start_server(lambda r, w: answer(r, w, latency), "127.0.0.1", 0, backlog=1024)
        told.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(serving())


def judging(critic: dict[str, Any], cache: Path | None) -> Judging:
    """What asks the critic, made as a run makes it."""
    item = {"id": "item", "judge": JUDGE.model_dump()}
    rubric = Rubric.model_validate({"schema": "grape-rubric/1", "categories": {"all": {"items": [item]}}})
    made = rubric_critics(rubric, parse_critics({"default": critic}, "critics"), cache)
    assert made
    return made


def jobs(first: int, count: int) -> list[CriticJob]:
    """Some of the verdicts to give, each of a response of its own of about 800 characters."""
    prompt = "A train leaves at noon, at 60 miles an hour. When has it gone 210 miles?"
    text = "It goes 60 miles in each hour, so that 210 miles take 210 / 60 = 3.5 hours. " * 10
    found = (Response(prompt, f"{text} ({n})", {}, 200, "stop") for n in range(first, first + count))
    return [CriticJob("item", JUDGE, response, 0.0) for response in found]


def speed(critic: dict[str, Any], verdicts: int) -> tuple[float, float]:
    """Wall seconds of all verdicts, and CPU seconds of this process for each, with its imports behind it."""
    of = judging(critic, None)
    of.verdicts(jobs(0, 10))
    asked = jobs(10, verdicts)
    began, used = time.perf_counter(), time.process_time()
    found = of.verdicts(asked)
    assert not any(each.missing for each in found), next(each for each in found if each.missing)
    return time.perf_counter() - began, (time.process_time() - used) / verdicts


def megabytes() -> float:
    """The memory that this process has at present."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def memory(critic: dict[str, Any], cached: bool, verdicts: int, told: Connection) -> None:
    """Tell the memory at each ``SAMPLED`` verdicts, the CPU seconds for each, and the size of the cache."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cache.sqlite"
        of = judging(critic, file if cached else None)
        seen, used = [(0, megabytes())], time.process_time()
        for first in range(0, verdicts, BATCH):
            of.verdicts(jobs(first, BATCH))
            if (first + BATCH) % SAMPLED == 0:
                seen.append((first + BATCH, megabytes()))
        size = sum(each.stat().st_size for each in Path(folder).iterdir()) / 2**20
        told.send((seen, (time.process_time() - used) / verdicts, size))


def slope(seen: Sequence[tuple[int, float]]) -> float:
    """Bytes that a verdict leaves, by least squares over the later half."""
    later = seen[len(seen) // 2 :]
    x, y = ([float(each[k]) for each in later] for k in (0, 1))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    up = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return 2**20 * up / sum((a - mean_x) ** 2 for a in x)


def apart(function: Any, *given: Any) -> tuple[Any, Any]:
    """What a function tells from a process of its own, and the process."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=function, args=(*given, there), daemon=True)
    process.start()
    there.close()
    return here.recv(), process


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verdicts", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--many", type=int, default=100_000)
    parser.add_argument("--critic", choices=("stub", "server"), default="stub")
    parser.add_argument("--out")
    of = parser.parse_args()

    def server(latency: float) -> dict[str, Any]:
        port, _ = apart(serve, latency)
        return {"base_url": f"http://127.0.0.1:{port}/v1", "model": "m", "concurrency": of.concurrency}

    lines = [f"{date.today()}, {platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"]
    lines += [
        f"load {os.getloadavg()[0]:.1f} as it began",
        "",
        f"    python benchmarks/judging.py {' '.join(sys.argv[1:])}",
        "",
    ]
    lines += [f"{of.verdicts} verdicts, {of.concurrency} at once, {of.latency:g} s each at the server:", ""]
    lines += ["| turn | wall s | of these waiting | CPU ms a verdict |", "|---|---|---|---|"]
    at = server(of.latency)
    for turn in range(of.turns):
        wall, used = speed(at, of.verdicts)
        waits = of.verdicts / of.concurrency * of.latency
        lines.append(f"| {turn + 1} | {wall:.2f} | {waits:.2f} | {1000 * used:.2f} |")
    if of.many:
        fast = {"stub": {"concurrency": of.concurrency}} if of.critic == "stub" else server(0.0)
        lines += ["", f"Memory over {of.many} verdicts of the {of.critic}, {BATCH} at a time:", ""]
        lines += ["| cache | MiB at the start | after 5,000 | half-way | at the end | bytes a verdict, later half | "
                  "CPU ms a verdict | cache MiB |", "|---|---|---|---|---|---|---|---|"]  # fmt: skip
        for cached in (False, True):
            (seen, used, size), _ = apart(memory, fast, cached, of.many)
            told = " | ".join(f"{seen[k][1]:.1f}" for k in (0, 1, len(seen) // 2, -1))
            cells = f"{slope(seen):.1f} | {1000 * used:.2f} | {size:.1f}"
            lines.append(f"| {'yes' if cached else 'no'} | {told} | {cells} |")
    print("\n".join(lines))
    if of.out:
        Path(of.out).write_text("# What judging costs\n\n" + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
