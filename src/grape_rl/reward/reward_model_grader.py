"""Grading by reward models: a batch of responses → one verdict per response, a score or a typed failure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grape_rl.data.chat import completion_tokens, end_tokens, prompt_tokens
from grape_rl.data.chat_template import template_arguments
from grape_rl.data.messages import Messages
from grape_rl.data.shared_prompts import shared_prompt_sequences
from grape_rl.data.steps import response_steps, step_tokens
from grape_rl.maths.reward_model import StepAggregation, step_reward
from grape_rl.model.forward import ForwardContext
from grape_rl.model.logprobs import microbatches, select_rows
from grape_rl.model.reward_head import load_reward_model, sequence_scores, step_separator, token_scores
from grape_rl.reward.reward_model_item import RewardModelItem
from grape_rl.types import Response, Verdict, failed

TokenizedResponse = tuple[Int[Tensor, " _"], Int[Tensor, " _"], list[int]]
"""The prompt's tokens, the response's tokens, and the number of response tokens up to the end of each step."""


@dataclass(frozen=True)
class RewardModel:
    """A frozen reward model that grades responses.

    ``context`` is its maximum length in tokens. ``separator`` ends the steps of a process reward model; it is None for
    a model that scores whole responses.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    end: tuple[int, ...]
    context: int
    separator: str | None
    forward: ForwardContext

    def check_settings(self, aggregate: StepAggregation | None, center: float = 0.0, scale: float = 1.0) -> None:
        """Raise unless the settings fit the kind of model.

        Raises:
            ValueError: ``aggregate`` for a model that scores whole responses, or a center or scale for a process reward
                model, whose reward is a probability.
        """
        if aggregate and self.separator is None:
            raise ValueError(
                f"reward model {self.name!r}: aggregate is {aggregate}, but the model scores whole responses, not steps"
            )
        if self.separator is not None and (center, scale) != (0.0, 1.0):
            raise ValueError(
                f"reward model {self.name!r}: center and scale do not apply: a process reward model gives probabilities"
            )


def load_grader(name: str, device: torch.device, forward: ForwardContext) -> RewardModel:
    """Load a reward model, a folder or a model of the Hub, onto ``device``.

    Raises:
        ValueError: it cannot be loaded, or is not a reward model.
    """
    model, tokenizer = load_reward_model(name, device)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**30
    end, separator = end_tokens(tokenizer), step_separator(model.requires_grad_(False))
    return RewardModel(name, model, tokenizer, end, context, separator, forward)


def reward_verdicts(
    grader: RewardModel, responses: Sequence[Response], item: str, aggregate: StepAggregation | None = None
) -> list[Verdict]:
    """Each response's reward r(x, y) as a verdict on ``item``, in the model's own scale, of any size.

    The text is tokenized with the reward model's tokenizer. Messages go through its chat template; plain text does not.
    The score is taken at the end token after the response, or at its last token if the response was truncated. A
    process reward model splits the response at its separator, and the reward is the ``aggregate`` (default: min) of the
    step probabilities. Responses are grouped into micro-batches of similar length.

    A response too long for the model is a missing verdict, ``truncated``. A response that the tokenizer or template
    refuses, and a score that is not finite, are ``infrastructure``.
    """
    tokenized: dict[int, TokenizedResponse] = {}
    verdicts: dict[int, Verdict] = {}
    for i, response in enumerate(responses):
        try:
            tokenized[i] = _tokenized(grader, response)
        except ValueError as error:
            verdicts[i] = failed(item, "infrastructure", " ".join(str(error).split()), grader.name)
            continue
        length = len(tokenized[i][0]) + len(tokenized[i][1])
        if length > grader.context:
            reason = f"{length} tokens with the prompt, but the reward model takes at most {grader.context}"
            verdicts[i] = failed(item, "truncated", reason, grader.name)
            del tokenized[i]
    rewards = _rewards(grader, list(tokenized.values()), aggregate or "min")
    for i, reward in zip(tokenized, rewards, strict=True):
        if math.isfinite(reward):
            verdicts[i] = Verdict(item, reward, reasoning=f"reward {reward:.4g}", provenance=grader.name)
        else:
            verdicts[i] = failed(item, "infrastructure", f"the reward model's score is {reward}", grader.name)
    return [verdicts[i] for i in range(len(responses))]


def item_verdicts(
    grader: RewardModel, settings: RewardModelItem, item: str, responses: Sequence[Response]
) -> list[Verdict]:
    """The responses' verdicts on a rubric item: their rewards, mapped to [0, 1] by the item's settings."""
    verdicts: list[Verdict] = []
    for verdict in reward_verdicts(grader, responses, item, settings.aggregate):
        if not verdict.missing:
            score, confidence = settings.graded(verdict.score, grader.separator is not None)
            verdict = replace(verdict, score=score, confidence=confidence)
        verdicts.append(verdict)
    return verdicts


def check_prompts(grader: RewardModel, rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise unless the reward model can tokenize the prompt of every row.

    Raises:
        ValueError: a prompt has messages, and the tokenizer has no chat template or its template refuses them; names
            the row.
    """
    for index, row in enumerate(rows):
        if isinstance(row.get("prompt"), list):
            where = f"reward model {grader.name!r}: row {index}"
            prompt_tokens(grader.tokenizer, row["prompt"], where, template_arguments(row, where))


def _tokenized(grader: RewardModel, response: Response) -> TokenizedResponse:
    messages = response.row.get("prompt")
    prompt: str | Messages = messages if isinstance(messages, list) else response.prompt
    where = f"reward model {grader.name!r}"
    arguments = template_arguments(response.row, where) if isinstance(messages, list) else {}
    before = prompt_tokens(grader.tokenizer, prompt, where, arguments)
    if grader.separator is not None:
        steps = step_tokens(grader.tokenizer, response_steps(response.text, grader.separator), grader.separator)
        ends = torch.tensor([len(step) for step in steps]).cumsum(0).tolist()
        return before, torch.cat(steps), ends
    answer: Any = [{"role": "assistant", "content": response.text}] if isinstance(prompt, list) else response.text
    tokens = completion_tokens(grader.tokenizer, prompt, answer, grader.end, where, arguments)
    tokens = tokens if response.finish == "stop" else tokens[:-1]  # a truncated response has no end token
    return before, tokens, [len(tokens)]


@torch.no_grad()
def _rewards(grader: RewardModel, tokenized: Sequence[TokenizedResponse], aggregate: StepAggregation) -> list[float]:
    """The reward of each response."""
    if not tokenized:
        return []
    sequences = shared_prompt_sequences((prompt, tokens) for prompt, tokens, _ in tokenized)
    rewards = [math.nan] * len(tokenized)
    for rows in microbatches(sequences, grader.forward.tokens_per_microbatch):
        microbatch = select_rows(sequences, rows)
        with grader.forward.precision():
            values = (
                (sequence_scores if grader.separator is None else token_scores)(grader.model, microbatch).float().cpu()
            )
        for i, value in zip(rows.tolist(), values, strict=True):
            ends = torch.tensor(tokenized[i][2])
            rewards[i] = float(value if grader.separator is None else step_reward(value[ends - 1], aggregate))
    return rewards
