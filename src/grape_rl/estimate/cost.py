"""The arithmetic of an estimate: a step's peak memory and its duration.

Memory is the models' memory, plus the most that any one moment needs. Time is operations divided by the machine's rate,
plus bytes divided by its memory bandwidth, plus a fixed time per operation. The constants below were measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from grape_rl.estimate.flops import ModelShape, Work
from grape_rl.model.lm_head import TILE

MATRIX_SHARE = 0.7
"""Share of the machine's best rate that matrix products reach in a pass over thousands of positions."""
DECODE_SHARE = 0.55
"""Share of the machine's best rate that matrix products of a few dozen rows reach, as in a decoding step."""
TRAFFIC_FORWARD = 3.0
"""Times that each activation is written or read outside of matrix products, in a forward pass."""
TRAFFIC_BACKWARD = 5.0
"""Times that each activation or its gradient is written or read in a backward pass."""
HEAD_TRAFFIC = 1.0
"""Times that a logit of the update moves to or from memory. Its tile fits mostly into a cache."""
DRAW_TRAFFIC = 12.0
"""Times that a logit of a sampled token moves to or from memory: softmax, its cumulative sum in float64, the search."""
LAYER_OPERATIONS = 300
"""Operations that a layer starts in a forward pass, Python's overhead included; a backward pass starts as many."""
OPTIMIZER_TRAFFIC = 44.0
"""Bytes that a step of AdamW and of gradient clipping moves per trained parameter."""
ADDED_TRAFFIC = 24.0
"""Bytes that a micro-batch's gradient moves per trained parameter: created, read, added, written."""
HEAD_TILE = TILE
"""Maximum number of logits that exist at once in an update."""
HEAD_COPIES = 3
"""Tensors of the tile's size at the peak of the backward pass, in float32."""
DRAW_BYTES = 40
"""Bytes per logit of a sampled token."""
SLACK = 1.25
"""Memory that the allocator holds per memory in use: micro-batches of different sizes leave gaps."""


@dataclass(frozen=True)
class Machine:
    """Measured rates: operations per second, bytes per second, and seconds of the smallest operation."""

    matrix_rate: float
    memory_rate: float
    operation_seconds: float


@dataclass(frozen=True)
class ModelFootprint:
    """The memory of a model, and of each position in it.

    Attributes:
        shape: its shape.
        parameters: number of its parameters, each in float32.
        trunk: number of its trunk's parameters.
        trained: number of its trained parameters.
        largest: size of the largest trained matrix.
        activations: bytes per position that the trunk stores for the backward pass.
        cached: bytes per position of keys and values.
        vocabulary: size of the vocabulary; 0 for a reward model.
    """

    shape: ModelShape
    parameters: int
    trunk: int
    trained: int
    largest: int
    activations: float
    cached: float
    vocabulary: int


@dataclass(frozen=True)
class Step:
    """The work of one step, by purpose.

    Attributes:
        learned: work with a gradient.
        microbatches: forward passes of that work.
        positions: the most positions in one of them.
        chosen: the most tokens in the loss in one of them.
        updates: optimizer steps.
        no_grad: work without a gradient.
        no_grad_passes: forward passes of that work.
        decoded: work of decoding.
        decodes: forward passes of decoding.
        rows: the most rows in one of them.
        cached: the most positions in the KV cache.
    """

    learned: Work
    microbatches: int
    positions: int
    chosen: int
    updates: int = 1
    no_grad: Work = field(default_factory=Work)
    no_grad_passes: int = 0
    decoded: Work = field(default_factory=Work)
    decodes: int = 0
    rows: int = 0
    cached: int = 0


@dataclass(frozen=True)
class ExtraModels:
    """Models that a run holds besides the policy, and settings that change a model's memory.

    Attributes:
        references: frozen copies of the policy's trained parameters.
        trunks: trained copies of its trunk.
        half: True if forward passes compute in bfloat16, from copies of the weights.
        checkpointing: True with gradient checkpointing.
    """

    references: int = 0
    trunks: int = 0
    half: bool = False
    checkpointing: bool = False


