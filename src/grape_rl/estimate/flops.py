"""What a forward pass has to compute, and how fast this machine multiplies matrices: the floor of a step's time.

The floor is what is left when nothing is done twice: every prompt once, no padding, the head on chosen tokens alone.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from grape_rl.model.linear import product
from grape_rl.model.packing import lengths
from grape_rl.types import Sequences


@dataclass(frozen=True)
class Work:
    """What is to be computed, whatever the model.

    ``trunk_tokens`` positions run through the layers, ``head_tokens`` of them through the head, and of each layer's
    attention every head compares ``attention_pairs`` queries with a key that they may see.

    >>> Work(2, 1, 3) + Work(1, 1, 1)
    Work(trunk_tokens=3, head_tokens=2, attention_pairs=4)
    """

    trunk_tokens: int = 0
    head_tokens: int = 0
    attention_pairs: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.trunk_tokens + other.trunk_tokens,
            self.head_tokens + other.head_tokens,
            self.attention_pairs + other.attention_pairs,
        )


def reading(prompt: int, rest: Sequence[int] = ()) -> Work:
    """A prompt of so many tokens, and behind it each of several sequences: none of them through the head.

    Token j of a sequence (from 1) sees the prompt and itself and those before it: prompt + j pairs.

    >>> reading(2), reading(2, [1, 2])  # 1 + 2 pairs; 3, and 3 + 4 more
    (Work(trunk_tokens=2, head_tokens=0, attention_pairs=3), Work(trunk_tokens=5, head_tokens=0, attention_pairs=13))
    """
    pairs = _triangle(prompt) + sum(prompt * n + _triangle(n) for n in rest)
    return Work(prompt + sum(rest), 0, pairs)


def decoding(prompts: Sequence[int], n: int, t: int) -> Work:
    """Sampling ``n`` responses of ``t`` tokens to each of several prompts of so many tokens.

    Each prompt is read once, and of each response all tokens but the last; each token chosen costs the head once.

    >>> decoding([2], n=2, t=3)  # 3 pairs of the prompt, and 3 + 4 of each response
    Work(trunk_tokens=6, head_tokens=6, attention_pairs=17)
    """
    read = sum((reading(prompt, [t - 1] * n) for prompt in prompts), Work())
    return read + Work(head_tokens=len(prompts) * n * t)


def forwarding(sequences: Sequences) -> Work:
    """The log-probability of every masked token: one forward pass.

    Each prompt that a row with such tokens follows is read once, and of each row the tokens before its last masked one.
    """
    ends, group = lengths(sequences.mask).tolist(), sequences.group.tolist()
    rest: dict[int, list[int]] = {}
    for end, g in zip(ends, group, strict=True):
        if end:
            rest.setdefault(g, []).append(end - 1)
    read = sum((reading(len(sequences.prompts[g]), rows) for g, rows in rest.items()), Work())
    return read + Work(head_tokens=int(sequences.mask.sum()))


def _triangle(n: int) -> int:
    return n * (n + 1) // 2


@dataclass(frozen=True)
class Shape:
    """What of a model its operations depend on.

    ``trunk`` and ``head``: the numbers in the matrices that each token is multiplied by; ``…_trained``: in those of
    them that are trained. ``layers`` of attention, whose queries are ``width`` numbers wide over all heads.
    """

    trunk: int
    trunk_trained: int
    head: int
    head_trained: int
    layers: int
    width: int

    def operations(self, work: Work, backward: bool = False) -> float:
        """Floating-point operations of the matrix products of a forward pass, or of its backward pass alone.

        forward = 2 · (trunk tokens · trunk's matrices + head tokens · head's matrix) + 4 · layers · width · pairs,
        with width = heads · head_dim: a query times a key, and a share of a value. An expert's matrix counts as often
        as tokens reach it. backward = 2 · forward: by what came in, and by the weights, of which fixed ones need none.
        """
        trunk = work.trunk_tokens * (self.trunk + backward * self.trunk_trained)
        head = work.head_tokens * (self.head + backward * self.head_trained)
        return 2.0 * (trunk + head) + (8.0 if backward else 4.0) * self.layers * self.width * work.attention_pairs


def operations(model: nn.Module, work: Work, backward: bool = False) -> float:
    """Floating-point operations that ``work`` costs a language model, as ``Shape.operations`` counts them.

    The model may lie on the ``meta`` device. A layer that sees only a window costs less than this says.

    Raises:
        ValueError: the model does not say how many layers and heads of attention it has.
    """
    return shape(model).operations(work, backward)


def shape(model: nn.Module) -> Shape:
    """The model's shape. One that writes nothing, but scores, has no head to speak of.

    Raises:
        ValueError: as ``operations``.
    """
    made: Any = model
    config: Any = made.config.get_text_config()
    layers, heads = getattr(config, "num_hidden_layers", None), getattr(config, "num_attention_heads", None)
    if not layers or not heads:
        raise ValueError(f"{type(model).__name__}: does not say how many layers and heads of attention it has")
    lookup_value = {id(m.weight) for m in made.base_model.modules() if isinstance(m, nn.Embedding)}
    active = getattr(config, "num_experts_per_tok", None) or 1
    matrices = [  # experts lie on each other in one tensor
        (p.numel() // len(p) * active if p.ndim == 3 else p.numel(), p.requires_grad)
        for p in made.base_model.parameters()
        if p.ndim in (2, 3) and id(p) not in lookup_value
    ]
    output = made.get_output_embeddings()
    head = (output.weight.numel(), output.weight.requires_grad) if output else (0, False)
    return Shape(
        sum(numbers for numbers, _ in matrices),
        sum(numbers for numbers, trained in matrices if trained),
        head[0],
        head[0] * head[1],
        layers,
        heads * (getattr(config, "head_dim", None) or config.hidden_size // heads),
    )


def matrix_rate(device: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """Operations a second that the machine reaches on products of large square matrices: the best of several tries.

    Each of the ways that there are to multiply gets its part of ``seconds``, and at least one try.
    """
    n = 1536 if device.type == "cpu" else 8192
    chance = torch.Generator(device).manual_seed(0)  # not zeros and ones, which a GPU multiplies faster
    a, b = (torch.rand(n, n, generator=chance, device=device, dtype=dtype) for _ in range(2))
    ways = _products(device, dtype)
    return 2.0 * n**3 / min(_shortest(lambda way=way: way(a, b), device, seconds / len(ways)) for way in ways)


def memory_rate(device: torch.device, seconds: float = 0.1) -> float:
    """Bytes a second that the machine reads and writes as it copies 64 MiB: the best of several tries."""
    here = torch.zeros(2**24, device=device)
    there = torch.empty_like(here)
    return 2 * 4 * 2**24 / _shortest(lambda: there.copy_(here), device, seconds)


def operation_seconds(device: torch.device, seconds: float = 0.05) -> float:
    """Seconds that an operation takes which has next to nothing to compute: the best of several hundreds."""
    one = torch.zeros(1, device=device)

    def hundred() -> Tensor:
        for _ in range(100):
            one.add_(1.0)
        return one

    return _shortest(hundred, device, seconds) / 100


def _products(device: torch.device, dtype: torch.dtype) -> list[Callable[[Tensor, Tensor], Tensor]]:
    """x wᵀ, in the ways that this machine has of computing it."""
    return (
        [nn.functional.linear, product] if device.type == "cpu" and dtype == torch.float32 else [nn.functional.linear]
    )


def _shortest(once: Callable[[], Tensor], device: torch.device, seconds: float) -> float:
    """The shortest time, in seconds, that ``once`` takes in about ``seconds``, after a first time that does not count.

    The clock counts from before that, so that a slow machine does not take for ever.
    """
    began, best = time.perf_counter(), float("inf")
    with torch.no_grad():
        once()
        while best == float("inf") or time.perf_counter() - began < seconds:
            _wait(device)
            start = time.perf_counter()
            once()
            _wait(device)
            best = min(best, time.perf_counter() - start)
    return best


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
