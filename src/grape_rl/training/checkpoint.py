"""Checkpoints: the model in Hugging Face layout, and what the trainer needs to go on as if it never stopped."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TRAINER = "trainer.pt"


def save_checkpoint(
    folder: Path,
    step: int,
    model: Any,
    tokenizer: Any,
    optimizer: torch.optim.Optimizer,
    keep: int,
    memory: Mapping[str, Tensor],
) -> Path:
    """Write ``folder/step-N`` whole or not at all, point ``folder/last`` at it, and keep the ``keep`` newest.

    A source's rows and randomness are functions of the step, and so is the learning rate: the step, the weights, the
    optimizer's moments, and what the method itself remembers from step to step (``memory``) are all there is to keep.
    """
    final = folder / f"step-{step}"
    aside = folder / f".step-{step}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    kept = {name: tensor.detach() for name, tensor in memory.items()}
    torch.save({"step": step, "optimizer": optimizer.state_dict(), "memory": kept}, aside / TRAINER)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(aside, final)
    link = folder / ".last.tmp"
    link.unlink(missing_ok=True)
    link.symlink_to(final.name)
    os.replace(link, folder / "last")
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    found = [path for path in folder.glob("step-*") if (path / TRAINER).is_file()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def restored_step(checkpoint: Path, optimizer: torch.optim.Optimizer, memory: dict[str, Tensor]) -> int:
    """The step to go on from, after giving back their state to the optimizer and the ``memory``.

    A tensor that ``memory`` has already (a parameter of a model, say) gets its values in place. The weights load like
    any model's.
    """
    state = torch.load(checkpoint / TRAINER, weights_only=True, map_location="cpu")
    optimizer.load_state_dict(state["optimizer"])
    with torch.no_grad():
        for name, tensor in state["memory"].items():
            memory.setdefault(name, tensor).copy_(tensor)
    return int(state["step"])
