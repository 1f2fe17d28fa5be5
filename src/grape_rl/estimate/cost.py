"""The arithmetic of an estimate: how much memory a step takes at its peak, and how long it lasts.

Memory is what is held, plus the most that is in use at one moment. Time is operations over the machine's rate, plus
bytes over its memory's, plus what each operation costs however small it is. The constants below say how much of each.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from grape_rl.estimate.flops import ModelShape, Work
from grape_rl.model.lm_head import TILE

MATRIX_SHARE = 0.7
"""The share of the machine's best rate that products of a pass over thousands of positions reach."""
DECODE_SHARE = 0.55
"""The same of products of a few dozen rows: those of a step of decoding."""
TRAFFIC_FORWARD = 3.0
"""How often each number that a layer makes is written or read again outside of matrix products, in a forward pass."""
TRAFFIC_BACKWARD = 5.0
"""The same in a backward pass, which reads them and writes their gradients."""
HEAD_TRAFFIC = 1.0
"""How often a logit of the update goes to memory and back: its tile stays in a cache, but for what does not fit."""
DRAW_TRAFFIC = 12.0
"""The same of a logit that a token is drawn from: softmax, its sum in float64, the search in it."""
LAYER_OPERATIONS = 300
"""Operations that a layer starts in a forward pass, with what Python takes to start them; a backward pass, as many."""
OPTIMIZER_TRAFFIC = 44.0
"""Bytes that a step of AdamW and of clipping moves for each number that it trains."""
ADDED_TRAFFIC = 24.0
"""Bytes that a micro-batch's gradient moves for each number that it is added to: made, read, added, written."""
HEAD_TILE = TILE
"""The most logits that exist at once in an update."""
HEAD_COPIES = 3
"""How many fields of the tile's size there are at the backward pass's peak, in float32."""
DRAW_BYTES = 40
"""Bytes for each logit that a token is drawn from."""
SLACK = 1.25
"""What the allocator holds over what is in use: micro-batches differ in size, and leave gaps behind."""


@dataclass(frozen=True)
class Machine:
    """What was measured here: operations a second, bytes a second, and seconds that the smallest operation takes."""

    matrix_rate: float
    memory_rate: float
    operation_seconds: float


@dataclass(frozen=True)
class ModelFootprint:
    """What a model holds, and how much each position adds to that.

    ``parameters``, those of its ``trunk`` alone, those ``trained``, the ``largest`` matrix of these, each a count of
    float32 numbers; ``kept``: bytes a position that the trunk keeps for the backward pass; ``cached``: bytes a position
    of keys and values. ``vocabulary`` is 0 for a model that scores.
    """

    shape: ModelShape
    parameters: int
    trunk: int
    trained: int
    largest: int
    kept: float
    cached: float
    vocabulary: int


@dataclass(frozen=True)
class Step:
    """What a step runs: work by its purpose, with the number of passes, and its largest moments.

    ``decoded`` is the work of decoding, in ``decodes`` passes of at most ``rows`` rows; ``cached`` the positions whose
    keys and values are held then. ``read`` needs no gradient; ``learned`` does, in ``microbatches`` of at most
    ``positions`` positions and ``chosen`` chosen tokens. ``updates`` are steps of the optimizer.
    """

    learned: Work
    microbatches: int
    positions: int
    chosen: int
    updates: int = 1
    read: Work = field(default_factory=Work)
    reads: int = 0
    decoded: Work = field(default_factory=Work)
    decodes: int = 0
    rows: int = 0
    cached: int = 0


@dataclass(frozen=True)
class Held:
    """Models beside the policy: ``fixed`` copies of what is trained of it, and ``trunks`` of its size that learn too.

    ``half``: forward passes compute in bfloat16, from copies of the weights. ``again``: gradient checkpointing.
    """

    fixed: int = 0
    trunks: int = 0
    half: bool = False
    again: bool = False


