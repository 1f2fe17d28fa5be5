"""Behavior shared by the sources that sample responses from the policy and have them graded."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from grape_rl.config.config import Config
from grape_rl.data.order import rows_of_step
from grape_rl.maths.grape import unweighted
from grape_rl.model.reference_logprobs import LogprobFunction
from grape_rl.rollout.collect import RolloutSettings, RolloutWorker, Sampler
from grape_rl.rollout.dynamic_sampling import SamplingStrategy
from grape_rl.setup.graders import Aggregation
from grape_rl.setup.rows import Row, read_split, row_origins, with_prompt
from grape_rl.setup.sampling import sampling_prompts
from grape_rl.setup.setup import Setup
from grape_rl.sources.method_function import MethodFunction
from grape_rl.sources.requirement import DataRequirement, check_columns
from grape_rl.sources.source import Source
from grape_rl.types import Sequences

VERDICT_INPUTS = frozenset({"score", "confidence", "weight", "group"})
"""Inputs of a function that turns a rubric's verdicts into rewards."""


class SampledSource(Source, Protocol):
    """A source that samples responses from the policy that is trained."""

    requirement: ClassVar[DataRequirement] = DataRequirement("prompts", (("prompt",),), ("prompt-only",))
    unit: ClassVar[str] = "prompts"
    samples: ClassVar[bool] = True

    aggregate: Callable[..., Tensor]
    """Verdicts → rewards."""
    smallest_group: int
    """Minimum number of responses per prompt."""

    @property
    def needs_rubric(self) -> bool:
        """True if the method reads the items of a rubric, so that a reward function or model does not suffice."""
        return self.aggregate is not unweighted

    @property
    def needs(self) -> str:
        """Prompts, with a reward or a rubric."""
        group = f", {self.smallest_group} or more responses a prompt" if self.smallest_group > 1 else ""
        return f"{self.requirement.words}, {'a rubric' if self.needs_rubric else 'a reward'}{group}"

    def check(self, config: Config, options: Mapping[str, Any]) -> None:
        """Check that responses can be graded, revised and compared."""
        method, reward = config.method, config.reward
        if not reward.is_set:
            raise ValueError(f"reward: {method} learns from rewards: set exactly one of rubric, function and model")
        config.revise.check(method, reward.rubric, config.group_size, options)
        if self.needs_rubric and not reward.rubric:
            raise ValueError(f"reward: {method} reads the items of a rubric: set reward.rubric, or use grpo")
        if config.group_size < self.smallest_group:
            raise ValueError(
                f"group_size is {config.group_size}: {method} compares the responses to a prompt, so it needs at least "
                f"{self.smallest_group}"
            )

    def rows(self, config: Config, options: Mapping[str, Any]) -> tuple[list[Row], list[Row]]:
        """Training rows and held-out rows, each with a ``prompt``."""
        data = config.data
        train, test = read_split(config)
        origin, test_origin = row_origins(data)
        check_columns(config, self.requirement, train, origin)
        check_columns(config, self.requirement, test, test_origin)
        prompt = "prompt" if data.tasks else data.prompt
        test = with_prompt(data, test, prompt, None, test_origin) if test else []
        return with_prompt(data, train, prompt, None, origin), test

    def batches(self, setup: Setup) -> Callable[[int], Sequences]:
        """The prompts of each step with responses of full length."""
        config, limit, n = setup.config, setup.config.sampling.max_tokens, setup.config.group_size
        prompts = sampling_prompts(setup.train_rows, setup.policy, limit, "data")

        def batch(step: int) -> Sequences:
            rows = rows_of_step(len(prompts), config.prompts_per_step, step, config.seed)
            tokens = torch.zeros(len(rows) * n, limit, dtype=torch.long)
            group = torch.arange(len(rows)).repeat_interleave(n)
            return Sequences(tuple(prompts[i].tokens for i in rows), tokens, tokens == 0, group)

        return batch

    def aggregation(self, options: Mapping[str, Any], memory: Mapping[str, Any]) -> Aggregation:
        """``aggregate`` with its options."""
        return Aggregation(MethodFunction(self.aggregate, VERDICT_INPUTS).bind(options))

    def max_tokens(self, config: Config) -> int:
        """The maximum length of a sampled response."""
        return config.sampling.max_tokens


def make_rollout_worker(
    setup: Setup, sampler: Sampler, strategy: SamplingStrategy, reference: LogprobFunction | None
) -> RolloutWorker:
    """The functions and prompts with which the run samples and grades responses."""
    assert setup.grader
    prompts = sampling_prompts(setup.train_rows, setup.policy, setup.config.sampling.max_tokens, "data")
    grader, tokenizer = setup.grader, setup.policy.tokenizer
    return RolloutWorker(prompts, tokenizer, sampler, grader.scorer, strategy, reference, grader.prefetch)


def make_rollout_settings(config: Config) -> RolloutSettings:
    """Sizes and limits of the responses of one step."""
    return RolloutSettings(
        config.prompts_per_step, config.group_size, config.sampling.max_tokens, config.seed, config.reward.failure_limit
    )


def reads_start(setup: Setup) -> bool:
    """True if a step computes the responses' log-probs under the initial policy: for the loss, the reward or the log.

    A KL for the log is computed only if the whole distribution was sampled from.
    """
    sampling = setup.config.sampling
    uncut = not sampling.top_k and sampling.top_p == 1 and sampling.temperature > 0
    needed = "reference_logp" in setup.objective.reads or bool(setup.options.get("kl_in_reward"))
    return needed or (setup.config.log_kl and uncut)
