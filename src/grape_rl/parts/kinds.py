"""Which kind of run belongs to which kind of source."""

from grape_rl.methods import Algorithm, Demonstrations, Labels, Preferences, Responses
from grape_rl.parts.demonstrations import DEMONSTRATIONS
from grape_rl.parts.labels import LABELS
from grape_rl.parts.preferences import PREFERENCES
from grape_rl.parts.responses import RESPONSES
from grape_rl.parts.setup import Kind

KINDS = {Demonstrations: DEMONSTRATIONS, Responses: RESPONSES, Preferences: PREFERENCES, Labels: LABELS}


def kind_of(row: Algorithm) -> Kind:
    """How runs of the method read rows, draw batches and evaluate."""
    return KINDS[type(row.source)]
