"""The scorer that a configuration names."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from grape_rl.config import Config
from grape_rl.maths.grape import unweighted
from grape_rl.methods import Algorithm, Sampled, keywords
from grape_rl.parts.rows import Row
from grape_rl.reward.callables import python_callable
from grape_rl.reward.rubric import check_rows, load_rubric
from grape_rl.reward.scores import Scorer, function_scorer, rubric_scorer


def scorer(config: Config, row: Algorithm, chosen: dict[str, Any], graded: Sequence[Row]) -> Scorer:
    """The scorer that the configuration names, checked against the rows that it will grade."""
    if config.reward.rubric:
        rubric = load_rubric(config.reward.rubric, config.reward.allow)
        check_rows(rubric, graded)
        aggregate = row.source.aggregate if isinstance(row.source, Sampled) else unweighted
        return rubric_scorer(rubric, partial(aggregate, **keywords(aggregate, chosen)))
    assert config.reward.function is not None
    place, _, name = config.reward.function.rpartition(":")
    folder, place = (Path(place).parent, Path(place).name) if place.endswith(".py") else (Path(), place)
    return function_scorer(python_callable(f"{place}:{name}", folder, allow=[place]), name)
