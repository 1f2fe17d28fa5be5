"""A critique: what the verdicts of a rubric hold against a response, in words for the policy that wrote it."""

from collections.abc import Collection, Sequence

from grape_rl.reward.item import Item
from grape_rl.reward.rubric import Rubric, items_of
from grape_rl.types import Response, Verdict


def critique(
    rubric: Rubric,
    response: Response,
    category: str,
    verdicts: Sequence[Verdict],
    items: int = 3,
    max_characters: int = 2000,
    show_gold: bool = False,
) -> str:
    """The items that cost the response most, a line each, at most ``items`` of them; "" where none cost it anything.

    What an item cost is the weight that its score left out: ``w (1 − s)``, or ``|w| s`` on a pitfall; a closed gate
    cost all that is behind it. Missing verdicts and monitors hold nothing against a response. What is longer than
    ``max_characters`` loses its end.

    A judged item is told with its criterion, the label and the critic's reasoning. What may tell the gold answer is
    left out unless ``show_gold``: then only the item's id and its score are told of a program or a reward model, and
    the label too of a critic that was shown a reference, or whose criterion looks into the row.
    """
    rewarded = {item.id: item for item in items_of(rubric, category, response.row) if item.role == "reward"}
    graded = [(rewarded[v.item], v) for v in verdicts if v.item in rewarded]
    costs = [_cost(item, verdict, rewarded.values()) for item, verdict in graded]
    # A missing score is NaN, and its cost above nothing. Of equal costs the rubric's first stands first.
    costly = sorted((i for i, cost in enumerate(costs) if cost > 0), key=lambda i: -costs[i])
    text = "\n".join(_line(*graded[i], response, show_gold) for i in costly[:items])
    return text if len(text) <= max_characters else text[: max_characters - 1] + "…"


def _cost(item: Item, verdict: Verdict, items: Collection[Item]) -> float:
    if item.gate and verdict.score == 0:
        return sum(each.weight for each in items if each.weight > 0)
    return item.weight * (1 - verdict.score) if item.weight > 0 else -item.weight * verdict.score


def _line(item: Item, verdict: Verdict, response: Response, show_gold: bool) -> str:
    judge, best = item.judge, 1 if item.weight > 0 else 0
    told = [f"- {item.id}: {verdict.score:g}, where {best} is best."]
    open_to_all = show_gold or (judge is not None and judge.reference is None and not judge.lookups)
    if judge and open_to_all:
        told.append(str(judge.for_row(response.row).criterion))
    if verdict.label:
        told.append(f"Verdict: {verdict.label}.")
    if verdict.reasoning and open_to_all:
        told.append(" ".join(verdict.reasoning.split()))
    return " ".join(told)
