"""FLOP counts of forward and backward passes, and the matmul throughput of this machine: a lower bound on step time.

The bound assumes that no work is repeated: every prompt is encoded once, nothing is padded, and the LM head runs on
chosen tokens only.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from grape_rl.model.onednn_linear import matmul_nt
from grape_rl.model.packing import row_lengths
from grape_rl.types import Sequences


@dataclass(frozen=True)
class Work:
    """The work of a computation, independent of the model.

    Attributes:
        trunk_tokens: positions that run through the layers.
        head_tokens: positions that run through the LM head.
        attention_pairs: pairs of a query and a key that it may attend to, for one head of one layer.

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


def prefill_work(prompt: int, rest: Sequence[int] = ()) -> Work:
    """The work of reading a prompt and the sequences ``rest`` that continue it, given by length, without the LM head.

    Token j of a sequence (from 1) attends to the prompt, to earlier tokens and to itself: prompt + j pairs.

    >>> prefill_work(2), prefill_work(2, [1, 2])  # 1 + 2 pairs; 3, and 3 + 4 more
    (Work(trunk_tokens=2, head_tokens=0, attention_pairs=3), Work(trunk_tokens=5, head_tokens=0, attention_pairs=13))
    """
    pairs = _triangle(prompt) + sum(prompt * n + _triangle(n) for n in rest)
    return Work(prompt + sum(rest), 0, pairs)


def generation_work(prompts: Sequence[int], n: int, t: int) -> Work:
    """The work of sampling ``n`` responses of ``t`` tokens to each of several prompts, given by length.

    Each prompt is encoded once. Every token of a response except the last is read. The LM head runs once per token.

    >>> generation_work([2], n=2, t=3)  # 3 pairs of the prompt, and 3 + 4 of each response
    Work(trunk_tokens=6, head_tokens=6, attention_pairs=17)
    """
    read = sum((prefill_work(prompt, [t - 1] * n) for prompt in prompts), Work())
    return read + Work(head_tokens=len(prompts) * n * t)


def forward_work(sequences: Sequences) -> Work:
    """The work of one forward pass that computes the log-probability of every masked token.

    Each prompt of a row with masked tokens is read once, and each row up to the token before its last masked one.
    """
    ends, group = row_lengths(sequences.mask).tolist(), sequences.group.tolist()
    rest: dict[int, list[int]] = {}
    for end, g in zip(ends, group, strict=True):
        if end:
            rest.setdefault(g, []).append(end - 1)
    read = sum((prefill_work(len(sequences.prompts[g]), rows) for g, rows in rest.items()), Work())
    return read + Work(head_tokens=int(sequences.mask.sum()))


def _triangle(n: int) -> int:
    return n * (n + 1) // 2


@dataclass(frozen=True)
class ModelShape:
    """The dimensions of a model that determine its FLOPs.

    Attributes:
        trunk: parameters in the trunk's matrices that multiply each token.
        trunk_trained: the trained parameters among them.
        head: parameters of the LM head.
        head_trained: the trained parameters among them.
        layers: the number of attention layers.
        width: the width of a layer's queries over all heads: heads · head_dim.
    """

    trunk: int
    trunk_trained: int
    head: int
    head_trained: int
    layers: int
    width: int

    def flops(self, work: Work, backward: bool = False) -> float:
        """FLOPs of the matrix products of a forward pass, or of its backward pass alone.

        forward = 2 · (trunk tokens · trunk + head tokens · head) + 4 · layers · width · attention pairs. A pair costs a
        product of query and key, and one of weight and value. Of a mixture of experts, only the
        experts that a token uses count. A backward pass costs one forward pass for the gradients with respect to the
        inputs and, for matrices that are trained, one more for the gradients with respect to the weights.
        """
        trunk = work.trunk_tokens * (self.trunk + backward * self.trunk_trained)
        head = work.head_tokens * (self.head + backward * self.head_trained)
        return 2.0 * (trunk + head) + (8.0 if backward else 4.0) * self.layers * self.width * work.attention_pairs


