"""One forward pass: the log-probability of every token of some sequences under a model.

A prompt that several rows share is read once, and nothing is padded: see ``grape_rl.model.packing``. Only tokens that
the policy chose reach the head.
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
"""A row's number and its length → what is added to the embeddings that the model reads of it."""


def compute_logprobs(
    model: nn.Module, sequences: Sequences, temperature: float = 1.0, noise: EmbeddingNoise | None = None
) -> Outputs:
    """Log-probability and entropy of each masked token, at the sampling temperature.

    logp[i, t] = log π(tokens[i, t] | prompts[group[i]], tokens[i, :t]), with the logits divided by ``temperature``.
    Both fields are "b t", in nats, and 0 where ``mask`` is False. Of a policy with a value function it is also the
    value before each of these tokens; where the two share a trunk, that is run once. With ``noise`` prompts are not
    shared.

    Raises:
        ValueError: a prompt has no tokens, so that nothing stands before the first one after it.
    """
    sequences = to_device(sequences, next(model.parameters()).device)
    mask = sequences.mask
    policy = model.policy if isinstance(model, PolicyWithValue) else model
    forest = pack(_whole(sequences), apart=True) if noise else _row(sequences)
    chosen = forest.before[mask]
    hidden = _states(policy, forest, noise).index_select(0, chosen)
    logp, entropy = token_logprobs(lm_head_of(policy), hidden, sequences.tokens[mask], temperature)
    value = None
    if isinstance(model, PolicyWithValue):
        seen = hidden if model.trunk is policy else _states(model.trunk, forest).index_select(0, chosen)
        value = _spread(model.head(seen), mask)
    return Outputs(_spread(logp, mask), _spread(entropy, mask), value)


def compute_values(model: PolicyWithValue, sequences: Sequences) -> Float[Tensor, "b t"]:
    """The value before each masked token: what ``logprobs`` gives of it, without the policy's choices. 0 elsewhere."""
    sequences = to_device(sequences, next(model.parameters()).device)
    return _spread(model.head(hidden_states(model.trunk, sequences)[sequences.mask]), sequences.mask)


