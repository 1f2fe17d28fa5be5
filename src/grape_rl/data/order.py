"""The order of data rows over the steps of a run, and seeds derived from the run's seed.

Both are pure functions of the step, so that a resumed run has the rows and random numbers of an uninterrupted one.
"""

import hashlib

import torch


def rows_of_step(count: int, per_step: int, step: int, seed: int) -> list[int]:
    """Indices of a step's rows. Each epoch is a new permutation of all ``count`` rows, without replacement.

    >>> sorted(rows_of_step(4, 2, 0, seed=7) + rows_of_step(4, 2, 1, seed=7))
    [0, 1, 2, 3]
    """
    rows: list[int] = []
    while len(rows) < per_step:
        epoch, offset = divmod(step * per_step + len(rows), count)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(derive_seed(seed, epoch, "order")))
        rows += order[offset : offset + per_step - len(rows)].tolist()
    return rows


def derive_seed(seed: int, step: int, purpose: str) -> int:
    """A 63-bit seed for one purpose at one step, independent of the seeds for other steps and purposes."""
    digest = hashlib.blake2b(f"{seed} {step} {purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