def count_flops(model: nn.Module, work: Work, backward: bool = False) -> float:
    """The FLOPs of ``work`` for a language model, as ``ModelShape.flops`` counts them.

    The model may be on the ``meta`` device. A layer with a sliding window costs less than this count.

    Raises:
        ValueError: the model's configuration lacks the number of layers or attention heads.
    """
    return shape_of(model).flops(work, backward)


def shape_of(model: nn.Module) -> ModelShape:
    """The model's shape. The scalar head of a reward model counts as 0.

    Raises:
        ValueError: the model's configuration lacks the number of layers or attention heads.
    """
    causal_model: Any = model
    config: Any = causal_model.config.get_text_config()
    layers, heads = getattr(config, "num_hidden_layers", None), getattr(config, "num_attention_heads", None)
    if not layers or not heads:
        raise ValueError(f"{type(model).__name__}: its configuration lacks the number of layers or attention heads")
    # The trunk's matrices; an embedding is a lookup, not a product.
    embeddings = {id(m.weight) for m in causal_model.base_model.modules() if isinstance(m, nn.Embedding)}
    active = getattr(config, "num_experts_per_tok", None) or 1
    matrices = [  # the matrices of all experts are stacked in one tensor
        (p.numel() // len(p) * active if p.ndim == 3 else p.numel(), p.requires_grad)
        for p in causal_model.base_model.parameters()
        if p.ndim in (2, 3) and id(p) not in embeddings
    ]
    output = causal_model.get_output_embeddings()
    head = (output.weight.numel(), output.weight.requires_grad) if output else (0, False)
    return ModelShape(
        sum(numbers for numbers, _ in matrices),
        sum(numbers for numbers, trained in matrices if trained),
        head[0],
        head[0] * head[1],
        layers,
        heads * (getattr(config, "head_dim", None) or config.hidden_size // heads),
    )


def matmul_throughput(device: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """The machine's FLOP/s on products of large square matrices: the best of several runs.

    Each implementation of the product gets an equal part of ``seconds``, and at least one run.
    """
    n = 1536 if device.type == "cpu" else 8192
    generator = torch.Generator(device).manual_seed(0)  # random: a GPU multiplies zeros and ones faster
    a, b = (torch.rand(n, n, generator=generator, device=device, dtype=dtype) for _ in range(2))
    products = _products(device, dtype)
    share = seconds / len(products)
    return 2.0 * n**3 / min(_shortest(lambda product=product: product(a, b), device, share) for product in products)


def memory_bandwidth(device: torch.device, seconds: float = 0.1) -> float:
    """The machine's bytes per second, read plus written, in a copy of 64 MiB: the best of several runs."""
    source = torch.zeros(2**24, device=device)
    target = torch.empty_like(source)
    return 2 * 4 * 2**24 / _shortest(lambda: target.copy_(source), device, seconds)


def operation_latency(device: torch.device, seconds: float = 0.05) -> float:
    """The time in seconds of an operation on one number, which is nearly all overhead: the best of several hundred."""
    one = torch.zeros(1, device=device)

    def hundred() -> Tensor:
        for _ in range(100):
            one.add_(1.0)
        return one

    return _shortest(hundred, device, seconds) / 100


def _products(device: torch.device, dtype: torch.dtype) -> list[Callable[[Tensor, Tensor], Tensor]]:
    """The implementations of x wᵀ on this machine."""
    if device.type == "cpu" and dtype == torch.float32:
        return [nn.functional.linear, matmul_nt]
    return [nn.functional.linear]


def _shortest(run: Callable[[], Tensor], device: torch.device, seconds: float) -> float:
    """The shortest time, in seconds, of ``run`` over about ``seconds``, after a warm-up run that does not count.

    ``seconds`` include the warm-up, so that a slow machine finishes too.
    """
    began, best = time.perf_counter(), float("inf")
    with torch.no_grad():
        run()
        while best == float("inf") or time.perf_counter() - began < seconds:
            _synchronize(device)
            start = time.perf_counter()
            run()
            _synchronize(device)
            best = min(best, time.perf_counter() - start)
    return best


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
