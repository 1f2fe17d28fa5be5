"""Where a critic is, and how much may be asked of it."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from grape_rl.reward.critic.limiter import Limiter
from grape_rl.reward.critic.stub import Stub
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


class _Stubbed(Strict):
    """Where a critic is that is no model."""

    stub: Stub


def endpoints(
    told: Mapping[str, Any], where: str, folder: Path | None = None, allow: Collection[str] = ()
) -> dict[str, Endpoint | Stub]:
    """The endpoints that plain data says, by name: {stub: {…}} is a stub critic, anything else a server.

    With the rubric's ``folder``, the function that a stub calls is loaded from there, if ``allow`` names its file.

    Raises:
        ValueError: one line with every fault of the first that is amiss, and its place.
    """
    context = {"folder": folder, "allow": frozenset(allow)} if folder is not None else {}
    found: dict[str, Endpoint | Stub] = {}
    for name, data in told.items():
        place = f"{where}.{name}"
        if isinstance(data, Mapping) and "stub" in data:
            found[str(name)] = validated(_Stubbed, data, place, context).stub
        else:
            found[str(name)] = validated(Endpoint, data, place, {})
    return found
