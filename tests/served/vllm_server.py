"""A vLLM server on the CPU for tests: start, health, counters, kill, and restart on the same port."""

import ctypes
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from grape_rl.reward.critic.endpoint import Client

NAME = "critic"
BLOCK = 32
"""Tokens of a block of the prefix cache, the minimum of vLLM on a CPU. Only whole blocks are reused."""

WHOLE = 32768
"""Tokens per step, enough for all prompts at once. On a CPU, vLLM 0.32 dies of a prompt with a seed that it reads in
several parts at a temperature above 0 ("CPU Generator does not use offset")."""


class Vllm:
    """A server of the model in ``folder`` under the name ``critic``, with its output in ``log``."""

    def __init__(self, python: Path, folder: Path, log: Path) -> None:
        self.python, self.folder, self.log = python, folder, log
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.root = f"http://127.0.0.1:{self.port}"
        self.base_url = f"{self.root}/v1"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, limit: float = 300.0) -> float:
        """Start it and wait until it answers; the seconds that took.

        Raises:
            RuntimeError: it died, or was not up within ``limit`` seconds; with the end of its log.
        """
        begun = time.monotonic()
        hidden = {"PYTHONPATH", "VIRTUAL_ENV"}  # it has an environment of its own
        own = {name: value for name, value in os.environ.items() if name not in hidden}
        own |= {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
        words = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(self.folder), "--served-model-name", NAME,
                 "--dtype", "float32", "--host", "127.0.0.1", "--port", str(self.port), "--enforce-eager",
                 "--block-size", str(BLOCK), "--max-num-batched-tokens", str(WHOLE)]  # fmt: skip
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(self.python), *words],
                stdout=log, stderr=log, env=own, start_new_session=True, preexec_fn=_dies_with_its_parent,
            )  # fmt: skip
        while not self.up():
            if self._process.poll() is not None:
                raise RuntimeError(f"the vLLM server died as it started:\n{self.tail()}")
            if time.monotonic() - begun > limit:
                self.kill()
                raise RuntimeError(f"the vLLM server was not up within {limit:g} s:\n{self.tail()}")
            time.sleep(0.25)
        return time.monotonic() - begun

    def kill(self) -> None:
        """End it and all its children at once, as a machine that goes away does."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def up(self) -> bool:
        """Whether it answers."""
        try:
            self._get("/health")
            return True
        except OSError:
            return False

    def count(self, metric: str) -> float:
        """One of its counters, summed over its labels: ``prompt_tokens``, ``prefix_cache_hits`` …"""
        told = [line for line in self._get("/metrics").splitlines() if line.startswith(f"vllm:{metric}_total{{")]
        assert told, f"the server counts no {metric}"
        return sum(float(line.rsplit(" ", 1)[1]) for line in told)

    def killed_by_a_call(self, number: int, patch: pytest.MonkeyPatch, counted: Callable[[], bool]) -> None:
        """Kill it as a client begins its call of that number, of those for which ``counted`` holds."""
        whole, calls = Client.reply, []

        async def reply(client: Client, *asked: Any) -> Any:
            if counted():
                calls.append(asked)
                if len(calls) == number:
                    self.kill()
            return await whole(client, *asked)

        patch.setattr(Client, "reply", reply)

    def tail(self, lines: int = 30) -> str:
        """The end of what it said."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

    def _get(self, path: str) -> str:
        try:
            with urllib.request.urlopen(f"{self.root}{path}", timeout=5) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                raise OSError(f"{path}: {error.code}") from None


def _dies_with_its_parent() -> None:
    """Let Linux terminate this process, which then terminates its own children, when its parent dies."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
