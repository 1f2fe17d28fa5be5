"""Where a critic is, and how much may be asked of it."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from grape_rl.reward.critic.limiter import Limiter
from grape_rl.reward.critic.stub import Stub
from grape_rl.schema import Strict, validated

Positive = Annotated[float, Field(gt=0)]
Whole = Annotated[int, Field(ge=1)]
Price = Annotated[float, Field(ge=0)]
_OURS = ("model", "messages", "n", "stream")


class Endpoint(Strict):
    """Where a critic is, which model answers, and how much may be asked of it."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    base_url: str = "http://127.0.0.1:8000/v1"
    model: Annotated[str, Field(min_length=1)]
    api_key: str = "OPENAI_API_KEY"
    """The environment variable that holds the key; a server without keys needs none."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    max_tokens: Whole = 1024
    """For the answer on one item; one that is cut off is asked for once more, with twice as many."""
    structured: Literal["json_schema", "prompted"] = "json_schema"
    """Whether the server is given the schema of the answer, or the model is only asked for JSON."""
    concurrency: Whole = 32
    requests_per_minute: Whole | None = None
    tokens_per_minute: Whole | None = None
    call_timeout_s: Positive = 120.0
    """For one try."""
    total_timeout_s: Positive = 600.0
    """For a call with all of its tries, from the moment that the limits let it begin."""
    deadline_s: Positive | None = None
    """For a whole batch, from the moment that its last response is there: what has no answer by then is missing."""
    prompt_price: Price = 0.0
    """For a million tokens, in any currency."""
    completion_price: Price = 0.0
    cost_cap: Positive | None = None
    """What all calls of a run may cost, in that currency: at the cap the run ends."""
    extra: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Further fields of the request, as the server knows them."""

    def limiter(self) -> Limiter:
        """The one limiter of all calls to it."""
        return Limiter(self.requests_per_minute, self.tokens_per_minute, self.cost_cap)

    @model_validator(mode="after")
    def _sensible(self) -> "Endpoint":
        if not self.base_url.startswith(("http://", "https://")):
            raise ValueError(f"base_url should begin with http:// or https:// but is {self.base_url!r}")
        if not self.api_key.isidentifier():  # the value may be the key itself: it is not repeated
            raise ValueError("api_key should name the environment variable that holds the key, not be the key")
        if self.cost_cap is not None and self.prompt_price == self.completion_price == 0:
            raise ValueError("cost_cap needs prompt_price or completion_price: without a price nothing ever costs")
        if stray := [name for name in _OURS if name in self.extra]:
            raise ValueError(f"extra: {stray[0]!r} is not for it to say")
        return self


class Local(Strict):
    """A critic that runs here, on the run's device: a causal language model that tells how likely each label is.

    It writes no reasoning, and its items need ``confidence: {mode: logprob}``.
    """

    local: Annotated[str, Field(min_length=1)]
    """A folder, or a model of the Hub, with a chat template."""


class Stubbed(Strict):
    """A critic that is no model, for trying things out."""

    stub: Stub


Where = Endpoint | Local | Stubbed
"""Where a critic is."""


def endpoints(
    told: Mapping[str, Any], where: str, folder: Path | None = None, allow: Collection[str] = ()
) -> dict[str, Where]:
    """Where critics are, as plain data says it, by name: {local: …} runs here, {stub: {…}} is none, others are served.

    With the rubric's ``folder``, the function that a stub calls is loaded from there, if ``allow`` names its file.

    Raises:
        ValueError: one line with every fault of the first that is amiss, and its place.
    """
    context = {"folder": folder, "allow": frozenset(allow)} if folder is not None else {}
    found: dict[str, Where] = {}
    for name, data in told.items():
        kinds = {"local": Local, "stub": Stubbed}
        kind = next((kinds[key] for key in kinds if isinstance(data, Mapping) and key in data), Endpoint)
        found[str(name)] = validated(kind, data, f"{where}.{name}", context)
    return found
