"""``grape calibrate``: fit what critics' confidence is worth to people's labels of the same responses."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from grape_rl.cli.arguments import listed, parsed_arguments

if TYPE_CHECKING:
    from grape_rl.cli.response_data import Existing
    from grape_rl.reward.critic.calibration import CalibrationCurve
    from grape_rl.reward.critic.human_labels import ItemComparison
    from grape_rl.reward.critic.judging import Judging
    from grape_rl.reward.rubric import Rubric

HELP = """usage: grape calibrate --rubric FILE --data FILE --critics FILE --output FILE [--KEY VALUE ...]

--rubric    a rubric file, with items that critics judge
--data      rows with a response each, and people's labels of it
--critics   a YAML file with the critics, by name: {default: {base_url: URL, model: NAME}}
--output    where the calibration goes, a .json file: what a rubric names by
            confidence: {mode: verbalized, transform: calibrated, calibration: FILE}, a path beside the rubric
--human     the column with the labels by item, {ITEM: LABEL}, or the beginning of columns NAME.ITEM (human). A number
            from 0 to 1 that is no label stands for the one with the nearest score.
--method    isotonic (a rising curve of any shape) or platt (a logistic one, of two numbers) (isotonic)
--fewest    labels that a curve needs; an item with fewer takes that of its critic as a whole (30)
--cache     a file that keeps the critics' answers: what was asked once is not paid for again
--response  the column with the response (response)
--prompt    the column with the prompt (prompt)
--allow     the Python files and modules that the rubric may call, with commas between

Only what people have labeled is judged, and the confidence is taken as the critic tells it, whatever transform the
rubric names. base rate is what always giving people's commonest label would have; κ the agreement beyond chance, with
its interval of 95 %; ECE how far confidence is from the share of right labels: before, and after, by curves fitted to
other prompts than those they are measured on.
"""

KNOWN = ("rubric", "data", "critics", "output", "human", "method", "fewest", "cache", "response", "prompt", "allow")


def main(arguments: Sequence[str]) -> None:
    """Judge what people have labeled, fit the curves, print how good they are, and write them."""
    if not arguments or "--help" in arguments or "-h" in arguments:
        print(HELP)
        return
    words, own, _ = parsed_arguments(arguments, known=KNOWN)
    if words or not {"rubric", "data", "critics", "output"} <= own.keys():
        raise ValueError("grape calibrate needs --rubric, --data, --critics and --output, a FILE each, and no words")
    out, told = Path(str(own["output"])), str(own.get("method", "isotonic"))
    if out.suffix != ".json" or str(out) == own["data"]:
        raise ValueError(f"--output {out}: should be a .json file, and not the data")
    if not out.parent.is_dir():
        raise ValueError(f"--output {out}: there is no folder {out.parent}")
    if told not in ("isotonic", "platt"):
        raise ValueError(f"--method {told}: there are isotonic and platt")
    from grape_rl.cli.human_agreement import people_of
    from grape_rl.cli.response_data import counter, endpoints_of, existing
    from grape_rl.reward.critic.calibration import MIN_LABELS, Calibration, calibration_text, without_calibration
    from grape_rl.reward.critic.human_labels import fit_curves
    from grape_rl.reward.grading import categories_of, rubric_critics
    from grape_rl.reward.rubric import rubric_of
    from grape_rl.schema import parsed
    from grape_rl.setup.policy import device

    fewest = str(own.get("fewest", MIN_LABELS))
    if not fewest.isdigit() or int(fewest) < 2:
        raise ValueError(f"--fewest {fewest}: should be a whole number of at least 2")
    path = Path(str(own["rubric"]))
    # Without its transforms: the calibration that the rubric names may not be there yet.
    rubric = rubric_of(without_calibration(parsed(path)), path, listed(own.get("allow", "")))
    columns = str(own.get("response", "response")), str(own.get("prompt", "prompt"))
    found = existing(rubric, str(own["data"]), *columns, counter(None))
    kept = Path(str(own["cache"])) if "cache" in own else None
    critics = rubric_critics(rubric, endpoints_of(own), kept, device("auto"))
    homes = categories_of(rubric, found.answers, critics)
    people = people_of(rubric, found, homes, str(own.get("human", "human")), str(own["data"]))
    assert critics  # people's labels are of judged items
    items = _judged(rubric, found, homes, people, critics)
    made = fit_curves(items, told, int(fewest))
    _print(items, made, str(own["data"]), int(fewest))
    of = critics.usage
    tokens = of.prompt_tokens + of.completion_tokens
    print(f"{of.calls} calls, {of.cached} of them answered by the cache; {tokens} tokens, cost {of.cost:.4g}")
    if not made:
        raise ValueError(f"no critic has {fewest} labels to be calibrated by, and nothing is written")
    out.write_text(calibration_text(Calibration(curves=made)), encoding="utf-8")
    print(f"written: {out}")


def _judged(
    rubric: "Rubric",
    found: "Existing",
    homes: Sequence[str],
    people: Sequence[dict[str, float]],
    critics: "Judging",
) -> "list[ItemComparison]":
    """The critics' verdicts on what people have labeled, item by item."""
    from grape_rl.reward.critic.human_labels import LabeledVerdict, compare_with_people
    from grape_rl.reward.grading import judge_job
    from grape_rl.reward.rubric import items_of

    asked = [
        (name, item.judge, judge_job(item, answer), labels[item.id], group)
        for name, answer, labels, group in zip(homes, found.answers, people, found.group.tolist(), strict=True)
        for item in items_of(rubric, name, answer.row)
        if item.judge and item.id in labels
    ]
    verdicts = critics.verdicts([job for _, _, job, _, _ in asked])
    return compare_with_people(
        LabeledVerdict(name, judge, verdict, human, group)
        for (name, judge, _, human, group), verdict in zip(asked, verdicts, strict=True)
    )


def _print(items: "Sequence[ItemComparison]", made: "Sequence[CalibrationCurve]", source: str, fewest: int) -> None:
    """How far the critics agree with people, and what calibration does to their confidence."""
    from grape_rl.cli.human_agreement import AGREEMENT, agreement_cells
    from grape_rl.maths.calibration import brier, expected_calibration_error
    from grape_rl.training.display import table

    def curve_of(judged: object) -> "CalibrationCurve | None":
        return next((each for each in made if each.source == judged), None)

    lines: list[list[str | float | int]] = []
    for of in items:
        curve = curve_of(of.source)
        scores = [expected_calibration_error(of.confidence, of.correct), brier(of.confidence, of.correct)]
        which = "its own" if curve else "its critic's" if curve_of(of.source.whole_critic) else "none"
        lines.append([*agreement_cells(of), scores[0], _after(curve), scores[1], which])
    for curve in made:
        if curve.source == curve.source.whole_critic:
            name = f"critic {curve.source.critic} ({curve.source.mode})"
            lines.append([name, curve.n, *[math.nan] * 3, "", curve.ece_before, _after(curve), math.nan, ""])
    table(f"critics beside people's labels of {source}", [*AGREEMENT, "ECE", "after", "Brier", "curve"], lines)
    if any(len(of.source.labels or ()) > 2 for of in items):
        print("κ beyond two labels: a miss counts by the square of its distance")
    if failed := sum(of.missing for of in items):
        print(f"left out: {failed} labels where the critic's verdict failed")
    if few := [", ".join(of.items) for of in items if len(of.correct) < fewest]:
        print(f"fewer than {fewest} labels, so no curve of its own: {'; '.join(few)}")


def _after(curve: "CalibrationCurve | None") -> float:
    return math.nan if curve is None or curve.ece_after is None else curve.ece_after
