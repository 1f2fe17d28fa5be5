"""Items that people grade: from a column of the data, or from a file of labels that grows as people write them."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean, pstdev
from typing import Annotated, Any

from pydantic import Field, PrivateAttr, field_validator, model_validator

from grape_rl.reward.check.lookup import lookup_value, lookups
from grape_rl.schema import Strict, validated
from grape_rl.types import Response, Verdict, failed

Number = Annotated[float, Field(strict=True)]

LabelKey = tuple[str, str, str]
"""The prompt, the response and the item of a label."""


class Label(Strict):
    """One line of a labels file: a person's score of a response on an item; null until somebody scores it.

    ``by`` names the person. A person's later label of one response and item replaces the earlier one.
    """

    prompt: str
    response: str
    item: str
    score: Number | None
    by: str | None = None

    @property
    def key(self) -> LabelKey:
        """The prompt, response and item that it labels."""
        return self.prompt, self.response, self.item


class Human(Strict):
    """Human scores on a scale from ``low`` to ``high``, mapped to [0, 1].

    Either ``score`` is a lookup of a column, for responses that the data contains (``grape score``), or ``labels`` is a
    JSON Lines file next to the rubric. With several labels of one response, the score is their mean and the confidence
    is their agreement, ``1 − 2 std``. ``std`` is the population's, at most ½ for scores in [0, 1]: the confidence is 1
    if all labels are equal, and 0 if half of them are ``low`` and half ``high``.
    """

    score: str | None = None
    labels: str | None = None
    low: Number = 0.0
    high: Number = 1.0

    _labels: Mapping[LabelKey, tuple[Label, ...]] = PrivateAttr(default_factory=dict[LabelKey, tuple[Label, ...]])
    _file: Path = PrivateAttr()

    @field_validator("score")
    @classmethod
    def _one_lookup(cls, score: str | None) -> str | None:
        if score is not None and lookups(score) != (score,):
            raise ValueError(f"{score!r} should be a single lookup, such as ${{row.stars}}")
        return score

    @field_validator("labels")
    @classmethod
    def _file_next_to_the_rubric(cls, labels: str | None) -> str | None:
        if labels is not None and (Path(labels).name != labels or not labels.endswith(".jsonl")):
            raise ValueError(f"{labels!r} should be the name of a .jsonl file in the rubric's folder")
        return labels

    @model_validator(mode="after")
    def _read(self, info: Any) -> "Human":  # a pydantic.ValidationInfo, which beartype cannot check
        if (self.score is None) == (self.labels is None):
            raise ValueError("needs exactly one of score (a column) and labels (a file)")
        if not self.low < self.high:
            raise ValueError(f"low is {self.low:g}; it must be below high, {self.high:g}")
        if self.labels is not None:
            self._file = info.context["folder"] / self.labels
            files = info.context["labels"]  # one cache per rubric: items that share a file read it once
            if self._file not in files:
                files[self._file] = current_labels(self._file)
            self._labels = files[self._file]
        return self

    @property
    def file(self) -> Path:
        """The labels file of an item that has one."""
        return self._file

    def verdict(self, item: str, response: Response) -> Verdict:
        """The verdict by human labels; ``unlabeled`` if nobody has scored the response yet."""
        if self.score is not None:
            return self._column_verdict(item, lookup_value(self.score, response.row))
        name = f"human {self.labels}"
        labels = self._labels.get((response.prompt, response.text, item), ())
        scores = [label.score for label in labels if label.score is not None]
        if not scores:
            return failed(item, "unlabeled", f"nobody has labeled it in {self.labels}", name)
        if out_of_range := [score for score in scores if not self.low <= score <= self.high]:
            return failed(item, "infrastructure", f"the label {out_of_range[0]:g} is not in {self._scale}", name)
        mapped = [self._mapped(score) for score in scores]
        people = ", ".join(f"{label.by or 'someone'} {label.score:g}" for label in labels)
        return Verdict(item, mean(mapped), max(0.0, 1 - 2 * pstdev(mapped)), reasoning=people, provenance=name)

    def _column_verdict(self, item: str, value: Any) -> Verdict:
        name = f"human {self.score}"
        if value is None or value == "":
            return failed(item, "unlabeled", f"{self.score} is empty", name)
        try:
            score = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            score = math.nan
        if not self.low <= score <= self.high:
            return failed(item, "infrastructure", f"{value!r:.80} is not a number in {self._scale}", name)
        return Verdict(item, self._mapped(score), reasoning=f"{score:g}", provenance=name)

    def _mapped(self, score: float) -> float:
        return (score - self.low) / (self.high - self.low)

    @property
    def _scale(self) -> str:
        return f"[{self.low:g}, {self.high:g}]"


def read_labels(path: Path) -> list[Label]:
    """The labels of a file, in order; empty if the file does not exist.

    Raises:
        ValueError: a line is not a label.
    """
    if not path.exists():
        return []
    labels: list[Label] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if line.strip():
            try:
                data = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: not JSON: {error}") from None
            labels.append(validated(Label, data, f"{path}, line {number}", {}))
    return labels


def current_labels(path: Path) -> dict[LabelKey, tuple[Label, ...]]:
    """The scored labels of a file by key: the last one of each person, and every label without a name."""
    by_key: dict[LabelKey, dict[str | int, Label]] = {}
    for number, label in enumerate(read_labels(path)):
        if label.score is not None:
            by_key.setdefault(label.key, {})[number if label.by is None else label.by] = label
    return {key: tuple(labels.values()) for key, labels in by_key.items()}


def todo_file(file: Path) -> Path:
    """The list of responses that wait for labels in ``file``: ``labels.todo.jsonl`` for ``labels.jsonl``."""
    return file.with_suffix(".todo.jsonl")


def add_to_todo(file: Path, waiting: Iterable[LabelKey]) -> None:
    """Append keys to the to-do list of a labels file, each once, and remove entries that have a label by now.

    Raises:
        ValueError: a line of the list is not a label.
    """
    path, labeled = todo_file(file), current_labels(file)
    entries = [label for label in read_labels(path) if label.key not in labeled]
    listed = {label.key for label in entries}
    for prompt, response, item in dict.fromkeys(waiting):
        if (prompt, response, item) not in listed:
            entries.append(Label(prompt=prompt, response=response, item=item, score=None))
    records = (label.model_dump(exclude={"by"} if label.by is None else set()) for label in entries)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    os.replace(temporary, path)
