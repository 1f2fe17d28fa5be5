"""From a configuration to the parts of a run: rows, model, prompts, scorer. Each complains before any training."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grape_rl.config import Config, Data, Scratch
from grape_rl.data.chat import Example, end_tokens, examples, fitting, prompt_tokens
from grape_rl.data.preferences import Pair, contrasted, pairs, with_preferences
from grape_rl.data.rows import require, rows, with_prompts
from grape_rl.data.tasks import task_split
from grape_rl.data.teacher import demonstrated
from grape_rl.maths.grape import unweighted
from grape_rl.methods import Algorithm, Demonstrations, Preferences, Responses, keywords, objective
from grape_rl.model.load import frozen, load, readied
from grape_rl.model.scratch import bpe_tokenizer, character_tokenizer, scratch, shared_passages
from grape_rl.reward.callables import python_callable
from grape_rl.reward.rubric import check_rows, load_rubric
from grape_rl.reward.scores import Scorer, function_scorer, rubric_scorer
from grape_rl.training.pairs import Reference, pair_logprobs
from grape_rl.training.source import Prompt

Row = dict[str, Any]
TASK_ROWS = 2000


@dataclass(frozen=True)
class Policy:
    """The model that is trained, its tokenizer, the tokens that end a response, and its longest sequence in tokens."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    end: tuple[int, ...]
    context: int


