"""What judges take from the top of the rubric, and what they don't."""

import json

import pytest

from grape_rl.reward.rubric import load_rubric

DEFAULTS = (
    "{critic: small, confidence: {mode: agreement, k: 3, transform: chance_corrected}, labels: {bad: 0, good: 1}, "
    "anchors: {bad: worthless}, show: [prompt, response, reference], reference: '${row.answer}'}"
)


def load(tmp_path, judge, defaults=DEFAULTS):
    text = f"schema: grape-rubric/1\ndefaults: {{judge: {defaults}}}\ncategories:\n  all:\n    items:\n"
    (tmp_path / "rubric.yaml").write_text(text + f"      - {{id: x, judge: {judge}}}\n")
    return load_rubric(tmp_path / "rubric.yaml").categories["all"].items[0].judge


def test_a_judge_takes_what_it_does_not_say(tmp_path):
    found = load(tmp_path, "{criterion: It is right.}")
    assert (found.criterion, found.critic, found.labels) == ("It is right.", "small", {"bad": 0, "good": 1})
    assert (found.show, found.reference) == (("prompt", "response", "reference"), "${row.answer}")
    assert found.confidence.model_dump(exclude_defaults=True) == {
        "mode": "agreement", "k": 3, "transform": "chance_corrected"
    }  # fmt: skip
    assert found.anchors == {"bad": "worthless"}
    plain = load(tmp_path, "{criterion: x}", "{}")
    assert (plain.critic, plain.labels, plain.confidence.mode) == ("default", {"no": 0, "yes": 1}, "verbalized")


def test_what_it_says_itself_counts_and_nothing_is_mixed(tmp_path):
    found = load(tmp_path, "{criterion: x, critic: large, labels: {low: 0, mid: 0.5, high: 1}, show: [response]}")
    assert (found.critic, found.labels) == ("large", {"low": 0, "mid": 0.5, "high": 1})
    assert found.anchors == {} and found.show == ("response",) and found.reference is None


@pytest.mark.parametrize(
    ("own", "mode", "k", "transform"),
    [
        ("{k: 5}", "agreement", 5, "chance_corrected"),
        ("{transform: raw}", "agreement", 3, "raw"),
        ("{mode: logprob}", "logprob", 1, "chance_corrected"),
        ("{mode: agreement}", "agreement", 3, "chance_corrected"),
    ],
)
def test_confidence_is_completed_key_by_key(own, mode, k, transform, tmp_path):
    found = load(tmp_path, f"{{criterion: x, confidence: {own}}}").confidence
    assert (found.mode, found.k, found.transform) == (mode, k, transform)


@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        ("{critics: x}", "defaults.judge: unknown key 'critics'; did you mean 'critic'?"),
        ("{criterion: x}", "defaults.judge: unknown key 'criterion'"),
        ("{confidence: {mode: agreemnt}}", "defaults.judge.confidence.mode: Input should be 'verbalized', 'logprob'"),
        ("{confidence: {kk: 1}}", "defaults.judge.confidence: unknown key 'kk'"),
        ("{labels: {no: 0, yes: 1}}", "defaults.judge.labels: the label False is not text; put it in quotes"),
        ("{labels: {bad: 0, good: 2}}", "defaults.judge.labels.good: Input should be less than or equal to 1"),
        ("{show: [promt]}", "defaults.judge.show[0]: Input should be 'prompt'"),
        ("{reference: '${answer}'}", "defaults.judge.reference: '${answer}' is not a lookup"),
        ("{confidence: {k: 3}}", "items[x].judge.confidence: k is the number of calls in mode agreement"),
        ("3", "defaults.judge: should be a mapping but is 3"),
    ],
)
def test_a_fault_in_the_defaults_is_told_once_and_where(defaults, message, tmp_path):
    with pytest.raises(ValueError) as told:
        load(tmp_path, "{criterion: x}", defaults)
    assert message in str(told.value) and "; categories" not in str(told.value) and "\n" not in str(told.value)


def test_only_judges_have_defaults(tmp_path):
    told = {"schema": "grape-rubric/1", "defaults": {"check": {}}, "categories": {"a": {"items": []}}}
    (tmp_path / "r.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"r.json: defaults: unknown key 'check'; known: judge"):
        load_rubric(tmp_path / "r.json")
