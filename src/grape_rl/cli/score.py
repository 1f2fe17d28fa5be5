"""``grape score``: grade existing responses by a rubric, without training, and tell how each item does."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from grape_rl.cli.arguments import listed, parsed_arguments

if TYPE_CHECKING:
    from grape_rl.cli.response_data import Existing
    from grape_rl.reward.critic.human_labels import ItemComparison
    from grape_rl.reward.critic.judge import Judge
    from grape_rl.reward.rubric import Rubric
    from grape_rl.types import Scores, Verdict

HELP = """usage: grape score --rubric FILE --data FILE [--KEY VALUE ...]

--rubric    a rubric file
--data      rows with a response each; those with the same prompt are compared with each other
--response  the column with the response (response)
--prompt    the column with the prompt (prompt)
--critics   a YAML file with the critics that judge items, by name: {default: {base_url: URL, model: NAME}},
            or {default: {local: MODEL}} for one that runs here
--cache     a file that keeps the critics' answers: what was asked once is not paid for again
--allow     the Python files and modules that the rubric may call, with commas between
--tokenizer a folder or model of the Hub, whose tokens the length checks count (they count words without one)
--human     the column with people's labels by item, {ITEM: LABEL}, or the beginning of columns NAME.ITEM: how far the
            critics agree with them, and how often they are right by how sure they are. The confidence is as the rubric
            transforms it; that of a calibration looks better than it is on the data that it was fitted to.
--canaries  also try the critics on responses that say nothing: every one must get the lowest score
--plot      draw that as reliability curves there (needs --human, and matplotlib: pip install 'grape-rl[bench]')
--output    write every response's reward and verdicts there, as JSON lines
--table     write the table of items there, as .json or .csv
--failure_limit  exit with 1 if a larger share of the verdicts is missing (0.1)

For each item: n graded responses, their mean score; spread, the standard deviation among the responses to one prompt,
mean over prompts; flat, the share of prompts where that is 0; the confidence, its mean and standard deviation; signal,
the item's part of its category's |weight| x confidence x spread; and the verdicts that are missing, by kind.

