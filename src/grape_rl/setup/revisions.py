"""Revisions in a run: what the configuration asks for, made of what the run is set up with."""

from functools import partial

from jaxtyping import Int
from torch import Tensor

from grape_rl.data.chat import prompt_tokens
from grape_rl.data.conversation import template_arguments
from grape_rl.model.reference_logprobs import reference_logprobs
from grape_rl.model.sampler import SamplingParams
from grape_rl.reward.critique import critique
from grape_rl.rollout.collect import Sampler
from grape_rl.rollout.dynamic_sampling import SamplingStrategy
from grape_rl.rollout.revise import Reviser, add_revisions, revision_prompt
from grape_rl.setup.rows import Row
from grape_rl.setup.setup import Setup
from grape_rl.types import Response


def revising(setup: Setup, draws: SamplingStrategy, sampler: Sampler, sampling: SamplingParams) -> SamplingStrategy:
    """``draws``, and then revisions of what was drawn, if the configuration asks for any.

    Raises:
        ValueError: a chat template that refuses the conversation that asks for a revision.
    """
    config, of = setup.config, setup.config.revise
    if not of.per_group:
        return draws
    assert setup.grader and setup.grader.rubric
    tokenizer, limit = setup.now.tokenizer, setup.now.context - sampling.max_tokens

    def tokens(row: Row, response: str, critique: str) -> Int[Tensor, " p"]:
        where = "revise"
        asked = revision_prompt(row["prompt"], response, critique, of.request)
        return prompt_tokens(tokenizer, asked, where, template_arguments(row, where))

    def fitting(response: Response, critique: str) -> Int[Tensor, " p"] | None:
        found = tokens(dict(response.row), response.text, critique)
        return found if len(found) <= limit else None

    # A template may refuse an order of roles: each is tried once, before the first step.
    for row in {_roles(row): row for row in setup.train}.values():
        tokens(row, "A response.", "A critique.")
    quoted = partial(critique, items=of.items, max_characters=of.max_characters, show_gold=of.show_gold)
    reviser = Reviser(
        critique=partial(quoted, setup.grader.rubric),
        prompt=fitting,
        sampler=sampler,
        # At temperature 0 only methods run that imitate: they never read the behavior policy.
        logp=reference_logprobs(setup.now.model, setup.forward(sampling.temperature or 1.0)),
        scorer=setup.grader.scorer,
        tokenizer=tokenizer,
        per_group=of.per_group,
        seed=config.seed,
        failure_limit=config.reward.failure_limit,
    )
    return lambda sample_groups, prompts: add_revisions(draws(sample_groups, prompts), reviser)


def _roles(row: Row) -> tuple[str, ...]:
    """Who speaks in the row's prompt, in order; nobody in plain text."""
    return () if isinstance(row["prompt"], str) else tuple(message["role"] for message in row["prompt"])
