"""The commands of the README and of the pages of docs, run as written there, in order, in one folder."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest

from grape_rl.cli import main

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(sh|sh needs-download|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


README = ("README.md",)
DOCS = ("docs/training.md", "docs/reward_models.md", "docs/gsm8k.md", "docs/rubrics.md")
"""Pages with commands, in an order in which each page has the files that it needs."""
SMALL = "--config demo --data.held_out_rows 6 --evaluation.samples 1 --prompts_per_step 16"
"""The built-in demos take fewer prompts here; everything else is as on the page."""


def blocks_of(pages: tuple[str, ...]) -> list[tuple[str, str]]:
    return [block for page in pages for block in BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))]


def test_the_pages_have_commands() -> None:
    kinds = [kind for kind, _ in blocks_of(README + DOCS)]
    assert kinds.count("sh") >= 5 and kinds.count("sh needs-download") == 2 and kinds.count("python") == 2
    others = [page for page in (ROOT / "docs").rglob("*.md") if str(page.relative_to(ROOT)) not in DOCS]
    assert not [page for page in others if page.parent.name != "benchmarks" and BLOCK.search(page.read_text())]


@pytest.mark.parametrize(
    ("pages", "folders"),
    [
        (README, ("runs/capitals", "runs/python", "runs/demo/grpo", "runs/demo/rejection_sampling", "runs/demo/ppo")),
        (DOCS, ("runs/demo/trpo", "runs/demo/kto", "runs/demo/grape", "runs/demo/online_dpo", "runs/by_model")),
    ],
)
def test_the_commands_of_the_pages(
    pages: tuple[str, ...], folders: tuple[str, ...], tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    for kind, text in blocks_of(pages):
        if text == "make demo\nmake test\n":  # .ci/run calls these; here, that they are targets
            targets = (ROOT / "Makefile").read_text()
            assert all(f"\n{line.split()[1]}: " in targets for line in text.splitlines())
        elif kind == "python":
            run([sys.executable, "-c", text], tmp_path)
        else:
            # What needs a download is resolved in full, and stops before it starts.
            script = dry(text) if "needs-download" in kind else text.replace("--config demo", SMALL)
            run_script(script, tmp_path)
    for folder in folders:
        assert (tmp_path / folder / "checkpoints/last/model.safetensors").is_file(), folder
    if pages == README:
        lines = (tmp_path / "runs/capitals/metrics.jsonl").read_text().splitlines()
        assert len(lines) == 5, "three steps, and two more after the resume"


def dry(script: str) -> str:
    joined = script.replace("\\\n", " ")
    return "".join(f"{line} --dry-run --device cpu\n" for line in joined.splitlines())


def run_script(script: str, folder: Path) -> None:
    """Run a script in a shell, but its training commands in this process, where torch is imported already."""
    lines = script.replace("\\\n", " ").splitlines(keepends=True)
    for trains, part in groupby(lines, lambda line: line.startswith("grape train ")):
        if trains:
            for line in part:
                assert main(shlex.split(line)[1:]) == 0, line
        else:
            run(["bash", "-euo", "pipefail", "-c", "".join(part)], folder)


def run(command: list[str], folder: Path) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
