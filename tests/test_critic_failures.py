"""Failures of a critic in a run: no failure is a score, and its effect is bounded by the imputed scores."""

import math

import pytest

from grape_rl import train
from grape_rl.config.files import merge
from grape_rl.training.log import Log
from small_runs import killed_and_resumed, lines, settings, told, weights

RUBRIC = """
schema: grape-rubric/1
categories:
  sums:
    items:
      - {id: even, weight: 1, check: {type: regex, pattern: "[02468]"}}
      - {id: clear, weight: 2, judge: {criterion: It is clear., labels: {bad: 0, fair: 0.5, good: 1}}}
      - {id: kind, weight: 3, judge: {criterion: It is kind.}}
      - {id: rude, weight: -1, judge: {criterion: It is rude.}}
"""
WEIGHT = {"even": 1, "clear": 2, "kind": 3, "rude": -1}
KINDS = ("timeout", "unparseable", "truncated", "refused", "infrastructure", "dropped")


def judged(folder, faults=None, seed=0, **more):
    """The settings of a run whose critic fails at these rates; a tenth of its calls are 7.5 % of all verdicts."""
    wanted = merge(settings(folder, "grape"), {"steps": 1, "prompts_per_step": 8, **more})
    (folder / "rubric.yaml").write_text(RUBRIC)
    wanted["reward"] |= {"critics": {"default": {"stub": {"faults": faults or {}, "fault_seed": seed}}}}
    wanted["reward"].setdefault("failure_limit", 0.15)
    return wanted


def responses(run, step=1):
    """The responses of a step: prompt, advantage, and verdicts by item."""
    found = lines(run.folder / "rollouts" / f"step-{step:06d}.jsonl")
    return [line | {"verdicts": {v["item"]: v for v in line["verdicts"]}} for line in found]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The responses of the first step without failures, by scale of the advantage."""
    found = {}
    for scale in ("none", "group"):
        folder = tmp_path_factory.mktemp(scale)
        found[scale] = responses(train(judged(folder, options={"scale": scale})))
    return found


def mean(values):
    values = list(values)
    return math.fsum(values) / len(values)


def shares(group):
    """Each item's share w·c̄ / Σ|w|c̄ in a group, by a loop; 0 for an item with less than half of its verdicts."""
    sure = {}
    for item, weight in WEIGHT.items():
        known = [r["verdicts"][item]["confidence"] for r in group if r["verdicts"][item]["score"] is not None]
        sure[item] = weight * mean(known) if 2 * len(known) >= len(group) else 0.0
    total = math.fsum(map(abs, sure.values()))
    return {item: value / total for item, value in sure.items()}


def bound(true, seen):
    """A bound on the change of each response's advantage in a group, if ``seen`` is ``true`` with failures."""
    before, after = shares(true), shares(seen)
    middle = {item: mean(r["verdicts"][item]["score"] for r in true) for item in WEIGHT}
    moved = []
    for response, other in zip(true, seen, strict=True):
        guessed = drifted = 0.0
        for item in WEIGHT:
            score = response["verdicts"][item]["score"]
            if other["verdicts"][item]["score"] is None and after[item]:
                known = [r["verdicts"][item]["score"] for r in seen if r["verdicts"][item]["score"] is not None]
                guessed += abs(after[item]) * abs(score - mean(known))
            drifted += abs(after[item] - before[item]) * abs(score - middle[item])
        moved.append(guessed + drifted)
    kept = [i for i, other in enumerate(seen) if other["reward"] is not None]
    if not kept:
        return moved
    left_out = abs(mean(true[i]["reward"] for i in kept) - mean(r["reward"] for r in true))
    return [own + mean(moved[i] for i in kept) + left_out for own in moved]


def grouped(found, size=4):
    return [found[i : i + size] for i in range(0, len(found), size)]


@pytest.mark.parametrize(
    "faults", [*({kind: 0.1} for kind in KINDS), dict.fromkeys(KINDS, 1 / 60)], ids=[*KINDS, "all"]
)
def test_a_failure_changes_an_advantage_by_no_more_than_the_imputation(faults, sound, tmp_path):
    """A run whose critic fails in a tenth of its calls completes, without a score for any failure.

    Without a scale the advantage is A_i = R_i − mean R, R_i = Σ_k p_k s_ik with p_k = w_k c̄_k / Σ|w|c̄. A failure puts
    the item's mean m'_k over its valid verdicts in place of s_ik, and changes the shares to p'_k. So

        R'_i − R_i = Σ_{k missing of i} p'_k (m'_k − s_ik) + Σ_k (p'_k − p_k) s_ik

    and, since an advantage does not depend on a constant added to the whole group, with m_k the mean of s_k,

        |A'_i − A_i| ≤ B_i + mean B,  B_i = Σ_{k missing of i} |p'_k| |s_ik − m'_k| + Σ_k |p'_k − p_k| |s_ik − m_k|:

    the imputation error, plus the effect of the changed mean confidence. A response without verdicts for more than half
    of the weight has no reward and no advantage; the mean over the rest then differs by |mean_kept R − mean R| more.
    A group without a failure keeps its advantages to the bit.
    """
    run = train(judged(tmp_path, faults, options={"scale": "none"}))
    moved = untouched = 0
    for true, seen in zip(grouped(sound["none"]), grouped(responses(run)), strict=True):
        assert [r["response"] for r in true] == [r["response"] for r in seen]
        for one, other in zip(true, seen, strict=True):
            for item, verdict in other["verdicts"].items():
                missing = verdict["status"] != "ok"
                assert (verdict["score"] is None) == (verdict["confidence"] is None) == missing
                assert missing or verdict == one["verdicts"][item]
        whole = all(v["score"] is not None for r in seen for v in r["verdicts"].values())
        for one, other, most in zip(true, seen, bound(true, seen), strict=True):
            if whole:
                assert one["advantage"] == other["advantage"]
            elif other["advantage"] is not None:
                assert abs(one["advantage"] - other["advantage"]) <= most + 1e-6  # advantages are float32
                moved += one["advantage"] != other["advantage"]
            else:
                lost = sum(abs(w) for k, w in WEIGHT.items() if other["verdicts"][k]["score"] is None)
                assert other["reward"] is None and lost > 3.5
        untouched += whole
    statuses = {v["status"] for r in responses(run) for v in r["verdicts"].values()} - {"ok"}
    assert statuses == {"unparseable" if kind == "dropped" else kind for kind in faults}
    assert moved > 4 and untouched > 0 and run.metrics[0]["missing"] > 4