def peak_memory(footprint: ModelFootprint, step: Step, extra: ExtraModels, base: float) -> dict[str, float]:
    """Bytes by their use. Their sum is the peak.

    weights: 4 per parameter; gradients: 4 and AdamW's moments: 8 per trained parameter. Sampling and activations do not
    exist at one time, so only the larger of them counts. Sampling needs the KV cache and logits. Activations are those
    stored, once more those of the layer in work, the head's tiles, and the gradient of the largest matrix, which is
    created before it is added.

    Args:
        footprint: the model's memory.
        step: the work of the step.
        extra: other models in memory.
        base: memory of the process before the run (Python and its libraries); 0 if the models are in another memory.
    """
    own_trunks = extra.trunks * footprint.trunk
    trained = footprint.trained + own_trunks
    layers = footprint.shape.layers
    sampling = step.cached * footprint.cached + step.rows * footprint.vocabulary * DRAW_BYTES
    # With gradient checkpointing, only each layer's input is stored.
    stored = 4.0 * footprint.shape.width * layers if extra.checkpointing else footprint.activations
    tile = min(step.chosen * footprint.vocabulary, HEAD_TILE)
    in_layers = step.positions * (stored + footprint.activations / layers)
    activations = in_layers + HEAD_COPIES * 4.0 * tile + 4.0 * footprint.largest
    moment = {"sampling": sampling} if sampling > activations else {"activations": activations}
    casts = 2.0 * (footprint.shape.trunk + footprint.shape.head) if extra.half else 0.0
    used = {
        "weights": 4.0 * (footprint.parameters + extra.references * footprint.trained + own_trunks),
        "gradients": 4.0 * trained,
        "optimizer": 8.0 * trained,
    } | {name: size + casts for name, size in moment.items()}
    return {"libraries": base} | {name: size * SLACK for name, size in used.items()}


def step_seconds(
    footprint: ModelFootprint, step: Step, machine: Machine, checkpointing: bool = False
) -> dict[str, float]:
    """Seconds of a step by their use: sampling, passes without a gradient, the update.

    The backward pass recomputes the head's tiles, and with gradient ``checkpointing`` the layers too.
    """
    shape = footprint.shape
    started = shape.layers * LAYER_OPERATIONS * machine.operation_seconds

    def pass_seconds(work: Work, passes: int, backward: bool) -> float:
        operations = shape.flops(work)
        if backward:
            operations += shape.flops(work, backward=True)
            operations += shape.flops(work if checkpointing else Work(head_tokens=work.head_tokens))
        traffic = (
            work.trunk_tokens * footprint.activations * (TRAFFIC_FORWARD + (TRAFFIC_BACKWARD if backward else 0.0))
        )
        traffic += work.head_tokens * footprint.vocabulary * 4.0 * HEAD_TRAFFIC * (2 if backward else 1)
        starts = passes * started * (2 if backward else 1)
        return operations / (MATRIX_SHARE * machine.matrix_rate) + traffic / machine.memory_rate + starts

    seconds: dict[str, float] = {}
    if step.decodes:
        weights = 4.0 * (shape.trunk + shape.head) * step.decodes
        traffic = (
            weights
            + step.decoded.attention_pairs * footprint.cached
            + step.decoded.trunk_tokens * footprint.activations * TRAFFIC_FORWARD
        )
        traffic += step.decoded.head_tokens * footprint.vocabulary * 8.0 * DRAW_TRAFFIC
        products = shape.flops(step.decoded) / (DECODE_SHARE * machine.matrix_rate)
        seconds["sampling"] = products + traffic / machine.memory_rate + step.decodes * started
    if step.no_grad_passes:
        seconds["reference"] = pass_seconds(step.no_grad, step.no_grad_passes, backward=False)
    moved = footprint.trained * (step.updates * OPTIMIZER_TRAFFIC + step.microbatches * ADDED_TRAFFIC)
    seconds["update"] = pass_seconds(step.learned, step.microbatches, backward=True) + moved / machine.memory_rate
    return seconds


@dataclass(frozen=True)
class Estimate:
    """A run's peak memory in bytes and its time per step in seconds, each by use, with the machine's rates."""

    memory: Mapping[str, float]
    seconds: Mapping[str, float]
    machine: Machine

    def __str__(self) -> str:
        """One line, in GB and seconds, without shares under 1 %."""
        gigabytes = {name: size / 1e9 for name, size in self.memory.items()}
        return (
            f"about {_sum(gigabytes)} GB at the peak ({_parts(gigabytes)}) and {_sum(self.seconds)} s a step "
            f"({_parts(self.seconds)}) at the {self.machine.matrix_rate / 1e9:.0f} GFLOP/s measured here"
        )


def _sum(parts: Mapping[str, float]) -> str:
    return _two_digits(sum(parts.values()))


def _parts(parts: Mapping[str, float]) -> str:
    shown = {name: amount for name, amount in parts.items() if amount >= 0.01 * sum(parts.values())}
    return ", ".join(f"{name} {_two_digits(amount)}" for name, amount in shown.items())


def _two_digits(number: float) -> str:
    """The number with two digits, or rounded to a whole number from 10 up."""
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"
