"""The table of methods: every method by its name, in families; and methods from a user's own file."""

from functools import lru_cache
from importlib import import_module
from pathlib import Path
from types import MappingProxyType, ModuleType

from grape_rl.methods import Method
from grape_rl.reward.check.callables import module_from_file
from grape_rl.schema import nearest
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
"""The methods by what they have in common."""

ALGORITHMS = MappingProxyType({method.name: method for family in FAMILIES.values() for method in family})
"""Every method of the table by its name."""


def method_named(name: str) -> Method:
    """The method of that name: a row of the table, or a ``Method`` from a user's own file or module.

    A name with a colon is "file.py:NAME" (a path from the working directory) or "package.module:NAME".

    Raises:
        ValueError: no such method, file, module or name in it, or what is there is not a ``Method``.
    """
    if ":" not in name:
        if name not in ALGORITHMS:
            if name.endswith(".py"):
                raise ValueError(f"method {name!r}: name the Method in the file: {name}:NAME")
            raise ValueError(f"unknown method {name!r}{nearest(name, ALGORITHMS)}")
        return ALGORITHMS[name]
    place, _, attribute = name.rpartition(":")
    file = Path(place).expanduser()
    if place.endswith(".py") and not file.is_file():
        raise ValueError(f"method {name!r}: there is no file {place}")
    try:
        module = _module(file.resolve(), file.stat().st_mtime_ns) if place.endswith(".py") else import_module(place)
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        path = f"{place.replace('.', '/')}.py"
        hint = f"; for the file write {path}:{attribute}" if not place.endswith(".py") and Path(path).is_file() else ""
        raise ValueError(f"method {name!r}: {place} cannot be loaded: {reason}{hint}") from error
    if not hasattr(module, attribute):
        methods = [key for key, value in vars(module).items() if isinstance(value, Method)]
        raise ValueError(f"method {name!r}: {place} has no {attribute!r}{nearest(attribute, methods)}")
    method = getattr(module, attribute)
    if not isinstance(method, Method):
        raise ValueError(f"method {name!r}: {attribute} is of type {type(method).__name__}, not Method")
    return method


@lru_cache
def _module(file: Path, modified_ns: int) -> ModuleType:
    """The module of a user's file, executed once per version of the file."""
    return module_from_file(file)
