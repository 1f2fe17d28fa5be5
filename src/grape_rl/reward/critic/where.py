"""Where a critic is, and how much may be asked of it."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from grape_rl.reward.critic.limiter import Limiter
from grape_rl.reward.strict import Strict, validated

Positive = Annotated[float, Field(gt=0)]
Whole = Annotated[int, Field(ge=1)]


class Endpoint(Strict):
    """Where a critic is, which model answers, and how much may be asked of it."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    base_url: str = "http://127.0.0.1:8000/v1"
    model: str
    api_key: str = "OPENAI_API_KEY"
    """The environment variable that holds the key; a server without keys needs none."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    max_tokens: Whole = 1024
    structured: Literal["json_schema", "prompted"] = "json_schema"
    """Whether the server is given the schema of the answer, or the model is only asked for JSON."""
    concurrency: Whole = 32
    requests_per_minute: Whole | None = None
    tokens_per_minute: Whole | None = None
    call_timeout_s: Positive = 120.0
    """For one try."""
    total_timeout_s: Positive = 600.0
    """For a call with all of its tries."""
    prompt_price: Annotated[float, Field(ge=0)] = 0.0
    """For a million tokens, in any currency."""
    completion_price: Annotated[float, Field(ge=0)] = 0.0
    cost_cap: Positive | None = None
    extra: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Further fields of the request, as the server knows them."""

    def limiter(self) -> Limiter:
        """The one limiter of all calls to it."""
        return Limiter(self.concurrency, self.requests_per_minute, self.tokens_per_minute, self.cost_cap)


class Local(Strict):
    """A critic that runs here, on the run's device: a causal language model that tells how likely each label is.

    It writes no reasoning, and its items need ``confidence: {mode: logprob}``.
    """

    local: Annotated[str, Field(min_length=1)]
    """A folder, or a model of the Hub, with a chat template."""


def endpoints(told: Mapping[str, Any], where: str) -> dict[str, Endpoint | Local]:
    """The critics that plain data says, by name: with ``local`` one that runs here, else one behind a server.

    Raises:
        ValueError: one line with every fault of the first that is amiss, and its place.
    """
    found: dict[str, Endpoint | Local] = {}
    for name, data in told.items():
        kind = Local if isinstance(data, Mapping) and "local" in data else Endpoint
        found[str(name)] = validated(kind, data, f"{where}.{name}", {})
    return found
