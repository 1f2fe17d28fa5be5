"""Items that people grade: a column of the data, or a file of labels that grows as people write them."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean, pstdev
from typing import Annotated, Any

from pydantic import Field, PrivateAttr, field_validator, model_validator

from grape_rl.reward.lookup import looked_up, lookups
from grape_rl.schema import Strict, validated
from grape_rl.types import Response, Verdict, failed

Number = Annotated[float, Field(strict=True)]

Key = tuple[str, str, str]
"""What a label is of: a prompt, a response to it, and an item."""


class Label(Strict):
    """One line of a labels file: a person's score of a response on an item, null as long as there is none.

    ``by`` says who: a person's later label of the same takes the place of the earlier.
    """

    prompt: str
    response: str
    item: str
    score: Number | None
    by: str | None = None

    @property
    def key(self) -> Key:
        """What it is a label of."""
        return self.prompt, self.response, self.item


class Human(Strict):
    """Grades by people, on a scale from ``low`` to ``high``, which become scores from 0 to 1.

    ``score`` is a column of the row, for responses that are there already (``grape score``). ``labels`` is a JSON Lines
    file beside the rubric. Several labels of one response: the score is their mean, and the confidence how far they
    agree, ``1 − 2 std`` (the population's standard deviation, at most ½ for scores in [0, 1]): 1 if all are equal, or
    there is one; 0 if half of the people say ``low`` and half ``high``.
    """

    score: str | None = None
    labels: str | None = None
    low: Number = 0.0
    high: Number = 1.0

    _found: Mapping[Key, tuple[Label, ...]] = PrivateAttr(default_factory=dict[Key, tuple[Label, ...]])
    _file: Path = PrivateAttr()

    @field_validator("score")
    @classmethod
    def _one_lookup(cls, score: str | None) -> str | None:
        if score is not None and lookups(score) != (score,):
            raise ValueError(f"{score!r} should be a look-up and nothing else, such as ${{row.stars}}")
        return score

    @field_validator("labels")
    @classmethod
    def _beside(cls, labels: str | None) -> str | None:
        if labels is not None and (Path(labels).name != labels or not labels.endswith(".jsonl")):
            raise ValueError(f"{labels!r} should be the name of a file beside the rubric that ends in .jsonl")
        return labels

    @model_validator(mode="after")
    def _read(self, info: Any) -> "Human":  # a pydantic.ValidationInfo, which beartype cannot check
        if (self.score is None) == (self.labels is None):
            raise ValueError("needs exactly one of score (a column) and labels (a file)")
        if not self.low < self.high:
            raise ValueError(f"low is {self.low:g}; it must be under high, {self.high:g}")
        if self.labels is not None:
            self._file = info.context["folder"] / self.labels
            read = info.context["labels"]  # each file is read once for a rubric, however many items name it
            if self._file not in read:
                read[self._file] = labels_by_key(self._file)
            self._found = read[self._file]
        return self

    @property
    def file(self) -> Path:
        """The file of labels, of an item that has one."""
        return self._file

    def verdict(self, item: str, response: Response) -> Verdict:
        """The people's verdict; ``unlabeled`` where there is none yet."""
        if self.score is not None:
            return self._of_column(item, looked_up(self.score, response.row))
        name = f"human {self.labels}"
        told = self._found.get((response.prompt, response.text, item), ())
        scores = [each.score for each in told if each.score is not None]
        if not scores:
            return failed(item, "unlabeled", f"nobody has labeled it in {self.labels}", name)
        if stray := [score for score in scores if not self.low <= score <= self.high]:
            return failed(item, "infrastructure", f"the label {stray[0]:g} is not in {self._scale}", name)
        mapped = [self._mapped(score) for score in scores]
        who = ", ".join(f"{each.by or 'someone'} {each.score:g}" for each in told)
        return Verdict(item, mean(mapped), max(0.0, 1 - 2 * pstdev(mapped)), reasoning=who, provenance=name)

    def _of_column(self, item: str, told: Any) -> Verdict:
        name = f"human {self.score}"
        if told is None or told == "":
            return failed(item, "unlabeled", f"{self.score} is empty", name)
        try:
            score = math.nan if isinstance(told, bool) else float(told)
        except (TypeError, ValueError):
            score = math.nan
        if not self.low <= score <= self.high:
            return failed(item, "infrastructure", f"{told!r:.80} is no number in {self._scale}", name)
        return Verdict(item, self._mapped(score), reasoning=f"{score:g}", provenance=name)

    def _mapped(self, score: float) -> float:
        return (score - self.low) / (self.high - self.low)

    @property
    def _scale(self) -> str:
        return f"[{self.low:g}, {self.high:g}]"


def labels_in(path: Path) -> list[Label]:
    """The labels of a file, in order; none if it is not there.

    Raises:
        ValueError: a line that is no label.
    """
    if not path.exists():
        return []
    found: list[Label] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if line.strip():
            try:
                told = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: no JSON: {error}") from None
            found.append(validated(Label, told, f"{path}, line {number}", {}))
    return found


def labels_by_key(path: Path) -> dict[Key, tuple[Label, ...]]:
    """The labels that a file gives, by what they are of: everyone's last, and those without a name each by itself."""
    found: dict[Key, dict[str | int, Label]] = {}
    for number, each in enumerate(labels_in(path)):
        if each.score is not None:
            found.setdefault(each.key, {})[number if each.by is None else each.by] = each
    return {key: tuple(those.values()) for key, those in found.items()}


def todo(file: Path) -> Path:
    """Where what waits for labels of ``file`` stands: ``labels.todo.jsonl`` for ``labels.jsonl``."""
    return file.with_suffix(".todo.jsonl")


def put_on_todo(file: Path, waiting: Iterable[Key]) -> None:
    """Write what waits beside ``file``, each once, behind what waits there already. What has a label is taken off.

    Raises:
        ValueError: a line of the list is no label.
    """
    path, done = todo(file), labels_by_key(file)
    lines = [each for each in labels_in(path) if each.key not in done]
    there = {each.key for each in lines}
    for prompt, response, item in dict.fromkeys(waiting):
        if (prompt, response, item) not in there:
            lines.append(Label(prompt=prompt, response=response, item=item, score=None))
    told = (each.model_dump(exclude={"by"} if each.by is None else set()) for each in lines)
    aside = path.with_name(path.name + ".tmp")
    aside.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in told), encoding="utf-8")
    os.replace(aside, path)
