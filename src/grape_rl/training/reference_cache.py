"""Log-probs of data rows under a reference that stays as it is: computed once, kept in files, read ever after."""

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from grape_rl.model.logprobs import row_lengths
from grape_rl.rollout.source import drawn_rows
from grape_rl.types import Sequences

SAVED_EVERY = 60.0
"""Seconds after which what is new is written: the most that a kill can cost."""


class ReferenceLogprobCache:
    """Sequences → the log-probs that are kept of them, in the files of a folder.

    A row is known by its tokens. A file is written whole or not at all, says of which reference it is, and is named by
    a digest of all that is in it; so several runs may share a folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._of = folder, ""
        self._known: dict[bytes, Tensor] = {}
        self._new: list[bytes] = []

    def read(self, of: str) -> list[str]:
        """Read what is there of the reference that ``of`` names; the names of files that are of another, or broken."""
        self._of = of
        unread: list[str] = []
        for path in sorted(self.folder.glob("*.safetensors")):
            if (found := _read(path, of)) is None:
                unread.append(path.name)
            else:
                self._known |= found
        return unread

    def __call__(self, sequences: Sequences) -> Float[Tensor, "b t"]:
        """The log-probs of the sequences, each of which must be known."""
        rows = [self._known[key] for key in _keys(sequences)]
        out = torch.zeros(sequences.mask.shape, dtype=rows[0].dtype)
        for i, row in enumerate(rows):
            out[i, : len(row)] = row
        return out

    def lacks(self, sequences: Sequences) -> bool:
        """Whether the log-probs of any of the sequences are not known."""
        return any(key not in self._known for key in _keys(sequences))

    def add(self, sequences: Sequences, logp: Float[Tensor, "b t"]) -> None:
        """Keep the log-probs of those of the sequences that are not known yet."""
        for key, row, length in zip(_keys(sequences), logp, row_lengths(sequences.mask).tolist(), strict=True):
            if key not in self._known:
                self._known[key] = row[:length].clone()
                self._new.append(key)

    def save(self) -> None:
        """Write what is new into a file of its own."""
        if not self._new:
            return
        rows = [self._known[key] for key in self._new]
        fields = {
            "keys": torch.tensor([list(key) for key in self._new], dtype=torch.uint8),
            "lengths": torch.tensor([len(row) for row in rows]),
            "logp": torch.cat(rows),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{_digest(self._of, fields)}.safetensors"
        aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        save_file(fields, aside, {"of": self._of})
        os.replace(aside, path)
        self._new = []


def fill(
    kept: ReferenceLogprobCache, batches: Iterable[Sequences], reference: Callable[[Sequences], Float[Tensor, "b t"]]
) -> int:
    """Ask the reference for the log-probs of all batches that are not known whole; how many batches these were.

    What is known of a row stays as it is, so that a run which goes on reads the bits that it read before.
    """
    count, saved = 0, time.monotonic()
    try:
        for sequences in batches:
            if kept.lacks(sequences):
                kept.add(sequences, reference(sequences))
                count += 1
            if time.monotonic() - saved > SAVED_EVERY:
                kept.save()
                saved = time.monotonic()
    finally:
        kept.save()
    return count


def first_batches(count: int, per_step: int, steps: int, seed: int) -> Iterator[list[int]]:
    """The rows of those steps in which a row comes up for the first time, of a run of so many steps.

    A row's log-probs are those of the first step that it is in. So they depend on the data, the seed and the number of
    rows a step alone, whenever they are computed, and are at that step the very bits of the policy's own.

    >>> [len(rows) for rows in first_batches(count=5, per_step=2, steps=100, seed=0)]
    [2, 2, 2]
    """
    for step in range(min(steps, -(-count // per_step))):
        yield drawn_rows(count, per_step, step, seed)


def _keys(sequences: Sequences) -> Sequence[bytes]:
    """What each row is known by: a digest of its prompt, its tokens and which of them are chosen."""
    prompts = [prompt.numpy().tobytes() for prompt in sequences.prompts]
    keys: list[bytes] = []
    for tokens, mask, group, length in zip(
        sequences.tokens, sequences.mask, sequences.group.tolist(), row_lengths(sequences.mask).tolist(), strict=True
    ):
        found = hashlib.blake2b(f"{len(prompts[group])} {length} ".encode(), digest_size=16)
        for part in (prompts[group], tokens[:length].numpy().tobytes(), mask[:length].numpy().tobytes()):
            found.update(part)
        keys.append(found.digest())
    return keys


def _read(path: Path, of: str) -> dict[bytes, Tensor] | None:
    """A file's log-probs by their rows' keys; None where it is of another reference, or not what was written."""
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("of") != of:
                return None
            fields = {name: file.get_tensor(name) for name in ("keys", "lengths", "logp")}
    except (SafetensorError, OSError):
        return None
    if path.stem != _digest(of, fields):
        return None
    keys = [bytes(key) for key in fields["keys"].tolist()]
    return dict(zip(keys, fields["logp"].split(fields["lengths"].tolist()), strict=True))


def _digest(of: str, fields: dict[str, Tensor]) -> str:
    found = hashlib.blake2b(of.encode(), digest_size=16)
    for name in ("keys", "lengths", "logp"):
        found.update(fields[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
