"""Overhead of judging without the critic's own time: wall-clock and CPU seconds per verdict, and memory over many.

    python benchmarks/judging.py [--verdicts 1000] [--concurrency 64] [--latency 0.2] [--many 100000] [--critic stub]

A simulated server in a process of its own replies after --latency seconds. The memory is measured with the stub critic,
or with --critic server with the simulated server. --out FILE also writes the tables to a Markdown file.
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
"""Verdicts per request, as in a training step."""

INTERVAL = 5000
"""Verdicts between two measurements of memory."""

JUDGE = Judge(criterion="Each step follows from the one before it.", labels={"no": 0.0, "partly": 0.5, "yes": 1.0})


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, latency: float) -> None:
    """Reply to each request on a connection after ``latency`` seconds."""
    reply = json.dumps({"reasoning": "It follows.", "verdict": "yes", "confidence": 15})
    message = {"role": "assistant", "content": reply}
    completion = {
        "id": "x", "object": "chat.completion", "created": 0, "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 300, "completion_tokens": 30, "total_tokens": 330},
    }  # fmt: skip
    body = json.dumps(completion).encode()
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


def serve(latency: float, connection: Connection) -> None:
    """Serve until the process is terminated; sends the port first."""

    async def serving() -> None:
        server = await asyncio.start_server(lambda r, w: answer(r, w, latency), "127.0.0.1", 0, backlog=1024)
        connection.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(serving())


def judging(critic: dict[str, Any], cache: Path | None) -> Judging:
    """Client of the critic, built as in a run."""
    item = {"id": "item", "judge": JUDGE.model_dump()}
    rubric = Rubric.model_validate({"schema": "grape-rubric/1", "categories": {"all": {"items": [item]}}})
    client = rubric_critics(rubric, parse_critics({"default": critic}, "critics"), cache)
    assert client
    return client


def jobs(first: int, count: int) -> list[CriticJob]:
    """Requests for verdicts, each on a different response of about 800 characters."""
    prompt = "A train leaves at noon, at 60 miles an hour. When has it gone 210 miles?"
    text = "It goes 60 miles in each hour, so that 210 miles take 210 / 60 = 3.5 hours. " * 10
    responses = (Response(prompt, f"{text} ({n})", {}, 200, "stop") for n in range(first, first + count))
    return [CriticJob("item", JUDGE, response, 0.0) for response in responses]


def speed(critic: dict[str, Any], verdicts: int) -> tuple[float, float]:
    """Wall-clock seconds of all verdicts, and CPU seconds of this process per verdict, without the imports."""
    client = judging(critic, None)
    client.verdicts(jobs(0, 10))
    requests = jobs(10, verdicts)
    began, used = time.perf_counter(), time.process_time()
    results = client.verdicts(requests)
    assert not any(result.missing for result in results), next(result for result in results if result.missing)
    return time.perf_counter() - began, (time.process_time() - used) / verdicts


def megabytes() -> float:
    """Resident memory of this process, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def memory(critic: dict[str, Any], cached: bool, verdicts: int, connection: Connection) -> None:
    """Send the memory after every ``INTERVAL`` verdicts, the CPU seconds per verdict, and the size of the cache."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cache.sqlite"
        client = judging(critic, file if cached else None)
        samples, used = [(0, megabytes())], time.process_time()
        for first in range(0, verdicts, BATCH):
            client.verdicts(jobs(first, BATCH))
            if (first + BATCH) % INTERVAL == 0:
                samples.append((first + BATCH, megabytes()))
        size = sum(path.stat().st_size for path in Path(folder).iterdir()) / 2**20
        connection.send((samples, (time.process_time() - used) / verdicts, size))


def slope(samples: Sequence[tuple[int, float]]) -> float:
    """Growth of memory in bytes per verdict, by least squares over the second half."""
    later = samples[len(samples) // 2 :]
    x, y = ([float(sample[k]) for sample in later] for k in (0, 1))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return 2**20 * covariance / sum((a - mean_x) ** 2 for a in x)


def in_process(function: Any, *given: Any) -> tuple[Any, Any]:
    """The first message of a function that runs in a process of its own, and the process."""
    receiver, sender = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=function, args=(*given, sender), daemon=True)
    process.start()
    sender.close()
    return receiver.recv(), process


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
    given = parser.parse_args()

    def server(latency: float) -> dict[str, Any]:
        port, _ = in_process(serve, latency)
        return {"base_url": f"http://127.0.0.1:{port}/v1", "model": "m", "concurrency": given.concurrency}

    lines = [f"{date.today()}, {platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"]
    lines += [
        f"load {os.getloadavg()[0]:.1f} at the start",
        "",
        f"    python benchmarks/judging.py {' '.join(sys.argv[1:])}",
        "",
    ]
    verdicts, concurrency, latency = given.verdicts, given.concurrency, given.latency
    lines += [f"{verdicts} verdicts, {concurrency} concurrent requests, {latency:g} s latency of the server:", ""]
    lines += ["| turn | wall-clock s | waiting for the server, s | CPU ms per verdict |", "|---|---|---|---|"]
    critic = server(latency)
    for turn in range(given.turns):
        wall, used = speed(critic, verdicts)
        waiting = verdicts / concurrency * latency
        lines.append(f"| {turn + 1} | {wall:.2f} | {waiting:.2f} | {1000 * used:.2f} |")
    if given.many:
        fast = {"stub": {"concurrency": concurrency}} if given.critic == "stub" else server(0.0)
        lines += ["", f"Memory over {given.many} verdicts of the {given.critic}, {BATCH} per request:", ""]
        lines += ["| cache | MiB at the start | after 5,000 | half-way | at the end | bytes per verdict, second half | "
                  "CPU ms per verdict | cache MiB |", "|---|---|---|---|---|---|---|---|"]  # fmt: skip
        for cached in (False, True):
            (samples, used, size), _ = in_process(memory, fast, cached, given.many)
            mebibytes = " | ".join(f"{samples[k][1]:.1f}" for k in (0, 1, len(samples) // 2, -1))
            cells = f"{slope(samples):.1f} | {1000 * used:.2f} | {size:.1f}"
            lines.append(f"| {'yes' if cached else 'no'} | {mebibytes} | {cells} |")
    print("\n".join(lines))
    if given.out:
        Path(given.out).write_text("# Overhead of judging\n\n" + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
