"""What a model is, in a few letters: two models of one fingerprint say the same of every sequence."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from transformers import PreTrainedModel

ORIGIN_KEYS = ("_name_or_path", "transformers_version")
"""What a configuration tells of where the model came from, and not of what it says."""


def fingerprint(model: PreTrainedModel) -> str:
    """A digest of the model's configuration and of every weight, adapters too, to the bit."""
    told = {name: value for name, value in model.config.to_dict().items() if name not in ORIGIN_KEYS}
    whole = hashlib.blake2b(json.dumps(told, sort_keys=True, default=str).encode(), digest_size=16)
    with ThreadPoolExecutor() as beside:  # a digest of a large buffer leaves the interpreter free
        for digest in beside.map(_digest, *zip(*model.state_dict().items(), strict=True)):
            whole.update(digest)
    return whole.hexdigest()


def _digest(name: str, weight: Tensor) -> bytes:
    found = hashlib.blake2b(f"{name} {weight.dtype} {tuple(weight.shape)}".encode(), digest_size=16)
    found.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.digest()
