"""Checkpoints: the model in Hugging Face layout, and what the trainer needs to go on as if it never stopped."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from grape_rl.model.lora import ADAPTER_FOLDER as ADAPTER
from grape_rl.model.lora import has_adapters, merge_adapters, save_adapter
from grape_rl.model.value_head import save_value

TRAINER = "trainer.pt"
VALUE = "value"


def save_checkpoint(
    folder: Path,
    step: int,
    model: Any,
    tokenizer: Any,
    optimizer: torch.optim.Optimizer,
    keep: int,
    memory: Mapping[str, Any] | None = None,
    value: nn.Linear | PreTrainedModel | None = None,
) -> Path:
    """Write ``folder/step-N`` whole or not at all, point ``folder/last`` at it, and keep the ``keep`` newest.

    A source's rows and randomness are functions of the step, and so is the learning rate: the step, the weights, the
    optimizer's moments and what the method itself leaves from step to step (``memory``) are all there is to keep. A
    value function is no part of the model: it lies in a folder of its own, where those who load the model do not look.

    Of an adapted model it is the merged weights, so that what lies there is a whole model for whoever loads it, with
    or without peft, and wherever the one it started from may be by then. The adapters lie beside them, in
    ``adapter``: a run goes on from those, since a sum does not give back its parts to the bit.
    """
    final = folder / f"step-{step}"
    aside = folder / f".step-{step}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    if has_adapters(model):
        merge_adapters(model).save_pretrained(aside)
        save_adapter(model, aside / ADAPTER)
    else:
        model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    if value is not None:
        save_value(value, aside / VALUE)
    kept = {name: each.detach() if isinstance(each, Tensor) else each for name, each in (memory or {}).items()}
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


def restored_step(checkpoint: Path, optimizer: torch.optim.Optimizer, memory: dict[str, Any] | None = None) -> int:
    """The step to go on from, after giving back their state to the optimizer and the ``memory``.

    A tensor that ``memory`` has already (a parameter of a model, say) gets its values in place. The weights load like
    any model's.
    """
    state = torch.load(checkpoint / TRAINER, weights_only=True, map_location="cpu")
    optimizer.load_state_dict(state["optimizer"])
    memory = {} if memory is None else memory
    with torch.no_grad():
        for name, kept in state["memory"].items():
            if isinstance(memory.get(name), Tensor):
                memory[name].copy_(kept)
            else:
                memory[name] = kept
    return int(state["step"])
