"""``grape calibrate``: fit critics' confidence to human labels of the same responses."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from grape_rl.cli.arguments import listed, parsed_arguments

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

    from grape_rl.reward.critic.calibration import CalibrationCurve
    from grape_rl.reward.critic.judging import Judging
    from grape_rl.reward.grading import Assignment
    from grape_rl.rubric_tools.human_labels import ItemComparison

HELP = """usage: grape calibrate --rubric FILE --data FILE --critics FILE --output FILE [--KEY VALUE ...]

--rubric    a rubric file, with items that critics judge
--data      rows with one response each, and human labels of it
--critics   a YAML file of the critics, by name: {default: {base_url: URL, model: NAME}}
--output    the .json file of the calibration, which a rubric names, relative to its folder, as
            confidence: {mode: verbalized, transform: calibrated, calibration: FILE}
--human     the column of the labels by item, {ITEM: LABEL}, or the prefix of columns NAME.ITEM (default: human). A
            number from 0 to 1 that is not a label stands for the label with the nearest score.
--method    isotonic (a non-decreasing curve) or platt (a logistic curve, two parameters) (default: isotonic)
--fewest    the fewest labels that a curve needs; an item with fewer uses its critic's curve (default: 30)
--cache     a file that caches the critics' answers, so that no call is made twice
--response  the column of the response (default: response)
--prompt    the column of the prompt (default: prompt)
--allow     Python files and modules that the rubric may call, separated by commas

Only labeled items are judged. The confidence is the critic's raw confidence, whatever transform the rubric names. base
rate is the accuracy of always giving the most common label; κ is the agreement beyond chance, with its 95 % confidence
interval; ECE is the expected calibration error, before, and after with cross-validation over prompts.
"""

_OPTIONS = (
    "rubric", "data", "critics", "output", "human", "method", "fewest", "cache", "response", "prompt", "allow"
)  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    """Judge the labeled responses, fit the fit_curves, print their quality, and write them.

    Raises:
        ValueError: the command line, the rubric or the data is invalid, or no critic has enough labels.
    """
    if not arguments or "--help" in arguments or "-h" in arguments:
        print(HELP)
        return
    words, own, _ = parsed_arguments(arguments, known=_OPTIONS)
    if words or not {"rubric", "data", "critics", "output"} <= own.keys():
        raise ValueError(
            "grape calibrate needs --rubric, --data, --critics and --output, each with a FILE, and no other words"
        )
    output, method = Path(str(own["output"])), str(own.get("method", "isotonic"))
    if output.suffix != ".json" or str(output) == own["data"]:
        raise ValueError(f"--output {output}: should be a .json file, and not the data")
    if not output.parent.is_dir():
        raise ValueError(f"--output {output}: there is no folder {output.parent}")
    if method not in ("isotonic", "platt"):
        raise ValueError(f"--method {method}: should be isotonic or platt")
    from grape_rl.cli.human_agreement import labels_by_row
    from grape_rl.cli.response_data import read_endpoints, read_responses, token_counter
    from grape_rl.reward.critic.calibration import MIN_LABELS, Calibration, calibration_text, without_calibration
    from grape_rl.reward.grading import assign_items, rubric_critics
    from grape_rl.reward.rubric import rubric_from_data
    from grape_rl.rubric_tools.human_labels import fit_curves
    from grape_rl.schema import parsed
    from grape_rl.setup.policy import device

    fewest = str(own.get("fewest", MIN_LABELS))
    if not fewest.isdigit() or int(fewest) < 2:
        raise ValueError(f"--fewest {fewest}: should be an integer of at least 2")

    # Load the rubric without its transforms: the calibration that it names may not exist yet.
    path, source = Path(str(own["rubric"])), str(own["data"])
    rubric = rubric_from_data(without_calibration(parsed(path)), path, listed(own.get("allow", "")))
    data = read_responses(rubric, source, own, token_counter(None))
    cache = Path(str(own["cache"])) if "cache" in own else None
    critics = rubric_critics(rubric, read_endpoints(own), cache, device("auto"))
    assignments = assign_items(rubric, data.responses, critics)
    labels = labels_by_row(assignments, str(own.get("human", "human")), source)
    assert critics  # the labels are of judged items

    # Judge, fit and report.
    items = _judge_labeled(assignments, labels, data.group, critics)
    fitted = fit_curves(items, method, int(fewest))
    _print_quality(items, fitted, source, int(fewest))
    usage = critics.usage
    tokens = usage.prompt_tokens + usage.completion_tokens
    print(f"{usage.calls} calls, {usage.cached} of them answered by the cache; {tokens} tokens, cost {usage.cost:.4g}")
    if not fitted:
        raise ValueError(f"no critic has {fewest} labels, which a curve needs; nothing is written")
    output.write_text(calibration_text(Calibration(curves=fitted)), encoding="utf-8")
    print(f"written: {output}")


def _judge_labeled(
    assignments: "Sequence[Assignment]",
    labels: Sequence[dict[str, float]],
    group: "Int[Tensor, ' b']",
    critics: "Judging",
) -> "list[ItemComparison]":
    """The critics' verdicts on the labeled items, with the labels, by item."""
    from grape_rl.reward.grading import judge_job
    from grape_rl.rubric_tools.human_labels import LabeledVerdict, compare_with_people

    labeled = [
        (assignment, item, row_labels[item.id], group_id)
        for assignment, row_labels, group_id in zip(assignments, labels, group.tolist(), strict=True)
        for item in assignment.items
        if item.judge and item.id in row_labels
    ]
    verdicts = critics.verdicts([judge_job(item, assignment.response) for assignment, item, _, _ in labeled])
    return compare_with_people(
        LabeledVerdict(assignment.category, item.judge, verdict, human, group_id)
        for (assignment, item, human, group_id), verdict in zip(labeled, verdicts, strict=True)
        if item.judge
    )


