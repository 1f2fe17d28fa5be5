"""Critiques: text that lists where a response lost reward, for the policy to revise it by."""

from collections.abc import Collection, Sequence

from grape_rl.reward.item import Item
from grape_rl.types import Response, Verdict


def write_critique(
    response: Response,
    items: Sequence[Item],
    verdicts: Sequence[Verdict],
    max_items: int = 3,
    max_characters: int = 2000,
    show_gold: bool = False,
) -> str:
    """The items that cost the response most, one line each; "" if it lost no reward.

    ``items`` are those that the response was graded on. An item costs the weight that its score left unearned:
    ``w (1 − s)``, or ``|w| s`` for a pitfall. A closed gate costs the weight of all items of positive weight. Missing
    verdicts and monitors cost nothing. At most ``max_items`` lines; text beyond ``max_characters`` is truncated.

    The line of a judged item has its criterion, the label and the critic's reasoning. Unless ``show_gold``, everything
    that could leak the gold answer is left out. The line then has only the id and score of an item that a program or a
    reward model graded. It also has the label of an item whose critic saw a reference, or whose criterion has a lookup.
    """
    rewarded = {item.id: item for item in items if item.role == "reward"}
    graded = [(rewarded[v.item], v) for v in verdicts if v.item in rewarded]
    costs = [_cost(item, verdict, rewarded.values()) for item, verdict in graded]
    # A missing verdict costs NaN, which is not above 0. Ties are in the rubric's order.
    costly = sorted((i for i, cost in enumerate(costs) if cost > 0), key=lambda i: -costs[i])
    text = "\n".join(_line(*graded[i], response, show_gold) for i in costly[:max_items])
    return text if len(text) <= max_characters else text[: max_characters - 1] + "…"


def _cost(item: Item, verdict: Verdict, items: Collection[Item]) -> float:
    if item.gate and verdict.score == 0:
        return sum(other.weight for other in items if other.weight > 0)
    return item.weight * (1 - verdict.score) if item.weight > 0 else -item.weight * verdict.score


def _line(item: Item, verdict: Verdict, response: Response, show_gold: bool) -> str:
    judge, best = item.judge, 1 if item.weight > 0 else 0
    parts = [f"- {item.id}: {verdict.score:g}, where {best} is best."]
    safe_to_show = show_gold or (judge is not None and judge.reference is None and not judge.lookups)
    if judge and safe_to_show:
        parts.append(str(judge.for_row(response.row).criterion))
    if verdict.label:
        parts.append(f"Verdict: {verdict.label}.")
    if verdict.reasoning and safe_to_show:
        parts.append(" ".join(verdict.reasoning.split()))
    return " ".join(parts)
