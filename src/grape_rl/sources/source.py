"""The protocol of a source: one kind of training data, with all facts and behavior of that kind."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from grape_rl.config.config import Config
from grape_rl.reward.scores import ItemSummary
from grape_rl.setup.graders import Aggregation
from grape_rl.setup.rows import Row
from grape_rl.setup.setup import Setup, StartWarnings
from grape_rl.sources.method_function import MethodFunction
from grape_rl.sources.requirement import DataRequirement
from grape_rl.training.experience import ExperienceSource
from grape_rl.training.value import ValueFunctionOptions
from grape_rl.types import Sequences

HeldOutItems = Callable[[], tuple[ItemSummary, ...]]
"""Results of the policy on the held-out rows, with the weights that it has when called."""


@dataclass(frozen=True)
class ForwardPasses:
    """Forward passes of one step, for the estimate of its cost.

    Attributes:
        learned: sequences of the passes with a gradient.
        no_grad: sequences of each pass without a gradient, by the policy or a reference.
        references: frozen copies of the initial model that the run holds.
    """

    learned: Sequences
    no_grad: tuple[Sequences, ...] = ()
    references: int = 0


@runtime_checkable
class Source(Protocol):
    """One kind of training data. A method has an instance, with the functions that make its batches.

    A new kind is one class that inherits from this one, in a file of its own.
    """

    requirement: ClassVar[DataRequirement]
    """The data that the user brings."""
    unit: ClassVar[str]
    """One step consists of ``prompts_per_step`` of these: "pairs"."""
    samples: ClassVar[bool] = False
    """True if responses are sampled from the policy and graded."""
    trains_reward_model: ClassVar[bool] = False
    """True if the trained model returns scores instead of text."""

    @property
    @abstractmethod
    def loss_fields(self) -> frozenset[str]:
        """Names that a loss may read."""
        ...

    @property
    def functions(self) -> tuple[MethodFunction, ...]:
        """The functions that make a batch, in the order in which they run."""
        return ()

    @property
    def needs(self) -> str:
        """Words for the data that the user provides."""
        return self.requirement.words

    @property
    def start_memory(self) -> Mapping[str, float]:
        """Numbers that each step leaves to the next, with their values before the first step."""
        return {}

    def check(self, config: Config, options: Mapping[str, Any]) -> None:
        """Check the configuration and the method's options against this source, before any work.

        Raises:
            ValueError: a setting contradicts the source.
        """
        if config.revise.per_group:
            raise ValueError(f"revise: {config.method} samples no responses, so there is nothing to revise")

    @abstractmethod
    def rows(self, config: Config, options: Mapping[str, Any]) -> tuple[list[Row], list[Row]]:
        """Training rows and held-out rows, with the columns that this source reads.

        Raises:
            ValueError: the data does not fit.
        """
        ...

    @abstractmethod
    def batches(self, setup: Setup) -> Callable[[int], Sequences]:
        """A function from a step's number to its sequences, without running a model. Responses have full length."""
        ...

    @abstractmethod
    def experiences(self, setup: Setup) -> tuple[ExperienceSource, StartWarnings]:
        """A function from a step's number to its experience, and warnings to log before the first step.

        Raises:
            ValueError: the data or an option does not fit.
        """
        ...

    def held_out(self, setup: Setup) -> HeldOutItems | None:
        """Evaluation on the held-out rows themselves, in addition to graded responses; None if there is none."""
        return None

    def forward_passes(self, setup: Setup, sequences: Sequences) -> ForwardPasses:
        """The forward passes of a step with these sequences. The value function's are not among them."""
        return ForwardPasses(sequences)

    def aggregation(self, options: Mapping[str, Any], memory: Mapping[str, Any]) -> Aggregation:
        """The functions from a rubric's verdicts to rewards. ``memory`` is read each time that they are called."""
        return Aggregation()

    def value_function(self, options: Mapping[str, Any]) -> ValueFunctionOptions | None:
        """Settings of the method's value function; None if it has none."""
        return None

    def training_temperature(self, config: Config) -> float:
        """The temperature of the log-probs in the loss.

        It is 1 for data: imitation and preferences are about the model as it is used.
        """
        return 1.0

    def max_tokens(self, config: Config) -> int:
        """The maximum length of a response in tokens."""
        return config.data.max_length
