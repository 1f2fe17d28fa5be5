"""Shared by the tests of expected gradients: small worlds, and advantages and losses by name."""

import torch

from grape_rl.maths.advantage import baseline_advantage, group_relative, leave_one_out
from grape_rl.maths.exact import enumerated, expectation, logprobs
from grape_rl.maths.surrogate import cispo, clipped, policy_gradient, ratio

EXACT = {"rtol": 1e-10, "atol": 1e-12}  # float64 sums of up to some hundred products

ONE = enumerated(3, 1)
FIXED = enumerated(3, 2)
VARIED = enumerated(3, 2, end=2)
TINY = enumerated(2, 2, end=1)
ADVANTAGES = {
    "none": lambda reward, group: baseline_advantage(reward, group, "none"),
    "batch mean": lambda reward, group: baseline_advantage(reward, group, "batch"),
    "others' mean": lambda reward, group: baseline_advantage(reward, group, "leave_one_out"),
    "leave one out": leave_one_out,
    "group mean": lambda reward, group: group_relative(reward, group, "none"),
    "group std": lambda reward, group: group_relative(reward, group, "group"),
    "batch std": lambda reward, group: group_relative(reward, group, "batch"),
}
TOKEN_LOSSES = {
    "policy gradient": lambda logp, old, advantage, mask: policy_gradient(logp, advantage),
    "ratio": lambda logp, old, advantage, mask: ratio(logp, old, advantage),
    "clipped": lambda logp, old, advantage, mask: clipped(logp, old, advantage),
    "cispo": lambda logp, old, advantage, mask: cispo(logp, old, advantage),
}


def rewards(world):
    return (torch.arange(len(world.tokens), dtype=torch.float64) * 1.7).cos() + 0.3


def token_sum(field, mask):
    return (field * mask).sum(1)


def expected_gradient(world, table, old, reward, size, advantage, loss, reduction=token_sum):
    """∇ of the mean over the group's rows of the reduced loss, over groups that ``old`` samples."""
    logp, behavior_logp = logprobs(world, table), logprobs(world, old).detach()

    def estimator(index):
        a = advantage(reward[index], torch.zeros_like(index))[:, None].expand_as(world.mask[index])
        return reduction(loss(logp[index], behavior_logp[index], a, world.mask[index]), world.mask[index]).mean()

    return torch.autograd.grad(expectation(world, old, size, estimator), table)[0]
