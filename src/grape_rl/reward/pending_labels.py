"""A run that waits for people: it stops where responses have no labels yet, and goes on when they do."""

from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Int
from torch import Tensor

from grape_rl.reward.human import Key, put_on_todo, todo
from grape_rl.reward.rubric import Rubric, items_of
from grape_rl.reward.scores import Scorer
from grape_rl.types import Response, Scores


class Unlabeled(RuntimeError):
    """Responses wait for people to label them; then the run can be resumed."""


def stopping_for_people(scorer: Scorer, rubric: Rubric) -> Scorer:
    """The scorer of a run, which cannot go on while a verdict is ``unlabeled``.

    What waits is put on a list beside the file of labels. A resumed run samples the very same responses again, and
    finds their labels.

    Raises:
        ValueError: an item's score is a column of the data, which says nothing of responses that are yet to be sampled.
    Raises (the scorer):
        Unlabeled: some verdicts wait; they are on the list.
    """
    for name, item in rubric.known_items:
        if item.human and item.human.score is not None:
            raise ValueError(
                f"item {item.id!r} of category {name!r}: {item.human.score} scores responses that the data has (see "
                "grape score); for sampled ones people need human.labels, a file"
            )

    def scores(responses: Sequence[Response], group: Int[Tensor, " b"], known: Scores | None = None) -> Scores:
        found = scorer(responses, group, known)
        waiting: dict[Path, list[Key]] = {}
        for response, category, verdicts in zip(responses, found.category, found.verdicts, strict=True):
            people = {item.id: item.human.file for item in items_of(rubric, category, response.row) if item.human}
            for verdict in verdicts:
                if verdict.status == "unlabeled" and verdict.item in people:
                    key = (response.prompt, response.text, verdict.item)
                    waiting.setdefault(people[verdict.item], []).append(key)
        if not waiting:
            return found
        for file, keys in waiting.items():
            put_on_todo(file, keys)
        count = sum(len(set(keys)) for keys in waiting.values())
        places = " and ".join(f"from {todo(file)} to {file}" for file in waiting)
        raise Unlabeled(f"{count} verdicts wait for people: score them, move the lines {places}, and --resume goes on")

    return scores