def test_groups_without_a_failure_keep_their_scaled_advantages(sound, tmp_path):
    run = train(judged(tmp_path, {"timeout": 0.1}))
    kept = 0
    for true, seen in zip(grouped(sound["group"]), grouped(responses(run)), strict=True):
        if all(v["score"] is not None for r in seen for v in r["verdicts"].values()):
            assert [r["advantage"] for r in true] == [r["advantage"] for r in seen]
            kept += 1
    assert 0 < kept < 8


def test_a_rate_limit_changes_nothing(sound, tmp_path):
    run = train(judged(tmp_path, {"rate_limited": 0.1}))
    assert responses(run) == sound["group"] and run.metrics[0]["missing"] == 0


def test_a_run_with_failures_resumes_to_the_same_bits(tmp_path, monkeypatch):
    """In a killed and resumed run, the same calls fail again."""
    faults = dict.fromkeys(KINDS, 1 / 60)
    wanted = judged(tmp_path, faults, steps=4, checkpoint_every=2, prompts_per_step=3)
    wanted["reward"]["failure_limit"] = 0.3
    run, _ = killed_and_resumed(wanted, tmp_path, monkeypatch)
    assert sum(step["missing"] for step in run.metrics) > 0


def test_an_outage_stops_the_run_without_loss(tmp_path):
    """Three in ten calls fail from step 3 on: the error is one line, and the earlier steps can be resumed."""
    straight = train(judged(tmp_path, steps=4, output=str(tmp_path / "straight")))
    train(judged(tmp_path, steps=2))
    with pytest.raises(RuntimeError) as stopped:
        train(judged(tmp_path, {"timeout": 0.27, "refused": 0.03}, steps=4), resume=True)
    said = str(stopped.value)
    assert "\n" not in said and "are missing, above the limit of 15%" in said
    assert any(f"of item {name!r}, mostly timeout: the stub critic's configured timeout" in said for name in WEIGHT)
    run = train(judged(tmp_path, steps=4, seed=5), resume=True)
    one, other = weights(run.model), weights(straight.model)
    assert all(one[key].equal(other[key]) for key in one)
    assert told(run) == told(straight)
    for step in (1, 2, 3, 4):
        assert responses(run, step) == responses(straight, step)


def test_steps_before_an_outage_are_kept_even_without_checkpoints(tmp_path):
    """A critic by a function stops answering after two steps."""
    (tmp_path / "mine.py").write_text(
        "from pathlib import Path\n"
        "def judge(response, criterion, labels):\n"
        f"    return None if Path({str(tmp_path / 'down')!r}).exists() else labels[len(response) % len(labels)]\n"
    )

    def wanted(name):
        found = judged(tmp_path, steps=4, prompts_per_step=3, checkpoint_every=0, output=str(tmp_path / name))
        found["reward"] |= {"critics": {"default": {"stub": {"call": "mine.py:judge"}}}, "allow": ["mine.py"]}
        return found

    straight = train(wanted("straight"))
    whole = Log.step

    def fails_after_two(self, number, metrics):
        whole(self, number, metrics)
        if number == 2:
            (tmp_path / "down").touch()

    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(RuntimeError, match=r"mostly refused: mine.py:judge returned"),
    ):
        patch.setattr(Log, "step", fails_after_two)
        train(wanted("run"))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")] == ["step-2"]
    (tmp_path / "down").unlink()
    run = train(wanted("run"), resume=True)
    assert told(run) == told(straight)
    assert all(tensor.equal(weights(straight.model)[key]) for key, tensor in weights(run.model).items())


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seed": 1}, "reward.critics.default.stub.seed"),
        ({"call": "mine.py:judge"}, "reward.critics.default.stub.call"),
    ],
)
def test_a_run_is_not_resumed_with_other_opinions(changed, named, tmp_path):
    (tmp_path / "mine.py").write_text("def judge(response, criterion, labels): return labels[0]\n")
    train(judged(tmp_path))
    wanted = judged(tmp_path, steps=2)
    wanted["reward"] |= {"critics": {"default": {"stub": {"faults": {}, "fault_seed": 0} | changed}}}
    with pytest.raises(ValueError, match=f"was run with another {named}; resume it"):
        train(wanted, resume=True)
