"""A critic in this process: the probability that a causal language model answers with each of an item's labels.

It samples no text and writes no reasoning, so no answer is truncated or misread. The labels' probabilities are exact.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grape_rl.data.chat import completion_tokens, end_tokens, prompt_tokens
from grape_rl.data.shared_prompts import Tokens, shared_prompt_sequences
from grape_rl.model.forward import ForwardContext
from grape_rl.model.load import load
from grape_rl.model.logprobs import compute_logprobs, microbatches, select_rows
from grape_rl.reward.critic.judge import Judge
from grape_rl.reward.critic.policy_faults import policy_fault_reason
from grape_rl.reward.critic.prompt import fence_mark, judge_messages
from grape_rl.reward.critic.questions import CriticJob
from grape_rl.reward.critic.reply import Reply, combine_answers, parse_reply
from grape_rl.types import Verdict, failed


@dataclass(frozen=True)
class LocalCritic:
    """A model that judges and is not trained.

    ``end`` is the tokens that end an assistant's turn, and ``context`` the largest number of tokens that the model
    accepts. ``forward.temperature`` is not used: probabilities are at temperature 1.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    end: tuple[int, ...]
    context: int
    forward: ForwardContext

    def label_tokens(self, judge: Judge) -> list[Tokens]:
        """The tokens of each label as a whole answer, up to and including the end of the assistant's turn.

        Because of the end token no answer is a prefix of another: "no" is not the beginning of "not sure". The labels
        are therefore mutually exclusive events.

        Raises:
            ValueError: the chat template refuses the conversation, or renders two labels as the same answer.
        """
        conversation: Any = [{"role": "user", "content": "?"}]
        answers = [
            completion_tokens(
                self.tokenizer, conversation, [{"role": "assistant", "content": label}], self.end, self.name
            )
            for label in judge.labels
        ]
        if len({tuple(answer.tolist()) for answer in answers}) < len(answers):
            raise ValueError(f"critic {self.name!r}: the chat template renders two labels as the same answer")
        return answers

    def check_judge(self, judge: Judge) -> None:
        """Check that the critic can judge an item.

        Raises:
            ValueError: the item's confidence mode is not ``logprob``, or the tokenizer has no chat template, or one
                that refuses the critic's prompt.
        """
        if judge.confidence.mode != "logprob":
            raise ValueError(
                f"critic {self.name!r} is a local model, which gives only the probabilities of labels: set "
                f"'confidence: {{mode: logprob}}', not {judge.confidence.mode}"
            )
        self.label_tokens(judge)
        prompt_tokens(self.tokenizer, [{"role": "system", "content": "?"}, {"role": "user", "content": "?"}], self.name)


def load_local_critic(name: str, device: torch.device, forward: ForwardContext) -> LocalCritic:
    """Load the critic at ``name``, a folder or a model of the Hub, onto ``device``.

    Raises:
        ValueError: the model cannot be loaded, or is not a causal language model.
    """
    model, tokenizer = load(name, device)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**30
    end = end_tokens(tokenizer, model.generation_config)
    return LocalCritic(name, model.requires_grad_(False), tokenizer, end, context, forward)


def local_verdicts(critic: LocalCritic, jobs: Sequence[CriticJob]) -> list[Verdict]:
    """The verdicts of the jobs, in order: the most probable label, with its probability among the labels as confidence.

    A label's probability is the probability of the whole answer, up to the end of the turn. Jobs are independent of
    each other: the mark of a job's fence depends on its own prompt only.

    A verdict is missing with status ``truncated`` if the conversation exceeds the model's context. Its status is
    ``infrastructure`` if the chat template refuses the conversation or a probability is not finite.
    """
    verdicts: dict[int, Verdict] = {}
    prompts: dict[int, Tokens] = {}
    answers: dict[int, list[Tokens]] = {}
    # Tokenize. A job that cannot be judged gets its verdict here.
    for i, (item, judge, response, worst) in enumerate(jobs):
        if reason := policy_fault_reason(judge, response):
            verdicts[i] = Verdict(item, worst, 1.0, "policy_fault", reason, _provenance(judge))
            continue
        messages = judge_messages([judge], response, fence_mark(response.prompt))
        try:
            prompts[i] = prompt_tokens(critic.tokenizer, messages, f"critic {critic.name!r}")
            answers[i] = critic.label_tokens(judge)
        except ValueError as error:
            verdicts[i] = failed(item, "infrastructure", " ".join(str(error).split()), _provenance(judge))
            continue
        length = len(prompts[i]) + max(map(len, answers[i]))
        if length > critic.context:
            reason = f"{length} tokens with the answer, and the critic's context is {critic.context}"
            verdicts[i] = failed(item, "truncated", reason, _provenance(judge))
            del answers[i]
    # Compute the log-probability of every answer in one pass, then split it by job.
    pairs = [(prompts[i], answer) for i in answers for answer in answers[i]]
    all_logp = iter(_answer_logp(critic, pairs))
    for i, job_answers in answers.items():
        item, judge = jobs[i].item, jobs[i].judge
        logp = {label: next(all_logp) for label in judge.labels}
        tokens = len(prompts[i]) + sum(map(len, job_answers))
        if all(map(math.isfinite, logp.values())):
            verdict = combine_answers(item, judge, parse_reply(Reply(label_logp=logp), [judge]), _provenance(judge))
            verdicts[i] = replace(verdict, tokens=tokens)
        else:
            reason = f"a log-probability of the labels is not finite: {logp}"
            verdicts[i] = failed(item, "infrastructure", reason, _provenance(judge))
    return [verdicts[i] for i in range(len(jobs))]


def _provenance(judge: Judge) -> str:
    return f"critic {judge.critic}"


@torch.no_grad()
def _answer_logp(critic: LocalCritic, pairs: Sequence[tuple[Tokens, Tokens]]) -> list[float]:
    """The log-probability of each answer given its prompt, summed over the answer's tokens."""
    if not pairs:
        return []
    sequences = shared_prompt_sequences(pairs)
    logp = torch.full((len(pairs),), math.nan, dtype=torch.float64)
    for rows in microbatches(sequences, critic.forward.tokens_per_microbatch):
        with critic.forward.precision():
            logp[rows] = compute_logprobs(critic.model, select_rows(sequences, rows)).logp.double().sum(dim=1).cpu()
    return logp.tolist()
