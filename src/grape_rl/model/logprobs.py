"""One forward pass: the log-probability of every token of some sequences under a model.

A prompt that several rows share is encoded once: its key-value cache is expanded over the rows, and gradients flow
back through it. Only tokens that the policy chose reach the head.
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from grape_rl.model.head import head_of, logits_of, token_logprobs
from grape_rl.model.pack import first_fit, laid_out, packed_batches, packs
from grape_rl.model.value import Valued
from grape_rl.types import Outputs, Sequences

Noise = Callable[[int, int], Float[Tensor, "l d"]]
"""A row's number and its length → what is added to the embeddings that the model reads of it."""


def logprobs(model: nn.Module, sequences: Sequences, temperature: float = 1.0, noise: Noise | None = None) -> Outputs:
    """Log-probability and entropy of each masked token, at the sampling temperature.

    logp[i, t] = log π(tokens[i, t] | prompts[group[i]], tokens[i, :t]), with the logits divided by ``temperature``.
    Both fields are "b t", in nats, and 0 where ``mask`` is False. Of a policy with a value function it is also the
    value before each of these tokens; where the two share a trunk, that is run once. With ``noise`` prompts are not
    shared.

    Raises:
        ValueError: a prompt has no tokens, so that nothing stands before the first one after it.
    """
    sequences = on_device(sequences, next(model.parameters()).device)
    mask = sequences.mask
    policy = model.policy if isinstance(model, Valued) else model
    nonempty(sequences.prompts)
    hidden = (_joined(policy, sequences, noise) if noise else hidden_states(policy, sequences))[mask]
    logp, entropy = token_logprobs(head_of(policy), hidden, sequences.tokens[mask], temperature)
    value = None
    if isinstance(model, Valued):
        seen = hidden if model.trunk is policy else hidden_states(model.trunk, sequences)[mask]
        value = _spread(model.head(seen), mask)
    return Outputs(_spread(logp, mask), _spread(entropy, mask), value)


def values(model: Valued, sequences: Sequences) -> Float[Tensor, "b t"]:
    """The value before each masked token: what ``logprobs`` gives of it, without the policy's choices. 0 elsewhere."""
    sequences = on_device(sequences, next(model.parameters()).device)
    return _spread(model.head(hidden_states(model.trunk, sequences)[sequences.mask]), sequences.mask)


