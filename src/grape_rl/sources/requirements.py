"""Whether data suits a method: if not, what the method needs, what there is, and which methods learn from that."""

from dataclasses import dataclass

from grape_rl.algorithms import ALGORITHMS
from grape_rl.config import Config
from grape_rl.data.types import DataType, detect_data_type
from grape_rl.methods import (
    Comparisons,
    Demonstrations,
    Labels,
    Method,
    Preferences,
    Responses,
    SampledPreferences,
    Steps,
)
from grape_rl.schema import did_you_mean
from grape_rl.setup.rows import Row


@dataclass(frozen=True)
class DataRequirement:
    """What methods of one kind learn from: in words, the columns that will do, and the types made for them."""

    needs: str
    columns: tuple[tuple[str, ...], ...]
    types: tuple[DataType, ...]


PROMPTS = DataRequirement("a prompt", (("prompt",),), ("prompt-only",))
PAIRS = DataRequirement("a chosen and a rejected response for each prompt", (("chosen", "rejected"),), ("preference",))

REQUIREMENTS = {
    Demonstrations: DataRequirement(
        "a prompt and a completion, or whole messages or a whole text",
        (("prompt", "completion"), ("messages",), ("text",)),
        ("prompt-completion", "language modeling"),
    ),
    Responses: PROMPTS,
    SampledPreferences: PROMPTS,
    Preferences: PAIRS,
    Comparisons: PAIRS,
    Labels: DataRequirement(
        "a completion with a label (true where it is desirable) for each prompt, or a chosen and a rejected response",
        (("prompt", "completion", "label"), ("chosen", "rejected")),
        ("unpaired preference",),
    ),
    Steps: DataRequirement(
        "a prompt, the steps of a solution and a label for each",
        (("prompt", "completions", "labels"),),
        ("stepwise supervision",),
    ),
}


ROLES = ("prompt", "completion", "label", "chosen", "rejected", "messages", "text", "completions", "labels")
"""The columns that a user may call otherwise, by their settings."""


def suited(config: Config, row: Method, found: list[Row], source: str) -> list[Row]:
    """The rows, if the columns of the first of them are data that the method can learn from.

    Others pass too where it is rather a column that is missing than the data that is wrong: they make no known type,
    or have a part of what is needed, or one of nearly that name, or the name is the user's own. What reads them says
    which column a row lacks.

    Raises:
        ValueError: they are another type of data.
    """
    if config.data.tasks or not found:
        return found
    names = {role: str(getattr(config.data, role)) for role in ROLES}
    there, diet = found[0].keys(), REQUIREMENTS[type(row.source)]
    lacks = [[role for role in needed if names[role] not in there] for needed in diet.columns]
    needed = {role for some in diet.columns for role in some}
    made = detect_data_type(there, names)
    near = any(did_you_mean(names[role], there) or names[role] != role for some in lacks for role in some)
    partly = made == "prompt-only" and any(names[role] in there for role in needed - {"prompt"})
    if not all(lacks) or made is None or near or partly:
        return found
    learners = [
        other.name
        for other in ALGORITHMS.values()
        if not other.online_of and made in REQUIREMENTS[type(other.source)].types
    ]
    more = f" and {len(learners) - 3} more" if len(learners) > 4 else ""
    named = ", ".join(learners[:3] if more else learners)
    learn = f"which is what {named}{more} learn{'s' * (len(learners) == 1)} from"
    raise ValueError(
        f"{source}: {row.name} needs {diet.needs}; found the columns {', '.join(there)} ({made} data), {learn}"
    )
