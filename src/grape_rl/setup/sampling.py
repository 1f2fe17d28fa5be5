"""Sampling in a run: its sampler and its prompts."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from grape_rl.data.chat import check_prompt_lengths, prompt_tokens
from grape_rl.data.chat_template import template_arguments
from grape_rl.model.sampler import OnResponse, SamplingParams, sample
from grape_rl.rollout.collect import Sampler
from grape_rl.rollout.decoded_responses import Prompt
from grape_rl.setup.policy import Policy
from grape_rl.setup.rows import Row, graders_text
from grape_rl.setup.setup import Setup
from grape_rl.types import Rollout


def policy_sampler(setup: Setup, sampling: SamplingParams) -> Sampler:
    """A function that samples from the policy, with the weights that it has when called."""

    params = replace(sampling, generation_batch_size=setup.config.generation_batch_size)

    def sampler(prompts: Sequence[Tensor], n: int, seed: int, version: int, ended: OnResponse | None) -> Rollout:
        policy = setup.policy
        with setup.precision():
            rollout = sample(policy.model, prompts, n, params, policy.end_tokens, seed, ended)
        return replace(rollout, version=version)

    return sampler


def sampling_prompts(rows: Sequence[Row], policy: Policy, max_tokens: int, origin: str) -> list[Prompt]:
    """The rows' prompts in tokens.

    Raises:
        ValueError: a prompt leaves no room for ``max_tokens`` more tokens in the policy's context.
    """
    tokens = [
        prompt_tokens(policy.tokenizer, row["prompt"], place := f"{origin}, row {i}", template_arguments(row, place))
        for i, row in enumerate(rows)
    ]
    if max_tokens >= policy.context:
        raise ValueError(
            f"sampling.max_tokens is {max_tokens}, but the model's whole context is {policy.context} tokens"
        )
    check_prompt_lengths(tokens, policy.context - max_tokens, origin)
    return [Prompt(t, graders_text(row["prompt"]), row) for t, row in zip(tokens, rows, strict=True)]
