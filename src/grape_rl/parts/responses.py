"""Runs on the model's own responses."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from grape_rl.config import Config
from grape_rl.data.chat import fitting, prompt_tokens
from grape_rl.data.conversation import template_arguments
from grape_rl.methods import Algorithm, Responses, keywords, objective
from grape_rl.model.load import frozen
from grape_rl.model.sampler import Sampling, sample
from grape_rl.parts.policy import Policy
from grape_rl.parts.rows import Row, plain, prompted, sources, split
from grape_rl.parts.setup import Kind, Setup, Told
from grape_rl.training.fit import AnySource
from grape_rl.training.source import Prompt, Sampler, reference_logprobs, responses
from grape_rl.types import Rollout


def _rows(config: Config, row: Algorithm) -> tuple[list[Row], list[Row]]:
    """Training rows and held-out rows, each with a ``prompt``."""
    data = config.data
    train, test = split(config)
    source, test_source = sources(data)
    prompt = "prompt" if data.tasks else data.prompt
    held_out = prompted(data, test, prompt, None, test_source) if test else []
    return prompted(data, train, prompt, None, source), held_out


def _source(setup: Setup) -> tuple[AnySource, Told]:
    config, row, chosen = setup.config, setup.row, setup.chosen
    assert isinstance(row.source, Responses) and setup.scorer
    sampling = Sampling(**config.sampling.model_dump())
    uncut = not sampling.top_k and sampling.top_p == 1 and sampling.temperature > 0
    needed = any("reference_logp" in term.parameters for term in objective(row, chosen).terms)
    reference = None
    if needed or (config.measure_kl and uncut):
        reference = reference_logprobs(
            frozen(setup.start.model), sampling.temperature, config.tokens_per_microbatch, setup.precision
        )
    found = responses(
        sampling_prompts(setup.train, setup.now, sampling.max_tokens, "data"),
        sampler(setup, sampling),
        setup.scorer,
        partial(row.source.draws, **keywords(row.source.draws, chosen)),
        partial(row.source.advantage, **keywords(row.source.advantage, chosen)),
        setup.now.tokenizer,
        reference,
        config.prompts_per_step,
        config.group_size,
        sampling.max_tokens,
        config.seed,
        config.reward.failure_limit,
    )
    return found, []


def sampler(setup: Setup, sampling: Sampling) -> Sampler:
    """Samples from the policy as it is when called."""

    def sampled(prompts: Sequence[Tensor], n: int, seed: int, version: int) -> Rollout:
        at = setup.now
        with setup.precision():
            return sample(at.model, prompts, n, sampling, at.end, seed, version, setup.config.rows_at_once)

    return sampled


def sampling_prompts(found: Sequence[Row], at: Policy, max_tokens: int, where: str) -> list[Prompt]:
    """The rows' prompts in tokens, each short enough that ``max_tokens`` more fit into the context."""
    tokens = [
        prompt_tokens(at.tokenizer, row["prompt"], place := f"{where}, row {i}", template_arguments(row, place))
        for i, row in enumerate(found)
    ]
    if max_tokens >= at.context:
        raise ValueError(f"sampling.max_tokens is {max_tokens}, and the model's whole context is {at.context} tokens")
    fitting(tokens, at.context - max_tokens, where)
    return [Prompt(t, plain(row["prompt"]), row) for t, row in zip(tokens, found, strict=True)]


RESPONSES = Kind(_rows, _source)
