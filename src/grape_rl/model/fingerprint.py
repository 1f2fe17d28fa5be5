"""Fingerprints of models: models with equal fingerprints compute the same function."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from transformers import PreTrainedModel

ORIGIN_KEYS = ("_name_or_path", "transformers_version")
"""Keys of a configuration that describe the model's origin, not its function."""


def fingerprint(model: PreTrainedModel) -> str:
    """A digest of the model's configuration and of the bits of every weight, adapters included."""
    config = {name: value for name, value in model.config.to_dict().items() if name not in ORIGIN_KEYS}
    total = hashlib.blake2b(json.dumps(config, sort_keys=True, default=str).encode(), digest_size=16)
    with ThreadPoolExecutor() as pool:  # hashing a large buffer releases the interpreter lock
        for digest in pool.map(_digest, *zip(*model.state_dict().items(), strict=True)):
            total.update(digest)
    return total.hexdigest()


def _digest(name: str, weight: Tensor) -> bytes:
    digest = hashlib.blake2b(f"{name} {weight.dtype} {tuple(weight.shape)}".encode(), digest_size=16)
    digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()