Flagged, on 10 graded responses or more: saturated (mean over 0.95) and unreachable (under 0.05): little to gain;
redundant (correlated beyond 0.9, by score or rank, with another item); dead confidence (a critic's, of standard
deviation under 0.02); against the rest (its score falls where the other items' rises, more than 2 standard errors: is
the sign of its weight right?); missing where low (its grading fails where the other items are low, likewise).
"""

FILES = ("rubric", "data", "allow", "critics", "cache", "output", "table", "plot", "tokenizer")
ROW = "row"
"""What the items that rows bring along are called together, as in the table of items."""

KNOWN = (*FILES, "response", "prompt", "human", "failure_limit")


def main(arguments: Sequence[str]) -> None:
    """Print each item's health over the responses, and what people say of it.

    Raises:
        RuntimeError: more verdicts are missing than the limit allows; everything is printed and written before.
    """
    if not arguments or "--help" in arguments or "-h" in arguments:
        print(HELP)
        return
    words, own, _ = parsed_arguments(arguments, ["canaries"], known=KNOWN)
    if words or not {"rubric", "data"} <= own.keys():
        raise ValueError("grape score needs --rubric FILE and --data FILE, and no other words")
    named = {name: Path(str(own[name])) for name in ("cache", "output", "table", "plot") if name in own}
    for name, path in named.items():
        if str(path) == own["data"]:
            raise ValueError(f"--{name} {path}: is the data itself; name another file")
        if not path.parent.is_dir() and name != "cache":
            raise ValueError(f"--{name} {path}: there is no folder {path.parent}")
    if "table" in named and named["table"].suffix not in (".json", ".csv"):
        raise ValueError(f"--table {named['table']}: should end in .json or .csv")
    limit = _share(str(own.get("failure_limit", "0.1")))
    if "plot" in named and "human" not in own:
        raise ValueError("--plot draws critics beside people's labels: say with --human which column has them")
    from grape_rl.cli.health import print_canaries, print_health, write_table
    from grape_rl.cli.human_agreement import measures, people_of, plot, print_people, require_matplotlib
    from grape_rl.cli.response_data import counter, endpoints_of, existing
    from grape_rl.maths.grape import unweighted
    from grape_rl.reward.canary import canaries
    from grape_rl.reward.grading import categories_of, rubric_critics, rubric_models
    from grape_rl.reward.rubric import load_rubric
    from grape_rl.reward.scores import rubric_scorer
    from grape_rl.rollout.records import records
    from grape_rl.rubric_tools.item_health import Weighing, item_health
    from grape_rl.setup.policy import device

    if "plot" in named:
        require_matplotlib()
    counted = counter(own.get("tokenizer"))
    rubric = load_rubric(str(own["rubric"]), listed(own.get("allow", "")))
    source = str(own["data"])
    found = existing(rubric, source, str(own.get("response", "response")), str(own.get("prompt", "prompt")), counted)
    prompt = str(own.get("prompt", "prompt"))
    models = rubric_models(rubric, [{"prompt": row[prompt]} for row in found.rows], device("auto"), 8192)
    critics = rubric_critics(rubric, endpoints_of(own), named.get("cache"), device("auto"))
    people: list[dict[str, float]] | None = None
    if "human" in own:
        homes = categories_of(rubric, found.answers, critics)
        people = people_of(rubric, found, homes, str(own["human"]), source)
    scores = rubric_scorer(rubric, unweighted, models=models, critics=critics)(found.answers, found.group)
    weighing = {
        (name, item.id): Weighing(item.weight if item.role == "reward" else 0.0, item.judge is not None)
        for name, part in rubric.categories.items()
        for item in part.items
    }
    items = item_health(scores, found.group, weighing)
    prompts = len(found.group.unique())
    print_health(f"{len(found.answers)} responses to {prompts} prompts of {source}", items)
    if "canaries" in own and critics:
        print_canaries(canaries(rubric, [(each.prompt, each.row) for each in found.answers], critics))
    graded = int((~scores.reward.isnan()).sum())
    print(f"mean reward {float(scores.reward.nanmean()):.3f}, of {graded} responses with enough verdicts")
    beside = _beside(rubric, found, scores, people) if people else []
    if people:
        print_people(beside)
    if "plot" in named:
        plot(named["plot"], beside)
    if "table" in named:
        write_table(named["table"], items, {name: measures(of) for of in beside for name in of.items})
    if "output" in named:
        told = records(found.answers, scores, scores.reward.new_full((len(found.answers),), float("nan")))
        human = people or [{}] * len(told)
        lines = [{**each, **({"human": labels} if people else {})} for each, labels in zip(told, human, strict=True)]
        named["output"].write_text(
            "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in lines), encoding="utf-8"
        )
    for name in ("plot", "table", "output"):
        if name in named:
            print(f"written: {named[name]}")
    _bounded(scores, limit)


def _beside(
    rubric: "Rubric", found: "Existing", scores: "Scores", people: Sequence[dict[str, float]]
) -> "list[ItemComparison]":
    """The verdicts beside people's labels, item by item; those that rows bring along are one together."""
    from dataclasses import replace

    from grape_rl.reward.critic.human_labels import LabeledVerdict, compare_with_people
    from grape_rl.reward.row_items import PREFIX
    from grape_rl.reward.rubric import items_of

    def labeled(category: str, judge: "Judge", each: "Verdict", human: float, group: int) -> LabeledVerdict:
        if each.item.startswith(PREFIX):
            judge, each = judge.model_copy(update={"criterion": ROW}), replace(each, item=ROW)
        return LabeledVerdict(category, judge, each, human, group)

    graded_on = (items_of(rubric, name, row) for name, row in zip(scores.category, found.rows, strict=True))
    return compare_with_people(
        labeled(category, item.judge, each, labels[each.item], group)
        for category, items, verdicts, labels, group in zip(
            scores.category, graded_on, scores.verdicts, people, found.group.tolist(), strict=True
        )
        for item, each in zip(items, verdicts, strict=bool(items))
        if item.judge and each.item in labels
    )


def _bounded(scores: "Scores", limit: float) -> None:
    """That no more verdicts failed than the limit allows; what waits for a person to grade has not failed."""
    from dataclasses import replace

    from grape_rl.reward.scores import checked

    tried = tuple(tuple(each for each in row if each.status != "unlabeled") for row in scores.verdicts)
    checked(replace(scores, verdicts=tried), limit)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ValueError(f"--failure_limit {text}: should be a share, from 0 to 1")
    return share