def _spread(field: Float[Tensor, " n"], mask: Bool[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    return torch.zeros(mask.shape, dtype=field.dtype, device=mask.device).masked_scatter(mask, field)


def masked_logits(model: nn.Module, sequences: Sequences, temperature: float = 1.0) -> Float[Tensor, "n v"]:
    """The whole choice at each of the n masked tokens, row by row: logits divided by ``temperature``.

    Unlike ``logprobs`` all n x vocabulary numbers exist at once, and can be differentiated any number of times.

    Raises:
        ValueError: a prompt has no tokens, so that nothing stands before the first one after it.
    """
    sequences = on_device(sequences, next(model.parameters()).device)
    return logits_of(model)(hidden_states(model, sequences)[sequences.mask]) / temperature


def hidden_states(model: nn.Module, sequences: Sequences) -> Float[Tensor, "b t d"]:
    """Hidden states before each token, masked or not.

    Raises:
        ValueError: a prompt has no tokens, so that nothing stands before the first one after it.
    """
    nonempty(sequences.prompts)
    return (_joined if len(sequences.prompts) == len(sequences.tokens) else _shared)(model, sequences)


def hidden_after(model: nn.Module, sequences: Sequences) -> Float[Tensor, "b u d"]:
    """Hidden states after the prompt (column 0) and after each token t (column t + 1), on the model's device.

    Raises:
        ValueError: a prompt has no tokens.
    """
    given = on_device(sequences, next(model.parameters()).device)
    # What stands before column t + 1 stands after token t: it is needed where token t is.
    tokens, mask = nn.functional.pad(given.tokens, (0, 1)), nn.functional.pad(given.mask, (1, 0), value=True)
    return hidden_states(model, Sequences(given.prompts, tokens, mask, given.group))


def _joined(model: nn.Module, sequences: Sequences, noise: Noise | None = None) -> Float[Tensor, "b t d"]:
    """Hidden states before each token, each row's prompt and tokens read as one sequence up to its last masked token.

    Padding stands on the right only, where a causal model can't see it: no attention mask is needed. A model that
    ``packs`` reads several sequences in one row, no row longer than the longest sequence.
    """
    t = sequences.tokens.shape[1]
    prompts = [sequences.prompts[g] for g in sequences.group.tolist()]
    ends = lengths(sequences.mask).clamp(min=1).tolist()
    rows = [torch.cat([p, y[: n - 1]]) for p, y, n in zip(prompts, sequences.tokens, ends, strict=True)]
    sizes = [len(row) for row in rows]
    bins = first_fit(sizes, max(sizes)) if packs(model) else [[i] for i in range(len(rows))]
    ids, places, row, start = laid_out(rows, bins)
    # Without places, a row is read as one sequence, and attention need not be told which position sees which.
    told = {"use_cache": False} | ({} if len(bins) == len(rows) else {"position_ids": places})
    if noise:
        embedded = model.get_input_embeddings()(ids)  # pyright: ignore[reportCallIssue]
        added = [torch.cat([noise(i, sizes[i]) for i in members]) for members in bins]
        told["inputs_embeds"] = embedded + nn.utils.rnn.pad_sequence(added, batch_first=True).to(embedded)
    else:
        told["input_ids"] = ids
    hidden = model.base_model(**told).last_hidden_state  # pyright: ignore[reportCallIssue]
    first = start + torch.tensor([len(p) - 1 for p in prompts], device=ids.device)
    before = first[:, None] + torch.arange(t, device=ids.device)
    return hidden[row[:, None], before.clamp(max=ids.shape[1] - 1)]


def _shared(model: nn.Module, sequences: Sequences) -> Float[Tensor, "b t d"]:
    """The same, each unique prompt encoded once and its cache expanded over the rows of its group."""
    tokens, group = sequences.tokens, sequences.group
    ids, valid = left_padded(sequences.prompts)
    trunk = model.base_model
    prompt = trunk(  # pyright: ignore[reportCallIssue]
        input_ids=ids, attention_mask=valid, position_ids=positions(valid), use_cache=True
    )
    last = prompt.last_hidden_state[:, -1:][group]
    if tokens.shape[1] == 1:
        return last
    cache = prompt.past_key_values
    cache.batch_select_indices(group)
    seen = valid[group]
    t = tokens.shape[1] - 1
    rest = trunk(  # pyright: ignore[reportCallIssue]
        input_ids=tokens[:, :-1],
        attention_mask=torch.cat([seen, seen.new_ones(len(tokens), t)], dim=1),
        position_ids=seen.sum(dim=1, keepdim=True) + torch.arange(t, device=tokens.device),
        past_key_values=cache,
        use_cache=True,
    )
    return torch.cat([last, rest.last_hidden_state], dim=1)


def nonempty(prompts: tuple[Int[Tensor, " _"], ...]) -> tuple[Int[Tensor, " _"], ...]:
    """The prompts, each of at least one token.

    Raises:
        ValueError: a prompt has no tokens.
    """
    for i, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"prompt {i} of {len(prompts)} has no tokens; a model needs at least one to go on from")
    return prompts


def left_padded(prompts: tuple[Int[Tensor, " _"], ...]) -> tuple[Int[Tensor, "p w"], Int[Tensor, "p w"]]:
    """Prompts as one matrix padded on the left with 0, and 1 where a token is real."""
    width = max(len(p) for p in prompts)
    pad = [width - len(p) for p in prompts]
    ids = torch.stack([nn.functional.pad(p, (n, 0)) for p, n in zip(prompts, pad, strict=True)])
    columns = torch.arange(width, device=ids.device)
    return ids, (columns >= torch.tensor(pad, device=ids.device)[:, None]).long()


def positions(valid: Int[Tensor, "p w"]) -> Int[Tensor, "p w"]:
    """The position of each real token in its own row, counted from 0; padding gets 0."""
    return (valid.cumsum(dim=1) - 1).clamp(min=0)


def on_device(sequences: Sequences, device: torch.device) -> Sequences:
    """The same sequences with their tensors on ``device``."""
    return Sequences(
        tuple(p.to(device) for p in sequences.prompts),
        sequences.tokens.to(device),
        sequences.mask.to(device),
        sequences.group.to(device),
    )


def selected(sequences: Sequences, rows: Int[Tensor, " n"]) -> Sequences:
    """Some rows of the sequences, with only their prompts, trimmed to the longest of them."""
    tokens, mask = sequences.tokens[rows], sequences.mask[rows]
    width = max(1, int(lengths(mask).max()))
    used, group = sequences.group[rows].unique(return_inverse=True)
    return Sequences(tuple(sequences.prompts[g] for g in used.tolist()), tokens[:, :width], mask[:, :width], group)


def lengths(mask: Bool[Tensor, "b t"]) -> Int[Tensor, " b"]:
    """How many columns of each row matter: up to its last masked token, since later ones can't change a loss."""
    columns = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return (mask * columns).amax(dim=1)


COPY = 8
"""How many positions of copied keys and values take the memory of one that is run in full."""


def microbatches(sequences: Sequences, tokens_per_microbatch: int, packed: bool = False) -> Iterator[Int[Tensor, " n"]]:
    """Rows to run together: within the budget of padded positions, similar lengths and whole groups together.

    A micro-batch costs (prompts x longest prompt) + (rows x (longest response + longest prompt / 8)) positions: each
    row holds a copy of its prompt's keys and values. Rows of a group stand together so that its prompt is encoded once;
    a group over the budget is split, and a single row over it runs alone. For a model that ``packs``, rows that share
    no prompt cost the positions of the packed rows, hardly more than they have tokens.
    """
    width, group = lengths(sequences.mask).tolist(), sequences.group.tolist()
    if packed and len(set(group)) == len(group):
        sizes = [len(sequences.prompts[g]) + max(1, n) - 1 for g, n in zip(group, width, strict=True)]
        yield from (torch.tensor(rows) for rows in packed_batches(sizes, tokens_per_microbatch))
        return

    def cost(rows: list[int]) -> int:
        prompts = {group[i] for i in rows}
        longest = max(len(sequences.prompts[g]) for g in prompts)
        return len(prompts) * longest + len(rows) * (max(width[i] for i in rows) + longest // COPY)

    groups: dict[int, list[int]] = {}
    for row in sorted(range(len(group)), key=lambda i: width[i]):
        groups.setdefault(group[row], []).append(row)
    taken: list[int] = []
    for rows in sorted(groups.values(), key=lambda rows: width[rows[-1]]):
        for block in [rows] if cost(rows) <= tokens_per_microbatch else [[row] for row in rows]:
            if taken and cost(taken + block) > tokens_per_microbatch:
                yield torch.tensor(taken)
                taken = []
            taken = taken + block
    if taken:
        yield torch.tensor(taken)
