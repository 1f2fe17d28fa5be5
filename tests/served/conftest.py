"""Fixtures of the server's tests: a small critic with random weights, and one vLLM server of it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_critic import saved_critic
from vllm_server import Vllm


@pytest.fixture(scope="session")
def critic_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small critic, which transformers and vLLM can load."""
    return saved_critic(tmp_path_factory.mktemp("critic"))


@pytest.fixture(scope="session")
def started(critic_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    """One server for all tests, killed when they end."""
    python = os.environ.get("VLLM_PYTHON", "")
    if not Path(python).is_file():
        pytest.exit("these tests need a vLLM server: 'make test-server' installs one, and runs them", returncode=1)
    server = Vllm(Path(python), critic_folder, tmp_path_factory.mktemp("vllm") / "server.log")
    try:
        seconds = server.start()
        print(f"vLLM was up in {seconds:.0f} s")
        yield server
    finally:
        server.kill()


@pytest.fixture
def vllm(started: Vllm) -> Vllm:
    """The running server, started again if the last test killed it."""
    if not started.up():
        started.kill()
        started.start()
    return started