def _print_quality(
    items: "Sequence[ItemComparison]", fitted: "Sequence[CalibrationCurve]", source: str, fewest: int
) -> None:
    """Print the critics' agreement with human labels, and the calibration error before and after."""
    from grape_rl.cli.human_agreement import AGREEMENT_COLUMNS, WEIGHTED_KAPPA_NOTE, agreement_cells
    from grape_rl.maths.calibration import brier, expected_calibration_error
    from grape_rl.training.display import table

    def curve_of(source_of: object) -> "CalibrationCurve | None":
        return next((curve for curve in fitted if curve.source == source_of), None)

    lines: list[list[str | float | int]] = []
    for item in items:
        curve = curve_of(item.source)
        ece, brier_score = (score(item.confidence, item.correct) for score in (expected_calibration_error, brier))
        curve_owner = "its own" if curve else "its critic's" if curve_of(item.source.whole_critic) else "none"
        lines.append([*agreement_cells(item), ece, _ece_after(curve), brier_score, curve_owner])
    for curve in fitted:
        if curve.source == curve.source.whole_critic:
            name = f"critic {curve.source.critic} ({curve.source.mode})"
            lines.append([name, curve.n, *[math.nan] * 3, "", curve.ece_before, _ece_after(curve), math.nan, ""])
    table(f"critics vs. human labels of {source}", [*AGREEMENT_COLUMNS, "ECE", "after", "Brier", "curve"], lines)
    if any(len(item.source.labels or ()) > 2 for item in items):
        print(WEIGHTED_KAPPA_NOTE)
    if failures := sum(item.missing for item in items):
        print(f"left out: {failures} human labels where the critic's verdict is missing")
    if few := [", ".join(item.items) for item in items if len(item.correct) < fewest]:
        print(f"fewer than {fewest} labels, so no curve of its own: {'; '.join(few)}")


def _ece_after(curve: "CalibrationCurve | None") -> float:
    return math.nan if curve is None or curve.ece_after is None else curve.ece_after