def device(name: str) -> torch.device:
    """The device of that name; ``auto`` is CUDA where there is one.

    Raises:
        ValueError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r}: not here ({str(error).splitlines()[0]})") from error


def data_rows(config: Config, row: Algorithm) -> tuple[list[Row], list[Row]]:
    """Training rows and held-out rows as the method reads them.

    Each has a ``prompt``; to demonstrate, the training rows have a ``completion``; to learn from preferences, both have
    a ``chosen`` and a ``rejected``.
    """
    data = config.data
    train, test = _split(config)
    prompt = "prompt" if data.tasks else data.prompt
    source, test_source = data.source or "tasks", data.held_out or data.source or "tasks"
    if isinstance(row.source, Preferences):
        return _preferred(config, train, test)
    completion = None
    if isinstance(row.source, Demonstrations):
        completion = "completion" if data.tasks else data.completion
        train = demonstrated(train, data.teacher.wrong, data.teacher.styles, config.seed) if data.tasks else train
    return (
        _prompted(data, train, prompt, completion, source),
        _prompted(data, test, prompt, None, test_source) if test else [],
    )


def _split(config: Config) -> tuple[list[Row], list[Row]]:
    """Training rows and held-out rows as the data has them."""
    data = config.data
    wanted = data.held_out_rows
    if data.tasks:
        return task_split(data.tasks, data.rows or TASK_ROWS, wanted, config.seed)
    assert data.source is not None
    if data.held_out and wanted:
        return _read(data.source, data.rows), _read(data.held_out, wanted)
    both = _read(data.source, data.rows and data.rows + wanted)
    train, test = both[wanted:], both[:wanted]
    if not train:
        raise ValueError(f"{data.source}: its {len(both)} rows are all held out; none are left to train on")
    return train, test


def _preferred(config: Config, train: list[Row], test: list[Row]) -> tuple[list[Row], list[Row]]:
    data = config.data
    if data.tasks:  # together, so that a wrong answer can be found for the only held-out row of a task
        both = contrasted([*train, *test], data.teacher.wrong, list(data.teacher.styles), config.seed)
        both = [_conversation(row, "prompt", "chosen", "rejected") for row in both] if data.chat else both
        ready = with_preferences(both, system=data.system, source="tasks")
        return ready[: len(train)], ready[len(train) :]
    columns = (data.prompt, data.chosen, data.rejected)
    if data.chat:
        train, test = ([_conversation(row, *columns) for row in part] for part in (train, test))
    return (
        with_preferences(train, *columns, data.system, str(data.source)),
        with_preferences(test, *columns, data.system, str(data.held_out or data.source)),
    )


def _conversation(row: Row, prompt: str, chosen: str, rejected: str) -> Row:
    """The row with its plain prompt and responses as messages; what is amiss with it is left to be told.

    Raises:
        ValueError: plain responses without a prompt: what both begin with is no user's message of its own.
    """
    if prompt not in row:
        if any(isinstance(row.get(name), str) for name in (chosen, rejected)):
            raise ValueError(f"data.chat makes messages of plain text, and so needs a column {prompt!r}; there is none")
        return row
    if isinstance(row[prompt], str) and (not row[prompt].strip() or isinstance(row.get(chosen), list)):
        return row
    roles = {prompt: "user", chosen: "assistant", rejected: "assistant"}
    return row | {name: _message(row[name], role) for name, role in roles.items() if name in row}


def _read(source: str, limit: int | None) -> list[Row]:
    """The rows of a file, or of NAME[:CONFIGURATION[:SPLIT]] of the Hub."""
    name, _, split = source.rpartition(":")
    if ":" in name and not Path(source).exists():
        return rows(name.rstrip(":"), split, limit)
    return rows(source, limit=limit)


def _prompted(data: Data, found: list[Row], prompt: str, completion: str | None, source: str) -> list[Row]:
    require(found, [prompt, *([completion] if completion else [])], source)
    if not data.chat:
        return with_prompts(found, prompt, completion, data.system, source)
    roles = {prompt: "user"} | ({completion: "assistant"} if completion else {})
    chats = [row | {name: _message(row[name], role) for name, role in roles.items()} for row in found]
    return with_prompts(chats, prompt, completion, data.system, source)


def _message(content: Any, role: str) -> Any:
    return [{"role": role, "content": content}] if isinstance(content, str) and content.strip() else content


def start_policy(config: Config, train: Sequence[Row]) -> Policy:
    """The policy that the run starts from: built from scratch, or loaded."""
    where = device(config.device)
    if config.model.scratch:
        shape = config.model.scratch
        tokenizer = _scratch_tokenizer(shape, config.data, train)
        built = scratch(tokenizer, shape.hidden, shape.layers, shape.heads, shape.context, config.seed)
        return policy(readied(built, where), tokenizer)
    return policy(*load(config.model.name, where))


def policy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Policy:
    """The policy of a loaded model: its end tokens, and how long a sequence it takes."""
    embeddings: Any = model.get_input_embeddings()
    rows = len(embeddings.weight)
    if len(tokenizer) > rows:
        raise ValueError(f"the tokenizer has {len(tokenizer)} tokens, and the model's embeddings only {rows}")
    text_config = model.config.get_text_config()
    context = getattr(text_config, "max_position_embeddings", None) or 2**30
    return Policy(model, tokenizer, end_tokens(tokenizer, model.generation_config), context)


def _scratch_tokenizer(shape: Scratch, data: Data, train: Sequence[Row]) -> Any:
    said = ("prompt", "completion", "chosen", "rejected")
    texts = [_plain(row[key]) for row in train for key in said if key in row]
    if shape.tokenizer == "bpe":
        return bpe_tokenizer(texts, shape.vocabulary)
    by_task: dict[Any, list[str]] = {}
    for row in train:
        by_task.setdefault(row.get("task"), []).append(_plain(row["prompt"]))
    passages = [passage for prompts in by_task.values() for passage in shared_passages(prompts)]
    if data.tasks:
        fixed = [part for style in data.teacher.styles for part in style.split("{answer}")]
        passages += [part for part in fixed if len(part) >= 4]
    return character_tokenizer(texts, list(dict.fromkeys(passages)))


def _plain(content: Any) -> str:
    """Text, or a conversation's messages as text."""
    return content if isinstance(content, str) else "\n".join(str(m.get("content") or "") for m in content)


def sampling_prompts(found: Sequence[Row], at: Policy, max_tokens: int, where: str) -> list[Prompt]:
    """The rows' prompts in tokens, each short enough that ``max_tokens`` more fit into the context."""
    tokens = [prompt_tokens(at.tokenizer, row["prompt"], f"{where}, row {i}") for i, row in enumerate(found)]
    if max_tokens >= at.context:
        raise ValueError(f"sampling.max_tokens is {max_tokens}, and the model's whole context is {at.context} tokens")
    fitting(tokens, at.context - max_tokens, where)
    return [Prompt(t, _plain(row["prompt"]), row) for t, row in zip(tokens, found, strict=True)]


