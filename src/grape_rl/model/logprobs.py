"""The forward pass: the log-probability of every token of sequences under a model.

Sequences are packed without padding, and a prompt shared by several rows is read once: see ``grape_rl.model.packing``.
Only tokens that the policy chose reach the LM head.
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from grape_rl.model.attention import trunk_states
from grape_rl.model.cpu_attention import packed_attention
from grape_rl.model.gradient_checkpointing import recompute_in_backward
from grape_rl.model.lm_head import lm_head_of, logits_of, token_logprobs
from grape_rl.model.packing import PackedSequences, pack, pad_to_multiple, row_lengths
from grape_rl.model.padded_attention import padded_attention
from grape_rl.model.value_head import PolicyWithValue
from grape_rl.types import Outputs, Sequences

EmbeddingNoise = Callable[[int, int], Float[Tensor, "l d"]]
"""Maps a row's number and its length to the noise that is added to the row's embeddings (NEFTune)."""


def compute_logprobs(
    model: nn.Module, sequences: Sequences, temperature: float = 1.0, noise: EmbeddingNoise | None = None
) -> Outputs:
    """Log-probability and entropy of each masked token, at the sampling temperature.

    logp[i, t] = log π(tokens[i, t] | prompts[group[i]], tokens[i, :t]), with the logits divided by ``temperature``.
    Both fields are "b t", in nats, and 0 where ``mask`` is False. For a ``PolicyWithValue``, the outputs also contain
    the value before each masked token; a trunk that policy and value share runs once. With ``noise``, prompts are not
    shared.

    Raises:
        ValueError: a prompt has no tokens, so that nothing precedes its first response token.
    """
    # The packed row's hidden states that predict masked tokens.
    sequences = to_device(sequences, next(model.parameters()).device)
    mask = sequences.mask
    policy = model.policy if isinstance(model, PolicyWithValue) else model
    packed = pack(_checked(sequences), share_prompts=False) if noise else _pack(sequences)
    chosen = packed.predictor[mask]
    hidden = _hidden_states(policy, packed, noise).index_select(0, chosen)
    # The LM head, then the value head on the same or its own trunk.
    logp, entropy = token_logprobs(lm_head_of(policy), hidden, sequences.tokens[mask], temperature)
    value = None
    if isinstance(model, PolicyWithValue):
        seen = hidden if model.trunk is policy else _hidden_states(model.trunk, packed).index_select(0, chosen)
        value = _scatter(model.head(seen), mask)
    return Outputs(_scatter(logp, mask), _scatter(entropy, mask), value)


def compute_values(model: PolicyWithValue, sequences: Sequences) -> Float[Tensor, "b t"]:
    """The value before each masked token, as in ``compute_logprobs`` but without the LM head; 0 elsewhere."""
    sequences = to_device(sequences, next(model.parameters()).device)
    return _scatter(model.head(hidden_states(model.trunk, sequences)[sequences.mask]), sequences.mask)


def _scatter(field: Float[Tensor, " n"], mask: Bool[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    return torch.zeros(mask.shape, dtype=field.dtype, device=mask.device).masked_scatter(mask, field)


def masked_logits(model: nn.Module, sequences: Sequences, temperature: float = 1.0) -> Float[Tensor, "n v"]:
    """The logits, divided by ``temperature``, that predict each of the n masked tokens, row by row.

    Unlike in ``compute_logprobs``, all n x vocabulary logits exist at once and are differentiable any number of times.

    Raises:
        ValueError: a prompt has no tokens, so that nothing precedes its first response token.
    """
    sequences = to_device(sequences, next(model.parameters()).device)
    packed = pack(_checked(sequences))
    attend = padded_attention(packed)
    hidden = trunk_states(model, attend, input_ids=packed.tokens[None], position_ids=packed.positions[None])[0]
    return logits_of(model)(hidden.index_select(0, packed.predictor[sequences.mask])) / temperature


def hidden_states(model: nn.Module, sequences: Sequences) -> Float[Tensor, "b t d"]:
    """The hidden state that predicts each token, up to the last masked one; later columns are arbitrary.

    Raises:
        ValueError: a prompt has no tokens, so that nothing precedes its first response token.
    """
    packed = _pack(sequences)
    states = _hidden_states(model, packed)
    return states.index_select(0, packed.predictor.flatten()).unflatten(0, packed.predictor.shape)


def _pack(sequences: Sequences) -> PackedSequences:
    packed = pack(_checked(sequences))
    return pad_to_multiple(packed) if packed.tokens.device.type == "cpu" else packed


def _hidden_states(
    model: nn.Module, packed: PackedSequences, noise: EmbeddingNoise | None = None
) -> Float[Tensor, "n d"]:
    """The hidden state of each token of the packed row. With ``noise``, each prefix is one row of the batch."""
    inputs = {"input_ids": packed.tokens[None]}
    if noise:
        embeddings = model.get_input_embeddings()(packed.tokens)  # pyright: ignore[reportCallIssue]
        added = torch.cat([noise(i, n) for i, n in enumerate(packed.prefix_lengths)])
        inputs = {"inputs_embeds": (embeddings + added.to(embeddings))[None]}
    attend = packed_attention(packed)
    with recompute_in_backward(model):
        return trunk_states(model, attend, position_ids=packed.positions[None], **inputs)[0]


def hidden_states_after(model: nn.Module, sequences: Sequences) -> Float[Tensor, "b u d"]:
    """Hidden states after the prompt (column 0) and after each token t (column t + 1), on the model's device.

    Raises:
        ValueError: a prompt has no tokens.
    """
    original = to_device(sequences, next(model.parameters()).device)
    # The state that predicts column t + 1 is the state after token t, and is required where token t is masked.
    tokens, mask = nn.functional.pad(original.tokens, (0, 1)), nn.functional.pad(original.mask, (1, 0), value=True)
    return hidden_states(model, Sequences(original.prompts, tokens, mask, original.group))


def require_nonempty(prompts: tuple[Int[Tensor, " _"], ...]) -> tuple[Int[Tensor, " _"], ...]:
    """The prompts, unchanged, if each has at least one token.

    Raises:
        ValueError: a prompt has no tokens.
    """
    for i, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"prompt {i} of {len(prompts)} has no tokens; a model needs at least one to continue from")
    return prompts


def _checked(sequences: Sequences) -> Sequences:
    require_nonempty(sequences.prompts)
    return sequences


def to_device(sequences: Sequences, device: torch.device) -> Sequences:
    """The sequences with their tensors on ``device``."""
    return Sequences(
        tuple(p.to(device) for p in sequences.prompts),
        sequences.tokens.to(device),
        sequences.mask.to(device),
        sequences.group.to(device),
    )


def select_rows(sequences: Sequences, rows: Int[Tensor, " n"]) -> Sequences:
    """The selected rows of the sequences with only their prompts, trimmed to the longest selected row."""
    tokens, mask = sequences.tokens[rows], sequences.mask[rows]
    width = max(1, int(row_lengths(mask).max()))
    used, group = sequences.group[rows].unique(return_inverse=True)
    return Sequences(tuple(sequences.prompts[g] for g in used.tolist()), tokens[:, :width], mask[:, :width], group)


def microbatches(sequences: Sequences, tokens_per_microbatch: int) -> Iterator[Int[Tensor, " n"]]:
    """The rows of each micro-batch: within the budget of positions, with similar lengths, groups kept together.

    The cost of a micro-batch is the positions of its rows and of its prompts, each prompt counted once. The rows of a
    group stay together, so that their prompt is encoded once. A group over the budget is split; a single row over the
    budget runs alone.
    """
    width, group = row_lengths(sequences.mask).tolist(), sequences.group.tolist()

    def cost(rows: list[int]) -> int:
        return sum(len(sequences.prompts[g]) for g in {group[i] for i in rows}) + sum(width[i] for i in rows)

    groups: dict[int, list[int]] = {}
    for row in sorted(range(len(group)), key=lambda i: width[i]):
        groups.setdefault(group[row], []).append(row)
    batch: list[int] = []
    used = 0
    for rows in sorted(groups.values(), key=lambda rows: width[rows[-1]]):
        for block in [rows] if cost(rows) <= tokens_per_microbatch else _split(rows, cost, tokens_per_microbatch):
            added = cost(block)
            if batch and used + added > tokens_per_microbatch:
                yield torch.tensor(batch)
                batch, used = [], 0
            batch, used = batch + block, used + added
    if batch:
        yield torch.tensor(batch)


def _split(rows: list[int], cost: Callable[[list[int]], int], budget: int) -> Iterator[list[int]]:
    """A group over the budget, split in order into the fewest parts that are within the budget or one row."""
    part: list[int] = []
    for row in rows:
        if part and cost([*part, row]) > budget:
            yield part
            part = []
        part = [*part, row]
    yield part
