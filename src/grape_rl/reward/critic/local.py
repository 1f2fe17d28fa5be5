"""A critic that runs here: a causal language model, and how likely it is to answer by each of an item's labels.

No text is sampled and no reasoning written, so nothing can be cut off or misread: the labels' probabilities are exact.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grape_rl.data.chat import completion_tokens, end_tokens, prompt_tokens
from grape_rl.model.load import load
from grape_rl.model.logprobs import compute_logprobs, microbatches, select_rows
from grape_rl.reward.critic.faults import fault
from grape_rl.reward.critic.item import Judge
from grape_rl.reward.critic.plan import Job
from grape_rl.reward.critic.prompt import mark_of, messages
from grape_rl.reward.critic.reply import Reply, judged, readings
from grape_rl.types import Sequences, Verdict, failed

Tokens = Int[Tensor, " _"]


@dataclass(frozen=True)
class LocalCritic:
    """A model that judges, and does not learn."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    end: tuple[int, ...]
    context: int
    tokens_per_microbatch: int
    precision: Callable[[], AbstractContextManager[object]] = nullcontext

    def answers(self, judge: Judge) -> list[Tokens]:
        """The tokens of each label as a whole answer, the end of the assistant's turn behind it.

        With the end, no answer begins another: "no" is not also the beginning of "not sure". So the labels'
        probabilities are those of answers that exclude one another.

        Raises:
            ValueError: the chat template refuses the conversation, or makes the same answer of two labels.
        """
        asked: Any = [{"role": "user", "content": "?"}]
        found = [
            completion_tokens(self.tokenizer, asked, [{"role": "assistant", "content": label}], self.end, self.name)
            for label in judge.labels
        ]
        if len({tuple(each.tolist()) for each in found}) < len(found):
            raise ValueError(f"critic {self.name!r}: the chat template makes the same answer of two labels")
        return found

    def checked(self, judge: Judge) -> None:
        """That it can judge an item.

        Raises:
            ValueError: the item wants another confidence than the labels' probabilities, or the tokenizer has no chat
                template, or one that refuses what is asked.
        """
        if judge.confidence.mode != "logprob":
            raise ValueError(
                f"critic {self.name!r} runs here, and tells how likely each label is, nothing else: "
                f"say 'confidence: {{mode: logprob}}', not {judge.confidence.mode}"
            )
        self.answers(judge)
        prompt_tokens(self.tokenizer, [{"role": "system", "content": "?"}, {"role": "user", "content": "?"}], self.name)


def local_critic(
    name: str,
    device: torch.device,
    tokens_per_microbatch: int,
    precision: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> LocalCritic:
    """The critic at ``name``, a folder or a model of the Hub, ready to judge on ``device``.

    Raises:
        ValueError: it cannot be loaded, or is no causal language model.
    """
    model, tokenizer = load(name, device)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**30
    end = end_tokens(tokenizer, model.generation_config)
    return LocalCritic(name, model.requires_grad_(False), tokenizer, end, context, tokens_per_microbatch, precision)


def local_verdicts(of: LocalCritic, jobs: Sequence[Job]) -> list[Verdict]:
    """The verdicts of the jobs, in their order: the likeliest label, and its probability among them as confidence.

    The probability of a label is that of the model answering by it and by nothing else. A job depends on no other: its
    mark is made of its own texts. What the model has no room for is ``truncated``; what its template refuses, and
    probabilities that are not finite, are ``infrastructure``.
    """
    verdicts: dict[int, Verdict] = {}
    asked: dict[int, Tokens] = {}
    answers: dict[int, list[Tokens]] = {}
    for i, (item, judge, response, worst) in enumerate(jobs):
        if why := fault(judge, response):
            verdicts[i] = Verdict(item, worst, 1.0, "policy_fault", why, _provenance(judge))
            continue
        mark = mark_of(response.prompt)
        try:
            asked[i] = prompt_tokens(of.tokenizer, messages([judge], response, mark), f"critic {of.name!r}")
            answers[i] = of.answers(judge)
        except ValueError as error:
            verdicts[i] = failed(item, "infrastructure", " ".join(str(error).split()), _provenance(judge))
            continue
        length = len(asked[i]) + max(map(len, answers[i]))
        if length > of.context:
            reason = f"{length} tokens with the answer, and the critic takes {of.context}"
            verdicts[i] = failed(item, "truncated", reason, _provenance(judge))
            del answers[i]
    told = iter(_answer_logp(of, [(asked[i], answers[i]) for i in answers]))
    for i, of_job in answers.items():
        item, judge = jobs[i].item, jobs[i].judge
        logp = dict(zip(judge.labels, next(told), strict=True))
        tokens = len(asked[i]) + sum(map(len, of_job))
        if all(map(math.isfinite, logp.values())):
            found = judged(item, judge, readings(Reply(label_logp=logp), [judge]), _provenance(judge))
            verdicts[i] = replace(found, tokens=tokens)
        else:
            verdicts[i] = failed(item, "infrastructure", f"the labels' log-probabilities: {logp}", _provenance(judge))
    return [verdicts[i] for i in range(len(jobs))]


def _provenance(judge: Judge) -> str:
    return f"critic {judge.critic}"


@torch.no_grad()
def _answer_logp(of: LocalCritic, asked: Sequence[tuple[Tokens, list[Tokens]]]) -> list[list[float]]:
    """The log-probability of each answer to each prompt, all of its tokens together."""
    if not asked:
        return []
    sequences = answer_sequences(asked)
    logp = torch.full((len(sequences.tokens),), math.nan, dtype=torch.float64)
    for rows in microbatches(sequences, of.tokens_per_microbatch):
        with of.precision():
            logp[rows] = compute_logprobs(of.model, select_rows(sequences, rows)).logp.double().sum(dim=1).cpu()
    return [part.tolist() for part in logp.split([len(answers) for _, answers in asked])]


def answer_sequences(asked: Sequence[tuple[Tokens, list[Tokens]]]) -> Sequences:
    """Every answer to every prompt as one batch, row by row; equal prompts are one group, and encoded once.

    >>> yes, no = torch.tensor([5, 9]), torch.tensor([6, 7, 9])
    >>> answer_sequences([(torch.tensor([1, 2]), [yes, no])]).tokens.tolist()
    [[5, 9, 0], [6, 7, 9]]
    """
    prompts: dict[tuple[int, ...], int] = {}
    group = [prompts.setdefault(tuple(p.tolist()), len(prompts)) for p, answers in asked for _ in answers]
    answers = [answer for _, found in asked for answer in found]
    tokens = pad_sequence(answers, batch_first=True)
    mask = torch.arange(tokens.shape[1]) < torch.tensor([len(answer) for answer in answers])[:, None]
    return Sequences(tuple(torch.tensor(p) for p in prompts), tokens, mask, torch.tensor(group))
