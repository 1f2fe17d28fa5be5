"""Checkpoints: the model in Hugging Face layout, and the trainer's state, so that a resumed run continues exactly."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from grape_rl.model.lora import ADAPTER_FOLDER, has_adapters, merge_adapters, save_adapter
from grape_rl.model.value_head import save_value

TRAINER_FILE = "trainer.pt"
VALUE_FOLDER = "value"


@dataclass(frozen=True)
class TrainingState:
    """State of a run that a checkpoint holds.

    The data order, the seeds and the learning rate are functions of the step, so they need not be saved.

    Attributes:
        model: the policy.
        tokenizer: its tokenizer.
        optimizer: its moments are saved.
        memory: numbers and tensors that the method passes from step to step.
        value: the value function; None without one.
    """

    model: Any
    tokenizer: Any
    optimizer: torch.optim.Optimizer
    memory: Mapping[str, Any] = field(default_factory=dict[str, Any])
    value: nn.Linear | PreTrainedModel | None = None


def save_checkpoint(folder: Path, step: int, state: TrainingState, keep: int) -> Path:
    """Write ``folder/step-N`` atomically, point the link ``folder/last`` to it, and keep the ``keep`` newest.

    A value function is saved in a folder of its own, where libraries that load the model do not look.

    For a model with LoRA adapters, the checkpoint is the merged model, which loads without peft and without the base
    model. Its folder ``adapter`` has the adapters, from which a run is resumed: merged weights cannot be separated
    exactly.
    """
    final = folder / f"step-{step}"
    temporary = folder / f".step-{step}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)

    # The model and its tokenizer.
    if has_adapters(state.model):
        merge_adapters(state.model).save_pretrained(temporary)
        save_adapter(state.model, temporary / ADAPTER_FOLDER)
    else:
        state.model.save_pretrained(temporary)
    state.tokenizer.save_pretrained(temporary)

    # The trainer's state.
    if state.value is not None:
        save_value(state.value, temporary / VALUE_FOLDER)
    memory = {name: value.detach() if isinstance(value, Tensor) else value for name, value in state.memory.items()}
    trainer = {"step": step, "optimizer": state.optimizer.state_dict(), "memory": memory}
    torch.save(trainer, temporary / TRAINER_FILE)

    # Publish, then remove old checkpoints.
    shutil.rmtree(final, ignore_errors=True)
    os.replace(temporary, final)
    link = folder / ".last.tmp"
    link.unlink(missing_ok=True)
    link.symlink_to(final.name)
    os.replace(link, folder / "last")
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    complete = [path for path in folder.glob("step-*") if (path / TRAINER_FILE).is_file()]
    return sorted(complete, key=lambda path: int(path.name.removeprefix("step-")))


def restore_trainer(checkpoint: Path, optimizer: torch.optim.Optimizer, memory: dict[str, Any] | None = None) -> int:
    """Load the state of the optimizer and ``memory`` in place, and return the number of steps done.

    A tensor that ``memory`` already contains, such as a parameter of a model, is overwritten in place. The model's
    weights are loaded separately, like those of any model.
    """
    state = torch.load(checkpoint / TRAINER_FILE, weights_only=True, map_location="cpu")
    optimizer.load_state_dict(state["optimizer"])
    memory = {} if memory is None else memory
    with torch.no_grad():
        for name, value in state["memory"].items():
            if isinstance(memory.get(name), Tensor):
                memory[name].copy_(value)
            else:
                memory[name] = value
    return int(state["step"])
