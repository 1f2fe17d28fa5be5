"""The reference cache: log-probs of data rows under a fixed reference model, computed once and kept in files."""

import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from grape_rl.data.order import rows_of_step
from grape_rl.model.logprobs import row_lengths
from grape_rl.model.reference_logprobs import LogprobFunction
from grape_rl.types import Sequences

SAVED_EVERY = 60.0
"""Seconds between saves, so the most work that a kill can lose."""


class ReferenceLogprobCache:
    """A function from sequences to their cached log-probs, with files in a folder.

    Rows are identified by a digest of their tokens. A file is written atomically, contains the name of its reference,
    and is named by a digest of its content. So several runs can share a folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._reference = folder, ""
        self._logp: dict[bytes, Tensor] = {}
        self._unsaved: list[bytes] = []

    def read(self, reference: str) -> list[str]:
        """Load the files of the named reference. Returns the names of files of other references or broken files."""
        self._reference = reference
        skipped: list[str] = []
        for path in sorted(self.folder.glob("*.safetensors")):
            if (rows := _read(path, reference)) is None:
                skipped.append(path.name)
            else:
                self._logp |= rows
        return skipped

    def __call__(self, sequences: Sequences) -> Float[Tensor, "b t"]:
        """The cached log-probs of the sequences. All must be in the cache."""
        rows = [self._logp[key] for key in _keys(sequences)]
        logp = torch.zeros(sequences.mask.shape, dtype=rows[0].dtype)
        for i, row in enumerate(rows):
            logp[i, : len(row)] = row
        return logp

    def lacks(self, sequences: Sequences) -> bool:
        """True if the log-probs of any of the sequences are not in the cache."""
        return any(key not in self._logp for key in _keys(sequences))

    def add(self, sequences: Sequences, logp: Float[Tensor, "b t"]) -> None:
        """Add the log-probs of the sequences that are not in the cache yet."""
        for key, row, length in zip(_keys(sequences), logp, row_lengths(sequences.mask).tolist(), strict=True):
            if key not in self._logp:
                self._logp[key] = row[:length].clone()
                self._unsaved.append(key)

    def save(self) -> None:
        """Write the rows added since the last save into a new file."""
        if not self._unsaved:
            return
        rows = [self._logp[key] for key in self._unsaved]
        fields = {
            "keys": torch.tensor([list(key) for key in self._unsaved], dtype=torch.uint8),
            "lengths": torch.tensor([len(row) for row in rows]),
            "logp": torch.cat(rows),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{_digest(self._reference, fields)}.safetensors"
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        save_file(fields, temporary, {"of": self._reference})
        os.replace(temporary, path)
        self._unsaved = []


def fill_cache(cache: ReferenceLogprobCache, batches: Iterable[Sequences], reference: LogprobFunction) -> int:
    """Compute the log-probs of all batches that are not completely in the cache. Returns the number of these batches.

    Rows in the cache are never recomputed, so that a resumed run reads the bits that it read before.
    """
    count, saved = 0, time.monotonic()
    try:
        for sequences in batches:
            if cache.lacks(sequences):
                cache.add(sequences, reference(sequences))
                count += 1
            if time.monotonic() - saved > SAVED_EVERY:
                cache.save()
                saved = time.monotonic()
    finally:
        cache.save()
    return count


def first_epoch_batches(count: int, per_step: int, steps: int, seed: int) -> Iterator[list[int]]:
    """The rows of those steps of a run in which a row comes up for the first time.

    The log-probs of a row are computed in the batch of the first step that has the row. So they depend only on the
    data, the seed and the rows per step, and at that step they equal the policy's own log-probs bit by bit.

    >>> [len(rows) for rows in first_epoch_batches(count=5, per_step=2, steps=100, seed=0)]
    [2, 2, 2]
    """
    for step in range(min(steps, -(-count // per_step))):
        yield rows_of_step(count, per_step, step, seed)


def _keys(sequences: Sequences) -> Sequence[bytes]:
    """A key for each row: a digest of its prompt, its tokens and its mask."""
    prompts = [prompt.numpy().tobytes() for prompt in sequences.prompts]
    keys: list[bytes] = []
    for tokens, mask, group, length in zip(
        sequences.tokens, sequences.mask, sequences.group.tolist(), row_lengths(sequences.mask).tolist(), strict=True
    ):
        digest = hashlib.blake2b(f"{len(prompts[group])} {length} ".encode(), digest_size=16)
        for part in (prompts[group], tokens[:length].numpy().tobytes(), mask[:length].numpy().tobytes()):
            digest.update(part)
        keys.append(digest.digest())
    return keys


def _read(path: Path, reference: str) -> dict[bytes, Tensor] | None:
    """A file's log-probs by the keys of their rows; None for a file of another reference, or a broken file."""
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("of") != reference:
                return None
            fields = {name: file.get_tensor(name) for name in ("keys", "lengths", "logp")}
    except (SafetensorError, OSError):
        return None
    if path.stem != _digest(reference, fields):
        return None
    keys = [bytes(key) for key in fields["keys"].tolist()]
    return dict(zip(keys, fields["logp"].split(fields["lengths"].tolist()), strict=True))


def _digest(reference: str, fields: dict[str, Tensor]) -> str:
    digest = hashlib.blake2b(reference.encode(), digest_size=16)
    for name in ("keys", "lengths", "logp"):
        digest.update(fields[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
