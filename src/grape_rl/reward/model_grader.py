"""Reward models as graders: a batch of responses → a score of each, or a typed failure."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grape_rl.data.chat import completion_tokens, end_tokens, prompt_tokens
from grape_rl.data.messages import Messages
from grape_rl.data.shared_prompts import shared_prompt_sequences
from grape_rl.data.steps import response_steps, step_tokens
from grape_rl.maths.reward_model import StepAggregation, step_reward
from grape_rl.model.logprobs import microbatches, select_rows
from grape_rl.model.reward_head import load_reward_model, sequence_scores, step_separator, token_scores
from grape_rl.reward.model_item import RewardModelItem
from grape_rl.types import Response, Verdict, failed

Read = tuple[Int[Tensor, " _"], Int[Tensor, " _"], list[int]]
"""A response as the model reads it: the prompt's tokens, its own, and behind how many of these each step ends."""


@dataclass(frozen=True)
class RewardModel:
    """A reward model that grades, and does not learn: ``separator`` is None where it scores whole responses."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    end: tuple[int, ...]
    context: int
    separator: str | None
    tokens_per_microbatch: int
    precision: Callable[[], AbstractContextManager[object]] = nullcontext

    def checked(self, aggregate: StepAggregation | None, center: float = 0.0, scale: float = 1.0) -> None:
        """That what is asked of it goes with what it is.

        Raises:
            ValueError: ``aggregate`` for a model without steps; a center or a scale for one whose reward is a
                probability.
        """
        if aggregate and self.separator is None:
            raise ValueError(
                f"reward model {self.name!r}: aggregate is {aggregate}, and it scores whole responses, without steps"
            )
        if self.separator is not None and (center, scale) != (0.0, 1.0):
            raise ValueError(
                f"reward model {self.name!r}: center and scale are for scores, and this one gives probabilities"
            )


def reward_model(
    name: str,
    device: torch.device,
    tokens_per_microbatch: int,
    precision: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> RewardModel:
    """The reward model at ``name``, ready to grade on ``device``.

    Raises:
        ValueError: it cannot be loaded, or is no reward model.
    """
    model, tokenizer = load_reward_model(name, device)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**30
    end, separator = end_tokens(tokenizer), step_separator(model.requires_grad_(False))
    return RewardModel(name, model, tokenizer, end, context, separator, tokens_per_microbatch, precision)


def rewards(
    of: RewardModel, responses: Sequence[Response], item: str, aggregate: StepAggregation | None = None
) -> list[Verdict]:
    """Each response's reward as a verdict of ``item``: r(x, y) in the model's own scale, of any size.

    The text is read anew by the reward model's tokenizer: messages through its own chat template, which plain text does
    not go through. The score is taken at the end token, behind the response's last word, or at that last word where the
    response was cut off. A process reward model splits the response at its separator, and the reward is the
    ``aggregate`` (min by default) of the probabilities of the steps. Graded in batches of similar length.

    A response that is too long for the model is a missing verdict, ``truncated``; one that its tokenizer or template
    refuses, and a score that is not finite, are ``infrastructure``.
    """
    read: dict[int, Read] = {}
    verdicts: dict[int, Verdict] = {}
    for i, response in enumerate(responses):
        try:
            read[i] = _read(of, response)
        except ValueError as error:
            verdicts[i] = failed(item, "infrastructure", " ".join(str(error).split()), of.name)
            continue
        length = len(read[i][0]) + len(read[i][1])
        if length > of.context:
            reason = f"{length} tokens with the prompt, and the reward model takes {of.context}"
            verdicts[i] = failed(item, "truncated", reason, of.name)
            del read[i]
    for i, found in zip(read, _scored(of, list(read.values()), aggregate or "min"), strict=True):
        if math.isfinite(found):
            verdicts[i] = Verdict(item, found, reasoning=f"reward {found:.4g}", provenance=of.name)
        else:
            verdicts[i] = failed(item, "infrastructure", f"the reward model's score is {found}", of.name)
    return [verdicts[i] for i in range(len(responses))]


def item_verdicts(of: RewardModel, spec: RewardModelItem, item: str, responses: Sequence[Response]) -> list[Verdict]:
    """The responses' verdicts on a rubric's item: their rewards, brought to [0, 1] as the item says."""
    told: list[Verdict] = []
    for found in rewards(of, responses, item, spec.aggregate):
        if not found.missing:
            score, confidence = spec.graded(found.score, of.separator is not None)
            found = replace(found, score=score, confidence=confidence)
        told.append(found)
    return told


def readable(of: RewardModel, rows: Sequence[Mapping[str, Any]]) -> None:
    """That the model can read the rows' prompts.

    Raises:
        ValueError: messages, and its tokenizer has no chat template, or one that refuses them; naming the row.
    """
    for index, row in enumerate(rows):
        if isinstance(row.get("prompt"), list):
            prompt_tokens(of.tokenizer, row["prompt"], f"reward model {of.name!r}: row {index}")


def _read(of: RewardModel, response: Response) -> Read:
    told = response.row.get("prompt")
    prompt: str | Messages = told if isinstance(told, list) else response.prompt
    asked = prompt_tokens(of.tokenizer, prompt)
    if of.separator is not None:
        steps = step_tokens(of.tokenizer, response_steps(response.text, of.separator), of.separator)
        ends = torch.tensor([len(step) for step in steps]).cumsum(0).tolist()
        return asked, torch.cat(steps), ends
    answer: Any = [{"role": "assistant", "content": response.text}] if isinstance(prompt, list) else response.text
    tokens = completion_tokens(of.tokenizer, prompt, answer, of.end)
    tokens = tokens if response.finish == "stop" else tokens[:-1]  # cut off: no end is claimed
    return asked, tokens, [len(tokens)]


@torch.no_grad()
def _scored(of: RewardModel, found: Sequence[Read], aggregate: StepAggregation) -> list[float]:
    """The reward of each response."""
    if not found:
        return []
    sequences = shared_prompt_sequences((prompt, tokens) for prompt, tokens, _ in found)
    out = [math.nan] * len(found)
    for rows in microbatches(sequences, of.tokens_per_microbatch):
        part = select_rows(sequences, rows)
        with of.precision():
            told = (sequence_scores if of.separator is None else token_scores)(of.model, part).float().cpu()
        for i, each in zip(rows.tolist(), told, strict=True):
            ends = torch.tensor(found[i][2])
            out[i] = float(each if of.separator is None else step_reward(each[ends - 1], aggregate))
    return out