def memory(frame: ModelFootprint, step: Step, held: Held, base: float) -> dict[str, float]:
    """Bytes by what they are for. Their sum is the peak: of moments that exclude each other, only the larger counts.

    ``base`` is what the process holds before: Python and its libraries; 0 where the peak is of another memory.

    weights 4 a number, gradients 4 and AdamW's moments 8 a number that is trained. Then the larger of sampling (cache,
    and logits to draw from) and of activations (what is kept, once more for the layer in work, the head's tile, and the
    largest matrix's gradient, which is made anew before it is added).
    """
    own = held.trunks * frame.trunk
    trained = frame.trained + own
    tile = min(step.chosen * frame.vocabulary, HEAD_TILE)
    casts = 2.0 * (frame.shape.trunk + frame.shape.head) if held.half else 0.0
    sampling = step.cached * frame.cached + step.rows * frame.vocabulary * DRAW_BYTES
    layers = frame.shape.layers
    whole = 4.0 * frame.shape.width * layers if held.again else frame.kept  # what each layer read, or all it computed
    kept = step.positions * (whole + frame.kept / layers)
    activations = kept + HEAD_COPIES * 4.0 * tile + 4.0 * frame.largest
    peak = {"sampling": sampling} if sampling > activations else {"activations": activations}
    found = {
        "libraries": base,
        "weights": 4.0 * (frame.parameters + held.fixed * frame.trained + own),
        "gradients": 4.0 * trained,
        "optimizer": 8.0 * trained,
    } | {name: bytes_ + casts for name, bytes_ in peak.items()}
    return {name: bytes_ if name == "libraries" else bytes_ * SLACK for name, bytes_ in found.items()}


def seconds(frame: ModelFootprint, step: Step, machine: Machine, again: bool = False) -> dict[str, float]:
    """Seconds of a step by what takes them: sampling, passes without a gradient, the update.

    In backward the head's tiles are made once more, and with gradient checkpointing (``again``) the layers too.
    """
    started = frame.shape.layers * LAYER_OPERATIONS * machine.operation_seconds

    def passed(work: Work, passes: int, backward: bool) -> float:
        operations = frame.shape.operations(work)
        if backward:
            operations += frame.shape.operations(work, backward=True)
            operations += frame.shape.operations(work if again else Work(head_tokens=work.head_tokens))
        traffic = work.trunk_tokens * frame.kept * (TRAFFIC_FORWARD + (TRAFFIC_BACKWARD if backward else 0.0))
        traffic += work.head_tokens * frame.vocabulary * 4.0 * HEAD_TRAFFIC * (2 if backward else 1)
        starts = passes * started * (2 if backward else 1)
        return operations / (MATRIX_SHARE * machine.matrix_rate) + traffic / machine.memory_rate + starts

    out: dict[str, float] = {}
    if step.decodes:
        weights = 4.0 * (frame.shape.trunk + frame.shape.head) * step.decodes
        traffic = (
            weights
            + step.decoded.attention_pairs * frame.cached
            + step.decoded.trunk_tokens * frame.kept * TRAFFIC_FORWARD
        )
        traffic += step.decoded.head_tokens * frame.vocabulary * 8.0 * DRAW_TRAFFIC
        products = frame.shape.operations(step.decoded) / (DECODE_SHARE * machine.matrix_rate)
        out["sampling"] = products + traffic / machine.memory_rate + step.decodes * started
    if step.reads:
        out["reference"] = passed(step.read, step.reads, backward=False)
    moved = frame.trained * (step.updates * OPTIMIZER_TRAFFIC + step.microbatches * ADDED_TRAFFIC)
    out["update"] = passed(step.learned, step.microbatches, backward=True) + moved / machine.memory_rate
    return out


@dataclass(frozen=True)
class Estimate:
    """A run's peak memory in bytes and a step's time in seconds, each by what takes it, and the machine they are of."""

    memory: Mapping[str, float]
    seconds: Mapping[str, float]
    machine: Machine

    def __str__(self) -> str:
        """In one line, in GB and seconds, without what is too little to see."""
        gigabytes = {name: found / 1e9 for name, found in self.memory.items()}
        return (
            f"about {_sum(gigabytes)} GB at the peak ({_parts(gigabytes)}) and {_sum(self.seconds)} s a step "
            f"({_parts(self.seconds)}) at the {self.machine.matrix_rate / 1e9:.0f} GFLOP/s measured here"
        )


def _sum(parts: Mapping[str, float]) -> str:
    return _short(sum(parts.values()))


def _parts(parts: Mapping[str, float]) -> str:
    shown = {name: found for name, found in parts.items() if found >= 0.01 * sum(parts.values())}
    return ", ".join(f"{name} {_short(found)}" for name, found in shown.items())


def _short(number: float) -> str:
    """Two digits, or all of a whole number."""
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"
