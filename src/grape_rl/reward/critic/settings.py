"""Settings of critics: the server, model or stub behind each name, and the limits on its use."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveFloat, model_validator

from grape_rl.reward.critic.limiter import Limiter
from grape_rl.reward.critic.stub import StubSettings
from grape_rl.schema import Strict, validated

_AtLeastOne = Annotated[int, Field(ge=1)]
_SET_HERE = ("model", "messages", "n", "stream")


class Endpoint(Strict):
    """A critic behind a server: its address, its model, and the limits on its use."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    base_url: str = "http://127.0.0.1:8000/v1"
    model: Annotated[str, Field(min_length=1)]
    api_key: str = "OPENAI_API_KEY"
    """The environment variable that contains the key. A server without keys needs none."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    max_tokens: _AtLeastOne = 1024
    """Token limit of the answer about one item. A truncated answer is requested once more, with twice the limit."""
    structured: Literal["json_schema", "prompted"] = "json_schema"
    """json_schema: the server enforces the schema of the answer. prompted: only the prompt asks for JSON."""
    concurrency: _AtLeastOne = 32
    requests_per_minute: _AtLeastOne | None = None
    tokens_per_minute: _AtLeastOne | None = None
    call_timeout_s: PositiveFloat = 120.0
    """Time limit of one try."""
    total_timeout_s: PositiveFloat = 600.0
    """Time limit of a call with all of its tries, from the moment that the rate limits let it start."""
    deadline_s: PositiveFloat | None = None
    """Time limit of a batch, from the moment that its last response is available. Answers after it are missing."""
    prompt_price: NonNegativeFloat = 0.0
    """Price of a million tokens, in any currency."""
    completion_price: NonNegativeFloat = 0.0
    cost_cap: PositiveFloat | None = None
    """Cost, in that currency, at which a run stops."""
    extra: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Further fields of the request, specific to the server."""

    def limiter(self) -> Limiter:
        """A new limiter, to be shared by all calls to this endpoint."""
        return Limiter(self.requests_per_minute, self.tokens_per_minute, self.cost_cap)

    @model_validator(mode="after")
    def _sensible(self) -> "Endpoint":
        if not self.base_url.startswith(("http://", "https://")):
            raise ValueError(f"base_url should begin with http:// or https:// but is {self.base_url!r}")
        if not self.api_key.isidentifier():  # the value may be the key itself, so the message does not repeat it
            raise ValueError("api_key should name the environment variable that contains the key, not be the key")
        if self.cost_cap is not None and self.prompt_price == self.completion_price == 0:
            raise ValueError("cost_cap needs prompt_price or completion_price: without a price the cost is always 0")
        if stray := [name for name in _SET_HERE if name in self.extra]:
            raise ValueError(f"extra: {stray[0]!r} cannot be set here")
        return self


class LocalModel(Strict):
    """A critic in this process, on the run's device: a causal language model that gives the labels' probabilities.

    It writes no reasoning, and its items need ``confidence: {mode: logprob}``.
    """

    local: Annotated[str, Field(min_length=1)]
    """A folder or a model of the Hub, with a chat template."""


class StubbedCritic(Strict):
    """A critic without a model, for trials."""

    stub: StubSettings


CriticSettings = Endpoint | LocalModel | StubbedCritic


def parse_critics(
    data: Mapping[str, Any], place: str, folder: Path | None = None, allow: Collection[str] = ()
) -> dict[str, CriticSettings]:
    """The settings of critics by name, from plain data: {local: …}, {stub: {…}}, or else an endpoint.

    With the rubric's ``folder``, the function of a stub is loaded from there, if ``allow`` contains its file. ``place``
    begins error messages.

    Raises:
        ValueError: one line with all errors of the first critic that has any.
    """
    context = {"folder": folder, "allow": frozenset(allow)} if folder is not None else {}
    kinds = {"local": LocalModel, "stub": StubbedCritic}
    critics: dict[str, CriticSettings] = {}
    for name, settings in data.items():
        kind = next((kinds[key] for key in kinds if isinstance(settings, Mapping) and key in settings), Endpoint)
        critics[str(name)] = validated(kind, settings, f"{place}.{name}", context)
    return critics
