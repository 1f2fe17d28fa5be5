"""The table of methods: every row by its name, and which rows belong together."""

from types import MappingProxyType

from grape_rl.table.group_relative import GROUP_RELATIVE_METHODS
from grape_rl.table.imitation import IMITATION_METHODS
from grape_rl.table.labels import LABEL_METHODS
from grape_rl.table.mixture import MIXTURE_METHODS
from grape_rl.table.off_policy import OFF_POLICY_METHODS
from grape_rl.table.online import ONLINE_METHODS
from grape_rl.table.preference import PREFERENCE_METHODS
from grape_rl.table.reinforce import REINFORCE_METHODS
from grape_rl.table.reward_model import REWARD_MODEL_METHODS
from grape_rl.table.value import VALUE_METHODS

FAMILIES = MappingProxyType(
    {
        "Imitation": IMITATION_METHODS,
        "REINFORCE": REINFORCE_METHODS,
        "Actor-critic with a value function": VALUE_METHODS,
        "Group-relative advantages with a clipped ratio": GROUP_RELATIVE_METHODS,
        "Off-policy REINFORCE": OFF_POLICY_METHODS,
        "Preference pairs": PREFERENCE_METHODS,
        "Online preference pairs": ONLINE_METHODS,
        "Mixtures of preference losses": MIXTURE_METHODS,
        "Labeled single responses": LABEL_METHODS,
        "Reward models": REWARD_MODEL_METHODS,
    }
)
"""The rows by what they have in common."""

ALGORITHMS = MappingProxyType({row.name: row for rows in FAMILIES.values() for row in rows})
"""Every method by its name."""
