"""Which kind of run belongs to which kind of source."""

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
from grape_rl.setup.setup import Kind
from grape_rl.sources.comparisons import COMPARISONS
from grape_rl.sources.demonstrations import DEMONSTRATIONS
from grape_rl.sources.labels import LABELS
from grape_rl.sources.preferences import PREFERENCES
from grape_rl.sources.responses import RESPONSES
from grape_rl.sources.sampled_preferences import ONLINE
from grape_rl.sources.steps import STEPS

KINDS = {
    Demonstrations: DEMONSTRATIONS,
    Responses: RESPONSES,
    Preferences: PREFERENCES,
    SampledPreferences: ONLINE,
    Labels: LABELS,
    Comparisons: COMPARISONS,
    Steps: STEPS,
}


def kind_of(row: Method) -> Kind:
    """How runs of the method read rows, draw batches and evaluate."""
    return KINDS[type(row.source)]
