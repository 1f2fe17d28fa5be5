"""``grape score``: grade existing responses by a rubric, without training, and report the health of each item."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from grape_rl.cli.arguments import listed, parsed_arguments

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

    from grape_rl.reward.grading import GradedResponse
    from grape_rl.reward.rubric import Rubric
    from grape_rl.rubric_tools.human_labels import ItemComparison
    from grape_rl.rubric_tools.item_health import ItemSettings
    from grape_rl.types import Response, Scores

HELP = """usage: grape score --rubric FILE --data FILE [--KEY VALUE ...]

--rubric    a rubric file
--data      rows with one response each; responses to the same prompt are compared with each other
--response  the column of the response (default: response)
--prompt    the column of the prompt (default: prompt)
--critics   a YAML file of the critics, by name: {default: {base_url: URL, model: NAME}},
            or {default: {local: MODEL}} for a critic that runs here
--cache     a file that caches the critics' answers, so that no call is made twice
--allow     Python files and modules that the rubric may call, separated by commas
--tokenizer a folder or Hub model whose tokenizer counts the tokens for length checks (default: count words)
--human     the column of the human labels by item, {ITEM: LABEL}, or the prefix of columns NAME.ITEM. Prints the
            critics' agreement with the labels, and their accuracy by confidence. The confidence is transformed as in
            the rubric; on the data that a calibration was fitted to, it looks better than it is.
--canaries  also test the critics on responses without content, which must get the lowest score
--plot      write reliability curves to this file (needs --human, and matplotlib: pip install 'grape-rl[bench]')
--output    write every response's reward and verdicts to this file, as JSON lines
--table     write the table of items to this file, .json or .csv
--failure_limit  exit with 1 if a larger share of the verdicts is missing (default: 0.1)

Columns of the item table:
  n           number of graded responses
  mean        their mean score
  spread      standard deviation over the responses to one prompt, averaged over prompts
  flat        share of prompts with spread 0
  confidence  its mean and standard deviation
  signal      the item's share of its category's |weight| x confidence x spread
  missing     missing verdicts, by status

Flags, for items with 10 graded responses or more:
  saturated              mean above 0.95: little to gain
  unreachable            mean below 0.05: little to gain
  redundant              correlation beyond 0.9, by score or rank, with another item
  constant confidence    standard deviation of a critic's confidence below 0.02
  negative correlation   with the other items, by more than 2 standard errors: check the sign of the weight
  missing on low scores  grading fails more often where the other items score low, by more than 2 standard errors
