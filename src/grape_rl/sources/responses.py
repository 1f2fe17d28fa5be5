"""Runs on the model's own responses."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from grape_rl.config import Config
from grape_rl.data.chat import check_prompt_lengths, prompt_tokens
from grape_rl.data.conversation import template_arguments
from grape_rl.data.order import rows_of_step
from grape_rl.methods import Method, Responses, in_force, keywords, objective
from grape_rl.model.reference_logprobs import LogprobFunction, reference_logprobs
from grape_rl.model.sampler import OnResponse, SamplingParams, sample
from grape_rl.model.value_head import PolicyWithValue
from grape_rl.rollout.advantages import AdvantageInputs, next_memory
from grape_rl.rollout.collect import RolloutSettings, RolloutWorker, Sampler
from grape_rl.rollout.decoded_responses import Prompt
from grape_rl.rollout.dynamic_sampling import SamplingStrategy
from grape_rl.rollout.on_policy import on_policy_source
from grape_rl.setup.policy import Policy
from grape_rl.setup.revisions import revising
from grape_rl.setup.rows import Row, graders_text, prompted, sources, split
from grape_rl.setup.setup import Kind, Setup, Told
from grape_rl.sources.requirements import suited
from grape_rl.training.experience import ExperienceSource
from grape_rl.training.value import value_estimates
from grape_rl.types import Rollout, Sequences


def _rows(config: Config, row: Method) -> tuple[list[Row], list[Row]]:
    """Training rows and held-out rows, each with a ``prompt``."""
    data = config.data
    train, test = split(config)
    source, test_source = sources(data)
    train, test = suited(config, row, train, source), suited(config, row, test, test_source)
    prompt = "prompt" if data.tasks else data.prompt
    held_out = prompted(data, test, prompt, None, test_source) if test else []
    return prompted(data, train, prompt, None, source), held_out


def _source(setup: Setup) -> tuple[ExperienceSource, Told]:
    config, row, chosen = setup.config, setup.row, setup.chosen
    assert isinstance(row.source, Responses) and setup.scorer
    sampling = SamplingParams(**config.sampling.model_dump())
    reference = None
    if starts_with_reference(setup):
        reference = reference_logprobs(setup.reference, setup.forward(sampling.temperature))
    if chosen.get("kl_target") and not (chosen["kl_in_reward"] or chosen["kl"]):
        raise ValueError(
            "options: kl_target adapts the coefficient kl or kl_in_reward, and both are 0: give one to begin"
        )
    drawing = sampler(setup, sampling)
    strategy = revising(setup, partial(row.source.draws, **keywords(row.source.draws, chosen)), drawing, sampling)
    worker = rollout_worker(setup, drawing, strategy, reference)
    advantage = partial(row.source.advantage, **keywords(row.source.advantage, chosen))
    return on_policy_source(worker, rollout_settings(config), advantage, _credit(setup, row.source)), []


def rollout_worker(
    setup: Setup, sampler: Sampler, strategy: SamplingStrategy, reference: LogprobFunction | None
) -> RolloutWorker:
    """The functions with which the run samples and grades responses."""
    assert setup.scorer
    prompts = sampling_prompts(setup.train, setup.now, setup.config.sampling.max_tokens, "data")
    return RolloutWorker(prompts, setup.now.tokenizer, sampler, setup.scorer, strategy, reference, setup.ahead)


def rollout_settings(config: Config) -> RolloutSettings:
    """Sizes and limits of a step's responses."""
    return RolloutSettings(
        config.prompts_per_step, config.group_size, config.sampling.max_tokens, config.seed, config.reward.failure_limit
    )


def starts_with_reference(setup: Setup) -> bool:
    """Whether log-probs of the responses under the policy at the start are needed, or measured."""
    config, row, chosen = setup.config, setup.row, setup.chosen
    uncut = not config.sampling.top_k and config.sampling.top_p == 1 and config.sampling.temperature > 0
    needed = any("reference_logp" in term.parameters for term in objective(row, chosen).terms)
    return needed or bool(chosen.get("kl_in_reward")) or (config.log_kl and uncut)


def _batches(setup: Setup) -> Callable[[int], Sequences]:
    config, limit, n = setup.config, setup.config.sampling.max_tokens, setup.config.group_size
    prompts = sampling_prompts(setup.train, setup.now, limit, "data")

    def batch(step: int) -> Sequences:
        drawn = [prompts[i].tokens for i in rows_of_step(len(prompts), config.prompts_per_step, step, config.seed)]
        tokens = torch.zeros(len(drawn) * n, limit, dtype=torch.long)
        return Sequences(tuple(drawn), tokens, tokens == 0, torch.arange(len(drawn)).repeat_interleave(n))

    return batch


def _credit(setup: Setup, source: Responses) -> AdvantageInputs:
    """What the row's advantages rest on, under the options that are in force when a batch is made."""
    chosen, trained = setup.chosen, setup.trained

    def token_reward(**fields: Tensor) -> Tensor:
        assert source.token_reward
        return source.token_reward(**fields, **keywords(source.token_reward, in_force(chosen, setup.memory)))

    asked = source.token_reward and (chosen["kl_in_reward"] or source.value)
    credit = AdvantageInputs(
        token_reward if asked else None,
        value_estimates(trained, setup.forward()) if isinstance(trained, PolicyWithValue) else None,
        partial(source.rescaled, **keywords(source.rescaled, chosen)) if source.rescaled else None,
        {
            each.function.__name__: partial(each.function, **keywords(each.function, chosen))
            for each in source.remembers
        },
        setup.memory,
    )
    # Tried once, so that an option which can't be is refused before the first step.
    count = setup.config.prompts_per_step * setup.config.group_size
    next_memory(credit, {"reward": torch.zeros(count), "response_kl": 0.0, "responses": count})
    return credit


def sampler(setup: Setup, sampling: SamplingParams) -> Sampler:
    """Samples from the policy as it is when called."""

    def sampled(prompts: Sequence[Tensor], n: int, seed: int, version: int, ended: OnResponse | None) -> Rollout:
        at = setup.now
        with setup.precision():
            return sample(
                at.model, prompts, n, sampling, at.end, seed, version, setup.config.generation_batch_size, ended
            )

    return sampled


def sampling_prompts(found: Sequence[Row], at: Policy, max_tokens: int, where: str) -> list[Prompt]:
    """The rows' prompts in tokens, each short enough that ``max_tokens`` more fit into the context."""
    tokens = [
        prompt_tokens(at.tokenizer, row["prompt"], place := f"{where}, row {i}", template_arguments(row, place))
        for i, row in enumerate(found)
    ]
    if max_tokens >= at.context:
        raise ValueError(f"sampling.max_tokens is {max_tokens}, and the model's whole context is {at.context} tokens")
    check_prompt_lengths(tokens, at.context - max_tokens, where)
    return [Prompt(t, graders_text(row["prompt"]), row) for t, row in zip(tokens, found, strict=True)]


RESPONSES = Kind(_rows, _source, _batches)
