"""Responses: sampled from the policy, graded, and given an advantage."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from grape_rl.config.config import Config
from grape_rl.model.reference_logprobs import reference_logprobs
from grape_rl.model.sampler import SamplingParams
from grape_rl.model.value_head import PolicyWithValue
from grape_rl.reward.running_confidence import RunningMeans
from grape_rl.rollout.advantages import AdvantageInputs, next_memory
from grape_rl.rollout.dynamic_sampling import single_draw
from grape_rl.rollout.on_policy import on_policy_source
from grape_rl.rollout.scored_rollout import ScoredRollout
from grape_rl.setup.graders import Aggregation
from grape_rl.setup.revisions import with_revisions
from grape_rl.setup.sampling import policy_sampler
from grape_rl.setup.setup import Setup, StartWarnings
from grape_rl.sources.method_function import MethodFunction
from grape_rl.sources.sampled import (
    VERDICT_INPUTS,
    SampledSource,
    make_rollout_settings,
    make_rollout_worker,
    reads_start,
)
from grape_rl.sources.source import ForwardPasses
from grape_rl.training.experience import ExperienceSource
from grape_rl.training.objective import TOKEN_FIELDS, VALUE_FIELDS
from grape_rl.training.value import ValueFunctionOptions, value_estimates
from grape_rl.types import Sequences

INPUTS = MappingProxyType(
    {
        "draws": frozenset({"sample_groups", "prompts"}),
        "aggregate": VERDICT_INPUTS | {"running"},
        "compared": VERDICT_INPUTS,
        "running": frozenset({"confidence", "running"}),
        "token_reward": frozenset({"reward", "behavior_logp", "reference_logp", "mask"}),
        "value": frozenset[str](),
        # The numbers of the memory are inputs of the advantage too: see rollout.advantages.
        "advantage": frozenset({
            "reward", "group", "length", "response", "max_tokens", "seed", "behavior_logp", "reference_logp", "mask",
            "token_reward", "value", "response_kl", "responses",
        }),
        "rescaled": frozenset({"advantage", "mask"}),
    }
)  # fmt: skip
"""The functions of ``Responses`` in the order in which they run, with the inputs of each."""


REFERENCE_INPUTS = frozenset({"reference_logp", "response_kl"})
"""Inputs that are computed from the log-probs under the initial policy."""


@dataclass(frozen=True)
class Memory:
    """A number that each step leaves to the next, named by the function that updates it.

    Attributes:
        function: (previous number, inputs of the advantage) → the next number.
        start: the number before the first step.
    """

    function: Callable[..., float]
    start: float

    @property
    def name(self) -> str:
        """The function's name."""
        return self.function.__name__


