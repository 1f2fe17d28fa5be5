"""What a user may set, checked: unknown keys are refused with the nearest name, and every complaint is one line."""

from pathlib import Path
from typing import Annotated, Any, Literal, cast

import yaml
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from grape_rl.algorithms import ALGORITHMS
from grape_rl.data.chat import Learn
from grape_rl.maths.bounds import NonNegativeInt, UnitInterval
from grape_rl.maths.reward_model import StepAggregation
from grape_rl.methods import Demonstrations, Responses, Sampled, resolve_options
from grape_rl.reward.critic.settings import parse_critics
from grape_rl.schema import nearest, parsed, validated
from grape_rl.sections import Model, Revise, Section, on_cpu


class Teacher(Section):
    """Writes demonstrations for tasks that have only answers: imperfectly, so that there is something to improve.

    Or preferences: the right answer in the first style, over a wrong answer or another style.
    """

    wrong: UnitInterval = 0.0
    """The share of demonstrations (or of rejected responses) that give the answer of another question of the task."""
    styles: dict[str, PositiveFloat] = Field({"{answer}": 1.0})
    """How a completion is written → how often; ``{answer}`` stands for the answer."""


class Data(Section):
    """The prompts, and for SFT the completions."""

    source: str | None = None
    """A .jsonl, .json, .parquet or .csv file, or a dataset of the Hub, NAME[:CONFIGURATION[:SPLIT]]."""
    tasks: dict[str, dict[str, Any]] = Field({})
    """Instead of ``source``: tasks of reasoning-gym, each with its options."""
    teacher: Teacher = Field(Teacher.model_validate({}))
    """Who demonstrates the tasks, for SFT."""
    prompt: str = "prompt"
    """The column with the prompt: text, or messages."""
    completion: str = "completion"
    """The column with the completion that SFT learns, or that a label judges."""
    label: str = "label"
    """The column that says whether the completion is desirable, for methods that learn from labels: true or false."""
    messages: str = "messages"
    """The column with a whole conversation for SFT, where there is no completion: messages."""
    text: str = "text"
    """The column with a whole text for SFT, where there is neither."""
    learn: Learn | None = None
    """What of a demonstration is learned: by default its completion, the assistant's messages, or all of a text."""
    chosen: str = "chosen"
    """The column with the response that was preferred, for methods that learn from pairs: text, or messages."""
    rejected: str = "rejected"
    """The column with the other one. With no column for the prompt, it is what both have in common at the start."""
    chosen_reward: str = "chosen_reward"
    """The column with the chosen response's reward, for methods that need it."""
    rejected_reward: str = "rejected_reward"
    margin: str = "margin"
    """The column with how much higher the chosen response should score, for ``reward_model``; no such column is 0."""
    completions: str = "completions"
    """The column with the steps of a solution, a list of texts, for ``process_reward_model``."""
    labels: str = "labels"
    """The column with what each step is, a list of true and false."""
    system: str | None = None
    """A system message before each prompt."""
    chat: bool = False
    """Whether plain prompts and completions become messages of a user and an assistant, for a chat model's template."""
    rows: PositiveInt | None = None
    """How many rows to use: all of a file's, or 2000 of tasks."""
    max_length: PositiveInt = 1024
    """The longest demonstration or response in tokens, prompt included; what is longer loses its end."""
    held_out: str | None = None
    """The file or dataset with held-out rows. Without one they are taken off the start of ``source``."""
    held_out_rows: NonNegativeInt = 0
    """How many held-out rows to evaluate on; 0 for no evaluation."""


class Reward(Section):
    """How responses are scored: exactly one of ``rubric``, ``function`` and ``model``."""

    rubric: str | None = None
    """A rubric file."""
    function: str | None = None
    """A reward function of one's own, "file.py:name" or "package.module:name": f(prompts, completions, **columns)."""
    model: str | None = None
    """A reward model, a folder or a model of the Hub: its score of prompt and response is the reward."""
    aggregate: StepAggregation | None = None
    """How the probabilities of the steps become the reward, for a process reward model: ``min`` unless told."""
    allow: tuple[str, ...] = ()
    """The Python files and modules that a rubric file may call."""
    critics: dict[str, dict[str, Any]] = Field({})
    """The critics that judge a rubric's items, by name: {default: {base_url: …, model: …}}, behind any server that
    speaks OpenAI's chat completions, or {default: {local: MODEL}}, a language model that runs here."""
    critic_cache: str | None = None
    """A file that keeps the critics' answers (SQLite), so that nothing is asked twice."""
    canary_every: NonNegativeInt = 0
    """Steps between trials of the critics on responses that say nothing, which must score 0; 0 for none."""
    failure_limit: UnitInterval = 0.1
    """The share of missing verdicts in a step at which the run stops."""


