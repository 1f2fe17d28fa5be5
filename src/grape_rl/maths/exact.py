"""A language model small enough to know everything about: every response it can give, with its probability.

With a few tokens and a few steps, all responses can be listed. An expectation is then a sum, and what is usually said
of an estimator "on average" can be checked to the last digits, without a sample:

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

A policy is a *table*: one row of logits for each prefix that a response can have. Take float64.
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

    ``mask`` is True on a response's own tokens (its end token included), ``prefix`` says which row of the table chose
    each token: equal prefixes, equal rows. ``tokens`` and ``prefix`` are 0 where ``mask`` is False.
    """

    vocabulary: int
    tokens: Int[Tensor, "n t"]
    mask: Bool[Tensor, "n t"]
    prefix: Int[Tensor, "n t"]

    @property
    def prefixes(self) -> int:
        """How many rows a table has."""
        return int(self.prefix.max()) + 1


def enumerated(vocabulary: int, length: int, end: int | None = None) -> World:
    """The world of all responses of ``length`` tokens; with an ``end`` token, also all shorter ones that it closes.

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
    """A policy with standard normal logits, float64, ready to be differentiated by."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(world.prefixes, world.vocabulary, generator=generator, dtype=torch.float64)
    return table.requires_grad_()


def table_of(world: World, probability: Float[Tensor, " n"]) -> Float[Tensor, "s v"]:
    """The policy under which response i has ``probability[i]``; uniform after prefixes that never occur."""
    choice = (world.prefix * world.vocabulary + world.tokens)[world.mask]
    each = probability[:, None].expand_as(world.mask)[world.mask]
    mass = probability.new_zeros(world.prefixes * world.vocabulary).index_add(0, choice, each)
    logits = mass.log().reshape(world.prefixes, world.vocabulary)
    return logits.masked_fill(logits.isneginf().all(1, keepdim=True), 0)


def logprobs(world: World, table: Float[Tensor, "s v"]) -> Float[Tensor, "n t"]:
    """The log-probability of each token of each response; 0 where the response is over."""
    return table.log_softmax(-1)[world.prefix, world.tokens].masked_fill(~world.mask, 0)


def probabilities(world: World, table: Float[Tensor, "s v"]) -> Float[Tensor, " n"]:
    """The probability of each response; they sum to 1."""
    return logprobs(world, table).sum(1).exp()


def expected_reward(world: World, table: Float[Tensor, "s v"], reward: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """J = ``Σ p reward`` over all responses, with its graph back to ``table``."""
    return probabilities(world, table) @ reward


def expected_reward_gradient(
    world: World, table: Float[Tensor, "s v"], reward: Float[Tensor, " n"]
) -> Float[Tensor, "s v"]:
    """∇J by the table's logits: what every policy-gradient estimator is after."""
    at = table.detach().requires_grad_()
    return torch.autograd.grad(expected_reward(world, at, reward), at)[0]


def response_kl(world: World, table: Float[Tensor, "s v"], other: Float[Tensor, "s v"]) -> Float[Tensor, ""]:
    """KL between the two policies' distributions of whole responses: ``Σ p (log p − log q)``, in nats."""
    return exact_kl(logprobs(world, table).sum(1), logprobs(world, other).sum(1))


def expectation(
    world: World, table: Float[Tensor, "s v"], size: int, estimator: Callable[[Int[Tensor, " g"]], Tensor]
) -> Tensor:
    """The exact mean of ``estimator(index)``, over groups of ``size`` responses drawn independently from ``table``.

    ``index`` holds the numbers of a group's responses. A sum over all n^size groups that can occur, each with the
    product of its probabilities. ``estimator`` may return any shape. As in sampling, no gradient flows through the
    probabilities: the gradient of the result is the expected gradient of ``estimator``.
    """
    probability = probabilities(world, table).detach()
    every = torch.cartesian_prod(*[torch.arange(len(probability))] * size).reshape(-1, size)
    chance = probability[every].prod(1)
    return torch.stack([c * estimator(index) for c, index in zip(chance, every, strict=True) if c > 0]).sum(0)
