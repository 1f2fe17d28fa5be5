"""Models in float64 throughout."""

import torch
from transformers import PreTrainedModel


def doubled(model: PreTrainedModel) -> PreTrainedModel:
    """The model in float64: transformers' own norm goes by way of float32, whatever the weights are."""
    for name, module in list(model.named_modules()):
        if "RMSNorm" in type(module).__name__:
            norm = torch.nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon)
            norm.weight = module.weight
            model.set_submodule(name, norm)
    return model.double()
