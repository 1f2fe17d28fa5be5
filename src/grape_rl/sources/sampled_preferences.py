"""Runs on pairs of the model's own responses."""

from functools import partial

from grape_rl.methods import SampledPreferences, keywords
from grape_rl.model.sampler import SamplingParams
from grape_rl.rollout.dynamic_sampling import once
from grape_rl.rollout.source import drawn, reference_logprobs
from grape_rl.setup.revisions import revising
from grape_rl.setup.setup import Kind, Setup, Told
from grape_rl.sources.online_pairs import sampled_preferences
from grape_rl.sources.preferences import reference_of_pairs
from grape_rl.sources.responses import RESPONSES, sampler, sampling_prompts
from grape_rl.training.fit import AnySource


def _source(setup: Setup) -> tuple[AnySource, Told]:
    """Responses as for the methods that give each an advantage, then pairs of them."""
    config, row = setup.config, setup.row
    assert isinstance(row.source, SampledPreferences) and setup.scorer
    sampling = SamplingParams(**config.sampling.model_dump())
    start = None
    if config.log_kl and not sampling.top_k and sampling.top_p == 1:
        start = reference_logprobs(setup.reference, setup.forward(sampling.temperature))
    drawing = sampler(setup, sampling)
    draw = partial(
        drawn,
        prompts=sampling_prompts(setup.train, setup.now, sampling.max_tokens, "data"),
        sampler=drawing,
        scorer=setup.scorer,
        draws=revising(setup, once, drawing, sampling),
        tokenizer=setup.now.tokenizer,
        prompts_per_step=config.prompts_per_step,
        group_size=config.group_size,
        seed=config.seed,
        failure_limit=config.reward.failure_limit,
        reference=start,
        ahead=setup.ahead,
    )
    pairing = partial(row.source.pairing, **keywords(row.source.pairing, setup.chosen))
    reference, model = reference_of_pairs(setup, sampling.temperature)
    return sampled_preferences(draw, pairing, reference, model), []


ONLINE = Kind(RESPONSES.rows, _source, RESPONSES.batches)
