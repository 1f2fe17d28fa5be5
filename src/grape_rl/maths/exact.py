"""Exact expectations for a language model small enough to enumerate all of its responses.

With a few tokens and a few steps, all responses can be listed. An expectation is then a sum, and the bias of an
estimator can be computed to the last digits, without sampling:

>>> world = enumerated(vocabulary=3, length=2, end=2)
>>> table = random_table(world, seed=0)
>>> reward = world.mask.sum(1).double()  # the response's length
>>> def loss(index):  # REINFORCE on a group of two responses, less the mean of the other one
...     advantage = reward[index] - reward[index.flip(0)]
...     return -(advantage * logprobs(world, table)[index].sum(1)).mean()
>>> expected = expectation(world, table, 2, loss)
>>> (estimated,) = torch.autograd.grad(expected, table)
>>> torch.allclose(-estimated, expected_reward_gradient(world, table, reward))
True

A policy is a *table*: one row of logits for each prefix of a response. Use float64.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from grape_rl.maths.divergence import exact_kl


@dataclass(frozen=True)
class World:
    """All n responses over ``vocabulary`` tokens, padded to t columns.

    ``mask`` is True on the tokens of a response, its end token included. ``prefix`` is the row of the table that
    predicts each token: equal prefixes, equal rows. ``tokens`` and ``prefix`` are 0 where ``mask`` is False.
    """

    vocabulary: int
    tokens: Int[Tensor, "n t"]
    mask: Bool[Tensor, "n t"]
    prefix: Int[Tensor, "n t"]

    @property
    def prefixes(self) -> int:
        """Number of prefixes, and of rows of a table."""
        return int(self.prefix.max()) + 1


def enumerated(vocabulary: int, length: int, end: int | None = None) -> World:
    """World of all responses of ``length`` tokens and, with an ``end`` token, of all shorter ones that end with it.

    Raises:
        ValueError: fewer than 2 tokens, a length under 1, or an ``end`` that is not a token.

    >>> enumerated(vocabulary=2, length=2, end=1).tokens.tolist()
    [[1, 0], [0, 0], [0, 1]]
    """
    if vocabulary < 2 or length < 1 or (end is not None and not 0 <= end < vocabulary):
        raise ValueError(
            f"vocabulary {vocabulary}, length {length}, end {end}: need 2 tokens or more, a length of 1 or more, "
            "and an end token among them"
        )
    finished: list[tuple[int, ...]] = []
    rows: dict[tuple[int, ...], int] = {}
    open_prefixes: list[tuple[int, ...]] = [()]
    for step in range(1, length + 1):
        rows |= {prefix: len(rows) + i for i, prefix in enumerate(open_prefixes)}
        longer = [(*prefix, token) for prefix in open_prefixes for token in range(vocabulary)]
        finished += [response for response in longer if step == length or response[-1] == end]
        open_prefixes = [response for response in longer if response[-1] != end]
    padding = [(0,) * (length - len(response)) for response in finished]
    return World(
        vocabulary,
        tokens=torch.tensor([(*y, *pad) for y, pad in zip(finished, padding, strict=True)]),
        mask=torch.tensor([[t < len(y) for t in range(length)] for y in finished]),
        prefix=torch.tensor([[rows[y[:t]] if t < len(y) else 0 for t in range(length)] for y in finished]),
    )


def random_table(world: World, seed: int) -> Float[Tensor, "s v"]:
    """Policy with standard normal logits, float64, that requires a gradient."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(world.prefixes, world.vocabulary, generator=generator, dtype=torch.float64)
    return table.requires_grad_()


def table_of(world: World, probability: Float[Tensor, " n"]) -> Float[Tensor, "s v"]:
    """Policy under which response i has ``probability[i]``; uniform after prefixes that never occur."""
    entry = (world.prefix * world.vocabulary + world.tokens)[world.mask]
    weight = probability[:, None].expand_as(world.mask)[world.mask]
    mass = probability.new_zeros(world.prefixes * world.vocabulary).index_add(0, entry, weight)
    logits = mass.log().reshape(world.prefixes, world.vocabulary)
    return logits.masked_fill(logits.isneginf().all(1, keepdim=True), 0)


def logprobs(world: World, table: Float[Tensor, "s v"]) -> Float[Tensor, "n t"]:
    """Log-probability of each token of each response, in nats; 0 where ``mask`` is False."""
    return table.log_softmax(-1)[world.prefix, world.tokens].masked_fill(~world.mask, 0)


def probabilities(world: World, table: Float[Tensor, "s v"]) -> Float[Tensor, " n"]:
    """Probability of each response; they sum to 1."""
    return logprobs(world, table).sum(1).exp()


def expected_reward(world: World, table: Float[Tensor, "s v"], reward: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """Expected reward J = ``Σ p reward`` over all responses, differentiable by ``table``."""
    return probabilities(world, table) @ reward


def expected_reward_gradient(
    world: World, table: Float[Tensor, "s v"], reward: Float[Tensor, " n"]
) -> Float[Tensor, "s v"]:
    """Gradient ∇J of the expected reward by the logits, the quantity that policy-gradient estimators estimate."""
    logits = table.detach().requires_grad_()
    return torch.autograd.grad(expected_reward(world, logits, reward), logits)[0]


def response_kl(world: World, table: Float[Tensor, "s v"], other: Float[Tensor, "s v"]) -> Float[Tensor, ""]:
    """KL between the two policies' distributions of whole responses: ``Σ p (log p − log q)``, in nats."""
    return exact_kl(logprobs(world, table).sum(1), logprobs(world, other).sum(1))


def expectation(
    world: World, table: Float[Tensor, "s v"], size: int, estimator: Callable[[Int[Tensor, " g"]], Tensor]
) -> Tensor:
    """Exact mean of ``estimator(index)`` over groups of ``size`` responses sampled independently from ``table``.

    ``index`` holds the response numbers of a group. The result is a sum over all n^size groups, weighted by the product
    of their probabilities. ``estimator`` may return any shape. As in sampling, no gradient flows through the
    probabilities: the gradient of the result is the expected gradient of ``estimator``.
    """
    probability = probabilities(world, table).detach()
    groups = torch.cartesian_prod(*[torch.arange(len(probability))] * size).reshape(-1, size)
    weight = probability[groups].prod(1)
    return torch.stack([w * estimator(index) for w, index in zip(weight, groups, strict=True) if w > 0]).sum(0)
