"""Settings of the training data: its source, its columns, and the held-out rows."""

from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from grape_rl.config.section import Section
from grape_rl.data.demonstrations import Learn
from grape_rl.maths.bounds import NonNegativeInt, UnitInterval


class TeacherConfig(Section):
    """A synthetic teacher that writes demonstrations, preferences or labels for tasks that only have answers.

    It makes mistakes on purpose, so that a trained model can improve on it. In a preference, the chosen response is the
    right answer in the first style; the rejected one is a wrong answer or another style.
    """

    wrong: UnitInterval = 0.0
    """Share of demonstrations (or rejected responses) that give the answer to a random question of the task."""
    styles: dict[str, PositiveFloat] = Field({"{answer}": 1.0})
    """Templates of a completion, with their relative frequencies. ``{answer}`` is replaced by the answer."""


class DataConfig(Section):
    """The training data and the held-out data."""

    source: str | None = None
    """A .jsonl, .json, .parquet or .csv file, or a Hub dataset NAME[:CONFIGURATION[:SPLIT]]."""
    tasks: dict[str, dict[str, Any]] = Field({})
    """reasoning-gym tasks instead of ``source``: each task's name with its options."""
    teacher: TeacherConfig = Field(TeacherConfig.model_validate({}))
    """The synthetic teacher that writes the responses for ``tasks``."""
    prompt: str = "prompt"
    """Column of the prompt: text or messages."""
    completion: str = "completion"
    """Column of the completion: SFT's target, or the response that a label rates."""
    label: str = "label"
    """Column of the label, for methods that learn from labels: true if the completion is desirable, else false."""
    messages: str = "messages"
    """Column of a whole conversation, for SFT on rows without a completion."""
    text: str = "text"
    """Column of a whole text, for SFT on rows with neither a completion nor messages."""
    learn: Learn | None = None
    """Tokens in SFT's loss. Default: the completion, all assistant messages, or the whole text."""
    chosen: str = "chosen"
    """Column of the preferred response, for methods that learn from pairs: text or messages."""
    rejected: str = "rejected"
    """Column of the rejected response. Without a prompt column, the prompt is the common prefix of both responses."""
    chosen_reward: str = "chosen_reward"
    """Column of the chosen response's reward, for methods whose loss reads it."""
    rejected_reward: str = "rejected_reward"
    """Column of the rejected response's reward, for methods whose loss reads it."""
    margin: str = "margin"
    """Column of the margin by which the chosen response should score higher, for ``reward_model``. Default 0."""
    completions: str = "completions"
    """Column of a solution's steps, a list of texts, for ``process_reward_model``."""
    labels: str = "labels"
    """Column of the steps' labels, a list of true (right) and false (wrong), for ``process_reward_model``."""
    system: str | None = None
    """System message before each prompt."""
    chat_template_kwargs: dict[str, Any] = Field({})
    """Arguments of the chat template, such as {enable_thinking: false}. A row's own column of this name comes first."""
    chat: bool = False
    """Turn plain prompts and completions into user and assistant messages, for a model with a chat template."""
    rows: PositiveInt | None = None
    """Number of training rows. Default: all rows of a file, or 2000 of tasks."""
    max_length: PositiveInt = 1024
    """Maximum sequence length in tokens, prompt included. Longer sequences are truncated on the right."""
    held_out: str | None = None
    """A file or dataset of held-out rows. Without it, the first rows of ``source`` are held out."""
    held_out_rows: NonNegativeInt = 0
    """Number of held-out rows to evaluate on; 0 for no evaluation."""

    @model_validator(mode="after")
    def _held_out_rows_are_counted(self) -> "DataConfig":
        if self.held_out and not self.held_out_rows:
            raise ValueError("held_out is set but held_out_rows is 0: set held_out_rows to the number to evaluate on")
        return self