class Sampling(Section):
    """How responses are drawn."""

    max_tokens: PositiveInt = 256
    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_k: NonNegativeInt = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0


class Optimizer(Section):
    """AdamW, and its learning rate over the steps."""

    learning_rate: PositiveFloat = 1e-6
    warmup: NonNegativeInt = 0
    """Steps over which the rate rises."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    betas: tuple[UnitInterval, UnitInterval] = (0.9, 0.95)
    max_grad_norm: PositiveFloat = 1.0


class Evaluation(Section):
    """How the held-out rows are sampled: like the policy itself unless told otherwise."""

    every: NonNegativeInt = 0
    """Steps between evaluations; 0 for only before and after."""
    samples: PositiveInt = 1
    """Responses a prompt."""
    temperature: Annotated[float, Field(ge=0)] | None = None
    """Another temperature than ``sampling.temperature``."""


OF_ITEMS = {"grape": "weights", "gdpo": "normalizes"}
"""Methods that mean nothing without a rubric, and what they do to its items."""


class Config(Section):
    """One run."""

    method: str
    """A row of the table: see ``grape algorithms``."""
    model: Model = Model()
    data: Data = Field(Data.model_validate({}))
    reward: Reward = Field(Reward.model_validate({}))
    sampling: Sampling = Sampling()
    revise: Revise = Revise()
    optimizer: Optimizer = Optimizer()
    evaluation: Evaluation = Evaluation()
    options: dict[str, Any] = Field({})
    """The method's own options: see ``grape explain METHOD``."""
    steps: PositiveInt = 100
    prompts_per_step: PositiveInt = 8
    """Prompts a step (demonstrations for SFT; pairs or solutions for methods that learn from those)."""
    group_size: PositiveInt = 8
    """Responses a prompt."""
    device: str = "auto"
    """"cpu", "cuda", or "auto" for CUDA where there is one."""
    tokens_per_microbatch: PositiveInt = Field(default_factory=lambda of: 4096 if on_cpu(of["device"]) else 16384)
    """The most positions that one forward pass of the update holds: memory for time, never another result."""
    gradient_checkpointing: bool = False
    """Whether the update computes each layer twice instead of keeping what it computed: memory for time."""
    seed: NonNegativeInt = 0
    output: str = "runs/{method}"
    """The run's folder."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """What forward passes compute in; the weights stay fp32."""
    log_kl: bool = True
    """Whether to log the KL to the model at the start, at the price of one more forward pass a step."""
    reference_cache: str | None = None
    """A folder that keeps the reference's log-probs of data rows, for several runs to share; else the run's own."""
    generation_batch_size: PositiveInt = 512
    """The most responses that are sampled at once: memory for time, never another result."""
    checkpoint_every: NonNegativeInt = 50
    """Steps between checkpoints; 0 for only the last."""
    keep_checkpoints: PositiveInt = 2

    @model_validator(mode="after")
    def _fits_together(self) -> "Config":
        row = ALGORITHMS.get(self.method)
        if row is None:
            raise ValueError(f"unknown method {self.method!r}{nearest(self.method, ALGORITHMS)}")
        resolve_options(row, self.options)
        if bool(self.data.source) == bool(self.data.tasks):
            raise ValueError("data: name exactly one of source (a file or a dataset) and tasks")
        if self.data.held_out and not self.data.held_out_rows:
            raise ValueError("data: held_out names held-out rows, and held_out_rows is 0: say how many to evaluate on")
        graded = sum(map(bool, (self.reward.rubric, self.reward.function, self.reward.model)))
        parse_critics(self.reward.critics, "reward.critics")
        if graded > 1:
            raise ValueError("reward: name exactly one of rubric, function and model")
        blind = isinstance(row.source, Responses) or (isinstance(row.source, Demonstrations) and not self.data.source)
        if self.data.held_out_rows and not graded and blind:
            raise ValueError("data: held_out_rows asks for an evaluation: name reward.rubric, function or model for it")
        try:
            _ = self.folder
        except (LookupError, ValueError, AttributeError):
            raise ValueError(f"output: {self.output!r}: only {{method}} and {{seed}} may stand in braces") from None
        if not isinstance(row.source, Sampled):
            if self.revise.per_group:
                raise ValueError(f"revise: {self.method} samples no responses that could be revised")
            return self
        if not graded:
            raise ValueError(f"reward: {self.method} scores responses: name exactly one of rubric, function and model")
        self.revise.check(self.method, self.reward.rubric, self.group_size, self.options)
        if self.method in OF_ITEMS and not self.reward.rubric:
            raise ValueError(
                f"reward: {self.method} {OF_ITEMS[self.method]} the items of a rubric: name reward.rubric, or use grpo"
            )
        if self.group_size < row.source.smallest_group:
            raise ValueError(
                f"group_size is {self.group_size}: {self.method} compares the responses to a prompt, so it needs at "
                f"least {row.source.smallest_group}"
            )
        off_policy_ok = isinstance(row.source, Responses) and row.source.off_policy_ok
        if isinstance(row.source, Responses) and not off_policy_ok and (self.sampling.top_k or self.sampling.top_p < 1):
            raise ValueError(
                f"sampling: {self.method} needs tokens from the whole distribution of the policy, and top_k or "
                "top_p cut it: the ratio would no longer be between two policies; leave them out, or use "
                "rejection_sampling, which may cut"
            )
        if not off_policy_ok and self.sampling.temperature == 0:
            raise ValueError(f"sampling: temperature 0 makes all responses alike: {self.method} learns nothing")
        return self

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.output.format(method=self.method, seed=self.seed)).expanduser()


def loaded(data: dict[str, Any], source: str = "config") -> Config:
    """The configuration that plain data says.

    Raises:
        ValueError: one line with every fault and its place.
    """
    return validated(Config, data, source, {})


def from_file(path: Path, method: str) -> dict[str, Any]:
    """The plain data of a YAML or JSON file, ``extends`` resolved, paths of the rubric and the like made absolute.

    ``extends: other.yaml`` lays this file's keys over the other's. ``reward``'s ``rubric``, ``function`` and ``model``
    are looked for beside the file that names them.

    Raises:
        ValueError: the file is not there, does not parse, or is for another method.
    """
    data = _extended(path)
    if data.setdefault("method", method) != method:
        raise ValueError(f"{path}: is for the method {data['method']!r}, and {method!r} was asked for")
    return data


RIVALS = (("name", "scratch"), ("source", "tasks"), ("rubric", "function", "model"))
"""Settings of one section of which only one can hold."""


def laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Two layers of settings as one: where both have keys below a key, those are merged, else the upper one holds.

    ``tasks`` and ``styles`` are values in themselves: the upper layer's take the place of the lower one's. So it is
    with settings of which there can be only one: where the upper layer names a model, the lower one's ``scratch`` goes.

    >>> laid_over({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}})
    {'a': {'b': 1, 'c': 3}}
    """
    gone = {rival for rivals in RIVALS if any(map(above.get, rivals)) for rival in rivals} - above.keys()
    out = {key: value for key, value in below.items() if key not in gone}
    for key, value in above.items():
        old = out.get(key)
        merged = isinstance(old, dict) and isinstance(value, dict) and key not in ("tasks", "styles")
        out[key] = laid_over(cast(dict[str, Any], old), value) if merged else value
    return out


def dumped(config: Config) -> str:
    """The configuration as YAML, every default spelled out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _extended(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    if path.resolve() in above:
        raise ValueError(f"{path}: extends itself")
    data = parsed(path)
    if not isinstance(data, dict):
        raise ValueError(f"{path}: should be keys with values")
    reward = data.get("reward")
    if isinstance(reward, dict):
        for key in ("rubric", "function", "model"):
            value = reward.get(key)
            if isinstance(value, str) and (path.parent / value.split(":")[0]).exists():
                reward[key] = str(path.parent / value)
    base = data.pop("extends", None)
    return laid_over(_extended(path.parent / str(base), (*above, path.resolve())), data) if base else data
