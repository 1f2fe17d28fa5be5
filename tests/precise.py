"""Models that compute in float64 only."""

import torch
from transformers import PreTrainedModel


def doubled(model: PreTrainedModel) -> PreTrainedModel:
    """The model in float64, with norms replaced: transformers' own norm computes in float32 for all weights."""
    for name, module in list(model.named_modules()):
        if "RMSNorm" in type(module).__name__:
            norm = torch.nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon)
            norm.weight = module.weight
            model.set_submodule(name, norm)
    return model.double()