def _spread(field: Float[Tensor, " n"], mask: Bool[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    return torch.zeros(mask.shape, dtype=field.dtype, device=mask.device).masked_scatter(mask, field)


def masked_logits(model: nn.Module, sequences: Sequences, temperature: float = 1.0) -> Float[Tensor, "n v"]:
    """The whole choice at each of the n masked tokens, row by row: logits divided by ``temperature``.

    Unlike ``logprobs`` all n x vocabulary numbers exist at once, and can be differentiated any number of times.

    Raises:
        ValueError: a prompt has no tokens, so that nothing stands before the first one after it.
    """
    sequences = to_device(sequences, next(model.parameters()).device)
    forest = pack(_whole(sequences))
    hidden = trunk_states(
        model, padded_attention(forest), input_ids=forest.tokens[None], position_ids=forest.positions[None]
    )[0]
    return logits_of(model)(hidden.index_select(0, forest.before[sequences.mask])) / temperature


def hidden_states(model: nn.Module, sequences: Sequences) -> Float[Tensor, "b t d"]:
    """Hidden states before each token up to the last masked one; what stands behind it in a row means nothing.

    Raises:
        ValueError: a prompt has no tokens, so that nothing stands before the first one after it.
    """
    forest = _row(sequences)
    return _states(model, forest).index_select(0, forest.before.flatten()).unflatten(0, forest.before.shape)


def _row(sequences: Sequences) -> PackedSequences:
    forest = pack(_whole(sequences))
    return pad_to_multiple(forest) if forest.tokens.device.type == "cpu" else forest


def _states(model: nn.Module, forest: PackedSequences, noise: EmbeddingNoise | None = None) -> Float[Tensor, "n d"]:
    """The hidden state at each place of the forest; with ``noise``, each stem is a row of its own."""
    read = {"input_ids": forest.tokens[None]}
    if noise:
        embedded = model.get_input_embeddings()(forest.tokens)  # pyright: ignore[reportCallIssue]
        added = torch.cat([noise(i, n) for i, n in enumerate(forest.stems)])
        read = {"inputs_embeds": (embedded + added.to(embedded))[None]}
    attend = packed_attention(forest)
    with recompute_in_backward(model):
        return trunk_states(model, attend, position_ids=forest.positions[None], **read)[0]


def hidden_states_after(model: nn.Module, sequences: Sequences) -> Float[Tensor, "b u d"]:
    """Hidden states after the prompt (column 0) and after each token t (column t + 1), on the model's device.

    Raises:
        ValueError: a prompt has no tokens.
    """
    given = to_device(sequences, next(model.parameters()).device)
    # What stands before column t + 1 stands after token t: it is needed where token t is.
    tokens, mask = nn.functional.pad(given.tokens, (0, 1)), nn.functional.pad(given.mask, (1, 0), value=True)
    return hidden_states(model, Sequences(given.prompts, tokens, mask, given.group))


def require_nonempty(prompts: tuple[Int[Tensor, " _"], ...]) -> tuple[Int[Tensor, " _"], ...]:
    """The prompts, each of at least one token.

    Raises:
        ValueError: a prompt has no tokens.
    """
    for i, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"prompt {i} of {len(prompts)} has no tokens; a model needs at least one to go on from")
    return prompts


def _whole(sequences: Sequences) -> Sequences:
    require_nonempty(sequences.prompts)
    return sequences


def to_device(sequences: Sequences, device: torch.device) -> Sequences:
    """The same sequences with their tensors on ``device``."""
    return Sequences(
        tuple(p.to(device) for p in sequences.prompts),
        sequences.tokens.to(device),
        sequences.mask.to(device),
        sequences.group.to(device),
    )


def select_rows(sequences: Sequences, rows: Int[Tensor, " n"]) -> Sequences:
    """Some rows of the sequences, with only their prompts, trimmed to the longest of them."""
    tokens, mask = sequences.tokens[rows], sequences.mask[rows]
    width = max(1, int(row_lengths(mask).max()))
    used, group = sequences.group[rows].unique(return_inverse=True)
    return Sequences(tuple(sequences.prompts[g] for g in used.tolist()), tokens[:, :width], mask[:, :width], group)


def microbatches(sequences: Sequences, tokens_per_microbatch: int) -> Iterator[Int[Tensor, " n"]]:
    """Rows to run together: within the budget of positions, similar lengths and whole groups together.

    A micro-batch has the positions of its prompts, each once, and of its rows. Rows of a group stand together so that
    its prompt is encoded once; a group over the budget is split, and a single row over it runs alone.
    """
    width, group = row_lengths(sequences.mask).tolist(), sequences.group.tolist()

    def cost(rows: list[int]) -> int:
        return sum(len(sequences.prompts[g]) for g in {group[i] for i in rows}) + sum(width[i] for i in rows)

    groups: dict[int, list[int]] = {}
    for row in sorted(range(len(group)), key=lambda i: width[i]):
        groups.setdefault(group[row], []).append(row)
    taken: list[int] = []
    used = 0
    for rows in sorted(groups.values(), key=lambda rows: width[rows[-1]]):
        for block in [rows] if cost(rows) <= tokens_per_microbatch else _parts(rows, cost, tokens_per_microbatch):
            more = cost(block)
            if taken and used + more > tokens_per_microbatch:
                yield torch.tensor(taken)
                taken, used = [], 0
            taken, used = taken + block, used + more
    if taken:
        yield torch.tensor(taken)


def _parts(rows: list[int], cost: Callable[[list[int]], int], budget: int) -> Iterator[list[int]]:
    """A group over the budget in as few parts as its order allows, each within it or of one row."""
    part: list[int] = []
    for row in rows:
        if part and cost([*part, row]) > budget:
            yield part
            part = []
        part = [*part, row]
    yield part
