"""The table of methods: every row by its name, and which rows belong together."""

from types import MappingProxyType

from grape_rl.table.group_relative import GROUP_RELATIVE
from grape_rl.table.imitation import IMITATION
from grape_rl.table.labels import LABELED
from grape_rl.table.mixture import MIXTURE
from grape_rl.table.off_policy import OFF_POLICY
from grape_rl.table.online import ONLINE
from grape_rl.table.preference import PREFERENCE
from grape_rl.table.reinforce import REINFORCE
from grape_rl.table.reward_model import REWARD_MODEL
from grape_rl.table.value import VALUE

FAMILIES = MappingProxyType(
    {
        "Imitation": IMITATION,
        "REINFORCE": REINFORCE,
        "With a value function": VALUE,
        "Relative to the group, with a bound on the ratio": GROUP_RELATIVE,
        "REINFORCE on an older policy's responses": OFF_POLICY,
        "Preferences between two responses": PREFERENCE,
        "Preferences between two of the model's own responses": ONLINE,
        "Mixtures of losses on preferences": MIXTURE,
        "Responses labeled desirable or not": LABELED,
        "Models that score": REWARD_MODEL,
    }
)
"""The rows by what they have in common."""

ALGORITHMS = MappingProxyType({row.name: row for rows in FAMILIES.values() for row in rows})
"""Every method by its name."""
