"""Runs that wait for human labels: a run stops when a response has no label yet, and resumes once it has one."""

from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Int
from torch import Tensor

from grape_rl.reward.human_item import LabelKey, add_to_todo, todo_file
from grape_rl.reward.rubric import Rubric
from grape_rl.reward.scores import Scorer
from grape_rl.types import Response, Scores


class Unlabeled(RuntimeError):
    """Raised when responses wait for human labels. The run can be resumed once they are labeled."""


def stop_for_labels(scorer: Scorer, rubric: Rubric) -> Scorer:
    """A scorer that stops the run while a verdict is ``unlabeled``.

    It lists the unlabeled responses in a file next to the labels file. A resumed run samples identical responses, and
    reads their labels.

    Raises:
        ValueError: an item's score is a column of the data, which cannot score sampled responses.
    Raises (the scorer):
        Unlabeled: some verdicts are unlabeled; they are in the list.
    """
    for category, item in rubric.known_items:
        if item.human and item.human.score is not None:
            raise ValueError(
                f"item {item.id!r} of category {category!r}: the column {item.human.score} scores responses of the "
                "data (see grape score); to score sampled responses, name a file as human.labels"
            )

    def scores(responses: Sequence[Response], group: Int[Tensor, " b"], known: Scores | None = None) -> Scores:
        result = scorer(responses, group, known)
        waiting: dict[Path, list[LabelKey]] = {}
        for response, items, verdicts in zip(responses, result.items, result.verdicts, strict=True):
            files = {item.id: item.human.file for item in items if item.human}
            for verdict in verdicts:
                if verdict.status == "unlabeled" and verdict.item in files:
                    key = (response.prompt, response.text, verdict.item)
                    waiting.setdefault(files[verdict.item], []).append(key)
        if not waiting:
            return result
        for file, keys in waiting.items():
            add_to_todo(file, keys)
        count = sum(len(set(keys)) for keys in waiting.values())
        places = " and ".join(f"from {todo_file(file)} to {file}" for file in waiting)
        raise Unlabeled(
            f"{count} verdicts need human labels: score them, move the lines {places}, and run with --resume"
        )

    return scores