def demonstration_examples(
    found: Sequence[Row], at: Policy, max_length: int
) -> tuple[list[Example], list[tuple[str, str]]]:
    """The rows as examples, and what there is to warn of: rows that lost their end, or were left out."""
    limit = min(max_length, at.context)
    out, lengths = examples(found, at.tokenizer, at.end, limit)
    warnings: list[tuple[str, str]] = []
    if lengths.truncated:
        warnings.append(("cut", f"{lengths.truncated} of {lengths.rows} completions are cut at {limit} tokens"))
    if lengths.dropped:
        warnings.append(
            ("left_out", f"{lengths.dropped} of {lengths.rows} prompts fill {limit} tokens alone: left out")
        )
    return out, warnings


def preference_pairs(
    config: Config, found: Sequence[Row], at: Policy, row: Algorithm, chosen: dict[str, Any], source: str = "data"
) -> tuple[list[Pair], list[tuple[str, str]]]:
    """The rows as pairs in tokens, and what there is to warn of. A loss that reads rewards is tried on theirs.

    Raises:
        ValueError: as ``pairs``, and rewards that the method's loss refuses: before training, not at the pair's turn.
    """
    limit = min(config.data.max_length, at.context)
    columns = ("chosen_reward", "rejected_reward")
    if config.data.source:
        columns = (config.data.chosen_reward, config.data.rejected_reward)
    made, lengths = pairs(found, at.tokenizer, at.end, limit, columns, source)
    told = torch.tensor([[pair.chosen_reward, pair.rejected_reward] for pair in made])
    rewards = {"chosen_reward": told[:, 0], "rejected_reward": told[:, 1]}
    for term in objective(row, chosen).terms:
        if not rewards.keys() & set(term.parameters):
            continue
        try:
            term.function(**{name: rewards.get(name, told[:, 0]) for name in term.parameters}, **term.options)
        except ValueError as error:
            raise ValueError(
                f"{source}: {row.name}: {error} (rewards are read from the columns {columns[0]!r} and {columns[1]!r}; "
                f"there are {', '.join(map(repr, found[0]))})"
            ) from error
    warnings: list[tuple[str, str]] = []
    if lengths.truncated:
        warnings.append(("cut", f"{lengths.truncated} of {lengths.rows} pairs have a response cut at {limit} tokens"))
    if lengths.dropped:
        warnings.append(("left_out", f"{lengths.dropped} of {lengths.rows} pairs do not differ in {limit} tokens"))
    return made, warnings


def pair_reference(
    config: Config,
    row: Algorithm,
    chosen: dict[str, Any],
    start: Policy,
    precision: Callable[[], AbstractContextManager[object]],
) -> Reference | None:
    """The start model's log-probs of pairs, for a method that compares the policy with it."""
    read = {name for term in objective(row, chosen).terms for name in term.parameters}
    if not any(name.startswith("reference_") for name in read):
        return None
    limit = config.tokens_per_microbatch
    return partial(pair_logprobs, frozen(start.model), tokens_per_microbatch=limit, precision=precision)


def scorer(config: Config, row: Algorithm, chosen: dict[str, Any], graded: Sequence[Row]) -> Scorer:
    """The scorer that the configuration names, checked against the rows that it will grade."""
    if config.reward.rubric:
        rubric = load_rubric(config.reward.rubric, config.reward.allow)
        check_rows(rubric, graded)
        aggregate = row.source.aggregate if isinstance(row.source, Responses) else unweighted
        return rubric_scorer(rubric, partial(aggregate, **keywords(aggregate, chosen)))
    assert config.reward.function is not None
    place, _, name = config.reward.function.rpartition(":")
    folder, place = (Path(place).parent, Path(place).name) if place.endswith(".py") else (Path(), place)
    return function_scorer(python_callable(f"{place}:{name}", folder, allow=[place]), name)
