"""Runs on pairs of the model's own responses."""

from functools import partial

from grape_rl.methods import SampledPreferences, keywords
from grape_rl.model.reference_logprobs import reference_logprobs
from grape_rl.model.sampler import SamplingParams
from grape_rl.rollout.collect import collect_rollout
from grape_rl.rollout.dynamic_sampling import single_draw
from grape_rl.setup.revisions import revising
from grape_rl.setup.setup import Kind, Setup, Told
from grape_rl.sources.online_pairs import sampled_preferences
from grape_rl.sources.preferences import reference_of_pairs
from grape_rl.sources.responses import RESPONSES, rollout_settings, rollout_worker, sampler
from grape_rl.training.experience import ExperienceSource


def _source(setup: Setup) -> tuple[ExperienceSource, Told]:
    """Responses as for the methods that give each an advantage, then pairs of them."""
    config, row = setup.config, setup.row
    assert isinstance(row.source, SampledPreferences) and setup.scorer
    sampling = SamplingParams(**config.sampling.model_dump())
    start = None
    if config.log_kl and not sampling.top_k and sampling.top_p == 1:
        start = reference_logprobs(setup.reference, setup.forward(sampling.temperature))
    drawing = sampler(setup, sampling)
    worker = rollout_worker(setup, drawing, revising(setup, single_draw, drawing, sampling), start)
    draw = partial(collect_rollout, worker, rollout_settings(config))
    pairing = partial(row.source.pairing, **keywords(row.source.pairing, setup.chosen))
    reference, model = reference_of_pairs(setup, sampling.temperature)
    return sampled_preferences(draw, pairing, reference, model), []


ONLINE = Kind(RESPONSES.rows, _source, RESPONSES.batches)