"""

_OPTIONS = (
    "rubric", "data", "response", "prompt", "critics", "cache", "allow", "tokenizer", "human", "plot", "output",
    "table", "failure_limit",
)  # fmt: skip

_ROW_ITEMS = "row"
"""The name under which all items that rows hold themselves are reported together, as in the table of items."""


def main(arguments: Sequence[str]) -> None:
    """Grade the responses, and print each item's health and the critics' agreement with human labels.

    Raises:
        ValueError: the command line, the rubric or the data is invalid.
        RuntimeError: more verdicts are missing than the limit allows; raised after everything is printed and written.
    """
    if not arguments or "--help" in arguments or "-h" in arguments:
        print(HELP)
        return
    words, own, _ = parsed_arguments(arguments, ["canaries"], known=_OPTIONS)
    if words or not {"rubric", "data"} <= own.keys():
        raise ValueError("grape score needs --rubric FILE and --data FILE, and no other words")
    files = _files(own)
    limit = _share(str(own.get("failure_limit", "0.1")))
    if "plot" in files and "human" not in own:
        raise ValueError("--plot needs human labels: name their column with --human")
    from grape_rl.cli.health import print_canaries, print_health, write_table
    from grape_rl.cli.human_agreement import (
        agreement_metrics,
        labels_by_row,
        plot_reliability,
        print_agreement,
        require_matplotlib,
    )
    from grape_rl.cli.response_data import prompt_column_of, read_endpoints, read_responses, token_counter
    from grape_rl.maths.grape import unweighted
    from grape_rl.model.forward import ForwardContext
    from grape_rl.reward.canary import canaries
    from grape_rl.reward.grading import assign_items, grade, rubric_critics, rubric_models
    from grape_rl.reward.rubric import load_rubric
    from grape_rl.reward.scores import rubric_scores
    from grape_rl.rubric_tools.item_health import measure_health
    from grape_rl.setup.policy import device

    if "plot" in files:
        require_matplotlib()

    # Load the rubric, the responses and the graders.
    count_tokens = token_counter(own.get("tokenizer"))
    rubric = load_rubric(str(own["rubric"]), listed(own.get("allow", "")))
    source = str(own["data"])
    data = read_responses(rubric, source, own, count_tokens)
    forward = ForwardContext(tokens_per_microbatch=8192)
    prompts = [{"prompt": response.row[prompt_column_of(own)]} for response in data.responses]
    models = rubric_models(rubric, prompts, device("auto"), forward)
    critics = rubric_critics(rubric, read_endpoints(own), files.get("cache"), device("auto"), forward)

    # Human labels are validated before any critic is paid for judging.
    assignments = assign_items(rubric, data.responses, critics)
    labels = labels_by_row(assignments, str(own["human"]), source) if "human" in own else None

    # Grade and report.
    graded = grade(assignments, models, critics)
    scores = rubric_scores(rubric, graded, data.group, unweighted)
    items = measure_health(scores, data.group, _item_settings(rubric))
    print_health(f"{len(data.responses)} responses to {len(data.group.unique())} prompts of {source}", items)
    if "canaries" in own and critics:
        print_canaries(canaries(assignments, critics))
    rewards = scores.reward[~scores.reward.isnan()]
    print(f"mean reward {float(scores.reward.nanmean()):.3f} over {len(rewards)} responses with enough verdicts")
    agreement = _agreement(graded, labels, data.group) if labels else []
    if labels:
        print_agreement(agreement)

    # Write the files.
    if "plot" in files:
        plot_reliability(files["plot"], agreement)
    if "table" in files:
        write_table(files["table"], items, {name: agreement_metrics(item) for item in agreement for name in item.items})
    if "output" in files:
        _write_records(files["output"], data.responses, scores, labels)
    for name in ("plot", "table", "output"):
        if name in files:
            print(f"written: {files[name]}")
    _check_failures(scores, limit)


def _files(own: Mapping[str, str | bool]) -> dict[str, Path]:
    """The files to write, by option.

    Raises:
        ValueError: a file cannot be written, or the table has another suffix than .json and .csv.
    """
    files = {name: Path(str(own[name])) for name in ("cache", "output", "table", "plot") if name in own}
    for name, path in files.items():
        if str(path) == own["data"]:
            raise ValueError(f"--{name} {path}: is the data itself; name another file")
        if not path.parent.is_dir() and name != "cache":
            raise ValueError(f"--{name} {path}: there is no folder {path.parent}")
    if "table" in files and files["table"].suffix not in (".json", ".csv"):
        raise ValueError(f"--table {files['table']}: should end in .json or .csv")
    return files


def _item_settings(rubric: "Rubric") -> "dict[tuple[str, str], ItemSettings]":
    """The weight (0 for a monitor) and the kind of grader of each item of the file, by category and id."""
    from grape_rl.rubric_tools.item_health import ItemSettings

    return {
        (name, item.id): ItemSettings(item.weight if item.role == "reward" else 0.0, item.judge is not None)
        for name, category in rubric.categories.items()
        for item in category.items
    }


def _agreement(
    graded: "Sequence[GradedResponse]", labels: Sequence[dict[str, float]], group: "Int[Tensor, ' b']"
) -> "list[ItemComparison]":
    """The critics' verdicts with the human labels, by item. All items that rows hold themselves count as one."""
    from dataclasses import replace

    from grape_rl.reward.row_items import PREFIX
    from grape_rl.rubric_tools.human_labels import LabeledVerdict, compare_with_people

    pairs: list[LabeledVerdict] = []
    for response, row_labels, group_id in zip(graded, labels, group.tolist(), strict=True):
        # An unclassified response has a verdict, but no items.
        for item, verdict in zip(response.items, response.verdicts, strict=bool(response.items)):
            if not item.judge or item.id not in row_labels:
                continue
            judge, human = item.judge, row_labels[item.id]
            if item.id.startswith(PREFIX):
                judge, verdict = judge.model_copy(update={"criterion": _ROW_ITEMS}), replace(verdict, item=_ROW_ITEMS)
            pairs.append(LabeledVerdict(response.category, judge, verdict, human, group_id))
    return compare_with_people(pairs)


def _write_records(
    path: Path, responses: "Sequence[Response]", scores: "Scores", labels: Sequence[dict[str, float]] | None
) -> None:
    """Write each response with its verdicts, its reward and its human labels, as JSON lines."""
    from grape_rl.rollout.records import response_records

    no_advantage = scores.reward.new_full((len(responses),), float("nan"))
    lines = response_records(responses, scores, no_advantage)
    if labels:
        lines = tuple({**line, "human": row_labels} for line, row_labels in zip(lines, labels, strict=True))
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def _check_failures(scores: "Scores", limit: float) -> None:
    """Raise if more verdicts are missing than the limit allows. Unlabeled verdicts are not failures."""
    from dataclasses import replace

    from grape_rl.reward.scores import check_missing

    attempted = tuple(tuple(verdict for verdict in row if verdict.status != "unlabeled") for row in scores.verdicts)
    check_missing(replace(scores, verdicts=attempted), limit)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ValueError(f"--failure_limit {text}: should be a share from 0 to 1")
    return share