@dataclass(frozen=True)
class Responses(SampledSource):
    """Responses are sampled from the policy, graded, and given an advantage.

    Attributes:
        advantage: rewards and more → advantages of responses or tokens.
        aggregate: verdicts → rewards.
        draws: samples the groups of a step, once or with dynamic sampling.
        smallest_group: minimum number of responses per prompt.
        off_policy_ok: the method may learn from responses that top-k or top-p cut, or of another temperature, since it
            imitates them. A policy gradient may not: its tokens must come from the policy itself.
        compared: verdicts → numbers that the advantage compares instead of the reward.
        running: updates the running means of the confidence in each item, for an ``aggregate`` whose option ``scope``
            can be "running", and that reads these means as ``running``.
        token_reward: gives rewards to tokens, with the KL to the reference subtracted.
        rescaled: sets the scale of the tokens' advantages.
        value: settings of the value function, for a method with one.
        memory: numbers that a step leaves to the next.
    """

    advantage: Callable[..., Tensor]
    aggregate: Callable[..., Tensor]
    draws: Callable[..., ScoredRollout] = single_draw
    smallest_group: int = 1
    off_policy_ok: bool = False
    compared: Callable[..., Tensor] | None = None
    running: Callable[..., Tensor] | None = None
    token_reward: Callable[..., Tensor] | None = None
    rescaled: Callable[..., Tensor] | None = None
    value: Callable[..., ValueFunctionOptions] | None = None
    memory: tuple[Memory, ...] = ()

    @property
    def loss_fields(self) -> frozenset[str]:
        """Fields of a token; those of a value function if there is one."""
        return frozenset(TOKEN_FIELDS) if self.value else frozenset(TOKEN_FIELDS) - frozenset(VALUE_FIELDS)

    @property
    def needs_rubric(self) -> bool:
        """True if ``aggregate`` or ``compared`` reads the items of a rubric."""
        return super().needs_rubric or self.compared is not None

    @property
    def start_memory(self) -> Mapping[str, float]:
        """The numbers of ``memory`` before the first step."""
        return {number.name: number.start for number in self.memory}

    @property
    def functions(self) -> tuple[MethodFunction, ...]:
        """The functions that make a batch, in the order in which they run."""
        made = [function for role in INPUTS if (function := self._function(role))]
        return (*made, *map(self._memory_function, self.memory))

    def check(self, config: Config, options: Mapping[str, Any]) -> None:
        """Check that responses can be graded and compared, and that a policy gradient gets the policy's tokens."""
        super().check(config, options)
        method, sampling = config.method, config.sampling
        if not self.off_policy_ok and (sampling.top_k or sampling.top_p < 1):
            raise ValueError(
                f"sampling: {method} needs tokens from the whole distribution of the policy, but top_k or top_p cuts "
                "it, and the ratio would no longer be between two policies; leave them out, or use rejection_sampling, "
                "which may cut"
            )
        if not self.off_policy_ok and sampling.temperature == 0:
            raise ValueError(f"sampling: at temperature 0 all responses are equal: {method} would learn nothing")
        if "kl_scale" in self.start_memory and options.get("kl_target") and not _kl_coefficient(options):
            raise ValueError(
                "options: kl_target adapts the coefficient kl or kl_in_reward, but both are 0: set one to start from"
            )

    def experiences(self, setup: Setup) -> tuple[ExperienceSource, StartWarnings]:
        """The graded responses of each step with their advantages."""
        sampling = SamplingParams(**setup.config.sampling.model_dump())
        reference = None
        if self._reads_start(setup):
            reference = reference_logprobs(setup.reference, setup.forward(sampling.temperature))
        sampler = policy_sampler(setup, sampling)
        strategy = with_revisions(setup, self._bound("draws", setup.options), sampler, sampling)
        worker = make_rollout_worker(setup, sampler, strategy, reference)
        advantage, inputs = self._bound("advantage", setup.options), self._advantage_inputs(setup)
        return on_policy_source(worker, make_rollout_settings(setup.config), advantage, inputs), []

    def forward_passes(self, setup: Setup, sequences: Sequences) -> ForwardPasses:
        """One pass by the initial policy, if its log-probs are used."""
        references = int(self._reads_start(setup))
        return ForwardPasses(sequences, (sequences,) * references, references)

    def aggregation(self, options: Mapping[str, Any], memory: Mapping[str, Any]) -> Aggregation:
        """``aggregate`` and ``compared`` with their options; the running means if ``scope`` is "running"."""
        running = None
        if self.running and options.get("scope", "running") == "running":
            running = RunningMeans(self._bound("running", options), memory)
        compared = self._bound("compared", options) if self.compared else None
        return Aggregation(self._bound("aggregate", options), compared, running)

    def value_function(self, options: Mapping[str, Any]) -> ValueFunctionOptions | None:
        """Settings of the value function; None for a method without one."""
        return self._bound("value", options)() if self.value else None

    def training_temperature(self, config: Config) -> float:
        """The sampling temperature for a policy gradient, since that distribution was sampled; 1 for imitation."""
        return 1.0 if self.off_policy_ok else config.sampling.temperature

    def _function(self, role: str) -> MethodFunction | None:
        """The function of that role with its inputs; None if the source has none."""
        function = getattr(self, role)
        inputs = self._advantage_names if role == "advantage" else INPUTS[role]
        return MethodFunction(function, inputs) if function else None

    def _memory_function(self, number: Memory) -> MethodFunction:
        return MethodFunction(number.function, self._advantage_names | {"previous"})

    @property
    def _advantage_names(self) -> frozenset[str]:
        """Inputs of the advantage, without those of roles that this source leaves out."""
        absent = {role for role in ("token_reward", "value") if not getattr(self, role)}
        return INPUTS["advantage"].union(self.start_memory) - absent

    def _reads_token_reward(self, options: Mapping[str, Any]) -> bool:
        """True if ``token_reward`` changes the reward or is read by the advantage."""
        read = "token_reward" in MethodFunction(self.advantage, self._advantage_names).reads
        return self.token_reward is not None and (read or bool(options.get("kl_in_reward", True)))

    def _reads_start(self, setup: Setup) -> bool:
        """True if a step computes the responses' log-probs under the initial policy."""
        functions = [function for role in ("token_reward", "advantage") if (function := self._function(role))]
        own = (function for function in functions if "kl_in_reward" not in function.options)
        return reads_start(setup) or any(not function.reads.isdisjoint(REFERENCE_INPUTS) for function in own)

    def _bound(self, role: str, options: Mapping[str, Any]) -> Callable[..., Any]:
        """The function of that role with its options bound."""
        function = self._function(role)
        assert function
        return function.bind(options)

    def _advantage_inputs(self, setup: Setup) -> AdvantageInputs:
        """Inputs of the advantage other than rewards. The KL coefficient is the one in force when a batch is made."""
        options, trained = setup.options, setup.trained

        def token_reward(**fields: Tensor) -> Tensor:
            return self._bound("token_reward", current_options(options, setup.memory))(**fields)

        inputs = AdvantageInputs(
            token_reward if self._reads_token_reward(options) else None,
            value_estimates(trained, setup.forward()) if isinstance(trained, PolicyWithValue) else None,
            self._bound("rescaled", options) if self.rescaled else None,
            {number.name: self._memory_function(number).bind(options) for number in self.memory},
            setup.memory,
        )
        # Tried once, so that an option that is impossible with this many responses is refused before the first step.
        count = setup.config.prompts_per_step * setup.config.group_size
        next_memory(inputs, {"reward": torch.zeros(count), "response_kl": 0.0, "responses": count})
        return inputs


def _kl_coefficient(options: Mapping[str, Any]) -> float:
    """The sum of the coefficients that ``kl_target`` adapts."""
    return options.get("kl", 0.0) + options.get("kl_in_reward", 0.0)


def current_options(options: Mapping[str, Any], memory: Mapping[str, Any]) -> dict[str, Any]:
    """The options with the KL coefficients multiplied by the ``kl_scale`` of the last step."""
    scale = memory.get("kl_scale", 1.0)
    return {**options, **{name: options[name] * scale for name in ("kl", "kl_in_reward") if name in options}}
