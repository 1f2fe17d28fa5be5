"""Revisions in a run, as the configuration sets them."""

from functools import partial

from jaxtyping import Int
from torch import Tensor

from grape_rl.data.chat import prompt_tokens
from grape_rl.data.chat_template import template_arguments
from grape_rl.model.reference_logprobs import reference_logprobs
from grape_rl.model.sampler import SamplingParams
from grape_rl.reward.critique import write_critique
from grape_rl.rollout.collect import Sampler
from grape_rl.rollout.dynamic_sampling import SamplingStrategy
from grape_rl.rollout.revise import Reviser, add_revisions, revision_prompt
from grape_rl.setup.rows import Row
from grape_rl.setup.setup import Setup
from grape_rl.types import Response


def with_revisions(
    setup: Setup, strategy: SamplingStrategy, sampler: Sampler, sampling: SamplingParams
) -> SamplingStrategy:
    """``strategy``, followed by revisions of the sampled responses if ``revise.per_group`` is set.

    Raises:
        ValueError: the chat template refuses a conversation that requests a revision.
    """
    config, settings = setup.config, setup.config.revise
    if not settings.per_group:
        return strategy
    assert setup.grader and setup.grader.rubric
    tokenizer, limit = setup.policy.tokenizer, setup.policy.context - sampling.max_tokens

    def request_tokens(row: Row, response: str, critique: str) -> Int[Tensor, " p"]:
        request = revision_prompt(row["prompt"], response, critique, settings.request)
        return prompt_tokens(tokenizer, request, "revise", template_arguments(row, "revise"))

    def fitting_tokens(response: Response, critique: str) -> Int[Tensor, " p"] | None:
        tokens = request_tokens(dict(response.row), response.text, critique)
        return tokens if len(tokens) <= limit else None

    # A template may refuse an order of roles: each order is tried once, before the first step.
    for row in {_roles(row): row for row in setup.train_rows}.values():
        request_tokens(row, "A response.", "A critique.")
    critique = partial(
        write_critique,
        max_items=settings.items,
        max_characters=settings.max_characters,
        show_gold=settings.show_gold,
    )
    reviser = Reviser(
        critique=critique,
        prompt=fitting_tokens,
        sampler=sampler,
        # At temperature 0 only methods run that imitate: they never read the behavior policy.
        logp=reference_logprobs(setup.policy.model, setup.forward(sampling.temperature or 1.0)),
        scorer=setup.grader.scorer,
        tokenizer=tokenizer,
        per_group=settings.per_group,
        seed=config.seed,
        failure_limit=config.reward.failure_limit,
    )
    return lambda sample_groups, prompts: add_revisions(strategy(sample_groups, prompts), reviser)


def _roles(row: Row) -> tuple[str, ...]:
    """The roles of the messages in the row's prompt, in order; empty for plain text."""
    return () if isinstance(row["prompt"], str) else tuple(message["role"] for message in row["prompt"])
