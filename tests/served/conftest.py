"""What the server's tests share: a small critic from scratch, and one vLLM server of it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_critic import saved_critic
from vllm_server import Vllm


@pytest.fixture(scope="session")
def critic_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small critic, in a folder as transformers and vLLM load it."""
    return saved_critic(tmp_path_factory.mktemp("critic"))


@pytest.fixture(scope="session")
def started(critic_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    """The server of all tests, which ends with them however they end."""
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
    """The server, up: started again if the last test ended it."""
    if not started.up():
        started.kill()
        started.start()
    return started
