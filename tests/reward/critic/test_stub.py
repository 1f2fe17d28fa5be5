"""The stub critic: equal questions have equal answers, and each kind of failure has its configured rate."""

import asyncio
import json
import math
import time
from collections import Counter

import pytest

from grape_rl.reward.critic.judge import Confidence, Judge
from grape_rl.reward.critic.judging import CriticJob, Judging
from grape_rl.reward.critic.prompt import answer_schema
from grape_rl.reward.critic.settings import StubbedCritic, parse_critics
from grape_rl.reward.critic.stub import MAX_TRIES, FaultRates, StubCritic, StubSettings
from grape_rl.types import Response

SCALE = Judge(criterion="It is right.", labels={"bad": 0, "fair": 0.5, "good": 1})
KINDS = {
    "timeout": "timeout",
    "unparseable": "unparseable",
    "truncated": "truncated",
    "refused": "refused",
    "infrastructure": "infrastructure",
    "dropped": "unparseable",
}


def jobs(count, judge=SCALE):
    return [CriticJob("item", judge, Response("the question", f"answer {i}", {}, 10, "stop")) for i in range(count)]


def judging(stub, cache=None):
    stub = stub.stub if isinstance(stub, StubbedCritic) else StubSettings.model_validate(stub)
    return Judging({"default": lambda: StubCritic(stub)}, cache)


def said(stub, count=150, judge=SCALE, cache=None):
    return judging(stub, cache).verdicts(jobs(count, judge))


def plain(verdicts):
    return [(v.status, str(v.score), str(v.confidence)) for v in verdicts]


def test_an_answer_does_not_depend_on_the_mark_or_on_other_questions():
    first, again = said({}), said({})
    assert plain(first) == plain(again) and len(set(plain(first))) > 10
    assert plain(said({}, count=7)) == plain(first[:7])
    assert plain(said({"seed": 1})) != plain(first)
    other = said({}, judge=SCALE.model_copy(update={"criterion": "It is kind."}))
    assert plain(other) != plain(first)


def test_the_answer_is_the_same_on_any_machine():
    messages = [
        {"role": "system", "content": "[0123456789abcdef]"},
        {"role": "user", "content": "[0123456789abcdef] x"},
    ]
    stub = StubSettings()
    reply = asyncio.run(StubCritic(stub).reply(messages, answer_schema([SCALE]), (), 0))
    assert [json.loads(reply.text)[key] for key in ("verdict", "confidence")] == ["bad", 9]


def test_labels_and_confidences_are_uniform():
    found = said({}, count=450)
    count = Counter(v.score for v in found)
    # each label 150 times, standard deviation 10
    assert set(count) == {0, 0.5, 1} and all(abs(n - 150) < 4 * 10 for n in count.values())
    sure = [v.confidence for v in found]
    assert min(sure) >= 0.3 and max(sure) == 1 and sum(sure) / 450 == pytest.approx(2 / 3, abs=0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_calls_fail_at_the_configured_rate_and_the_rest_are_unchanged(kind):
    whole, few, more = said({}), said({"faults": {kind: 0.2}}), said({"faults": {kind: 0.5}})
    for found, rate in ((few, 0.2), (more, 0.5)):
        failed = [v for v in found if v.missing]
        assert {v.status for v in failed} == {KINDS[kind]}
        assert all(math.isnan(v.score) and v.reasoning for v in failed)
        assert abs(len(failed) - 150 * rate) < 4 * math.sqrt(150 * rate * (1 - rate))
        assert [plain([v]) for v in found if not v.missing] == [
            plain([v]) for v, other in zip(whole, found, strict=True) if not other.missing
        ]
    assert all(b.missing for a, b in zip(few, more, strict=True) if a.missing)
    other = said({"faults": {kind: 0.2}, "fault_seed": 1})
    assert [v.missing for v in other] != [v.missing for v in few]


def test_several_kinds_of_failures():
    found = said({"faults": dict.fromkeys(KINDS, 0.1)}, count=400)
    count = Counter(v.status for v in found)
    assert count["ok"] == pytest.approx(160, abs=4 * 10) and count["unparseable"] == pytest.approx(80, abs=4 * 8)
    assert all(count[kind] == pytest.approx(40, abs=4 * 6) for kind in KINDS.values() if kind != "unparseable")


def test_rate_limited_tries_are_repeated():
    of = judging({"faults": {"rate_limited": 0.5}})
    found = of.verdicts(jobs(150))
    told = [v for v, w in zip(found, said({}), strict=True) if plain([v]) != plain([w])]
    # half of the tries are turned away: two tries a call, and 150/2^8 calls that never get through
    assert of.usage.tries == pytest.approx(300, abs=4 * 17) and len(told) < 5
    assert all(v.reasoning == f"RateLimitError: 429 on each of {MAX_TRIES} tries" for v in told)
    assert {v.status for v in said({"faults": {"rate_limited": 1}}, count=5)} == {"infrastructure"}


def test_log_probs_and_agreement():
    by_logp = said({}, judge=SCALE.model_copy(update={"confidence": Confidence(mode="logprob")}))
    assert len({v.confidence for v in by_logp}) > 140
    assert all(1 / 3 < v.confidence < 1 for v in by_logp)
    broken = said({"faults": {"dropped": 1.0}}, 5, SCALE.model_copy(update={"confidence": Confidence(mode="logprob")}))
    assert {v.status for v in broken} == {"unparseable"}
    by_agreement = said({}, judge=SCALE.model_copy(update={"confidence": Confidence(mode="agreement", k=3)}))
    assert len({v.confidence for v in by_agreement}) >= 3 and {v.score for v in by_agreement} == {0, 0.5, 1}


FUNCTION = """
def judge(response, criterion, labels):
    if "raise" in response:
        raise OSError("no disk")
    if "none" in response:
        return None
    if "odd" in response:
        return "odd"
    if "sure" in response:
        return "good", 2
    return ("good", 0.75) if response == "a\\nb\\n[mark] response" and criterion == "It is right." else labels[0]
"""


def test_a_function_gives_the_opinion(tmp_path):
    (tmp_path / "mine.py").write_text(FUNCTION)
    told = {"default": {"stub": {"call": "mine.py:judge"}}}
    stub = parse_critics(told, "critics", tmp_path, ["mine.py"])["default"].stub
    texts = ["a\nb\n[mark] response", "x", "raise", "none", "odd", "sure"]
    of = judging(stub)
    found = of.verdicts([CriticJob("item", SCALE, Response("the question", text, {}, 10, "stop")) for text in texts])
    assert plain(found)[:2] == [("ok", "1.0", "0.75"), ("ok", "0.0", "1.0")]
    assert [(v.status, v.reasoning) for v in found[2:]] == [
        ("infrastructure", "mine.py:judge: OSError: no disk"),
        ("refused", "mine.py:judge returned no label"),
        ("infrastructure", "mine.py:judge: ValueError: returned 'odd', which is not one of the labels bad, fair, good"),
        ("infrastructure", "mine.py:judge: ValueError: returned the confidence 2, which is not in [0, 1]"),
    ]
    with pytest.raises(ValueError, match=r"critics\.default: .*not allowed: if you trust it, add 'mine.py' to reward"):
        parse_critics(told, "critics", tmp_path)
    with pytest.raises(ValueError, match=r"'mine.py:judge' was not loaded"):
        StubCritic(parse_critics(told, "critics")["default"].stub)  # config reads it before there is a folder


def asked(text, form, **told):
    """The parsed answer to one call."""
    rules = {"role": "system", "content": "The mark is [0123456789abcdef]."}
    shown = f"[0123456789abcdef] response begins\n7\n[0123456789abcdef] response ends\n\n{text}"
    call = StubCritic(StubSettings.model_validate(told)).reply([rules, {"role": "user", "content": shown}], form, (), 0)
    return json.loads(asyncio.run(call).text)


def test_opinions_are_equal_in_single_and_batched_calls():
    form = answer_schema([SCALE])
    alone = {
        text: asked(f"Criterion: {text}\n\nGive your reasoning.", form) for text in ("It is odd.", "Is it\n\nlong?")
    }
    listed = "\n\n".join(f"Criterion c{n}: {text}\nIts labels: x" for n, text in enumerate(alone, 1))
    several = {"type": "object", "properties": {"c1": form, "c2": form}}
    assert asked(listed, several) == dict(zip(("c1", "c2"), alone.values(), strict=True))
    assert alone["It is odd."] != alone["Is it\n\nlong?"]
    assert list(asked(listed, several, faults={"dropped": 1})) == ["c1"]


def test_an_opinion_of_a_prompt_alone():
    """A critic that classifies prompts is shown no response."""
    judge = SCALE.model_copy(update={"show": ("prompt",)})
    asked = [CriticJob("category", judge, Response(f"question {i}", "", {}, 0, "stop")) for i in range(40)]
    assert {v.score for v in judging(StubSettings()).verdicts(asked)} == {0, 0.5, 1}


def test_delay_and_concurrency():
    began = time.perf_counter()
    said({"delay_s": 0.02, "concurrency": 5}, count=30)
    assert 0.12 <= time.perf_counter() - began < 0.5  # one after the other it would be 0.6


def test_the_cache_stores_answers_and_no_failures(tmp_path):
    file = tmp_path / "cache.sqlite"
    first = said({"faults": {"timeout": 0.3}}, cache=file)
    assert any(v.missing for v in first)
    of = judging({}, file)
    assert plain(of.verdicts(jobs(150))) == plain(said({}))
    assert of.usage.cached == sum(not v.missing for v in first)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"stub": {}, "model": "x"}, "critics.default: unknown key 'model'; known: stub"),
        ({"stub": {"fault": {}}}, "unknown key 'fault'; did you mean 'faults'?"),
        ({"stub": {"faults": {"time_out": 0.1}}}, "unknown key 'time_out'; did you mean 'timeout'?"),
        ({"stub": {"faults": {"timeout": 1.1}}}, "faults.timeout: Input should be less than or equal to 1"),
        (
            {"stub": {"faults": {"timeout": 0.6, "refused": 0.6}}},
            "a call fails in one way only, and these rates add up to 1.2",
        ),
        ({"stub": None}, "critics.default: stub: should be a mapping but is None"),
    ],
)
def test_errors_are_one_line(told, message):
    with pytest.raises(ValueError) as caught:
        parse_critics({"default": told}, "critics")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_rates_may_add_up_to_one():
    assert FaultRates(**dict.fromkeys(KINDS, 1 / 6)).kind(0.999) == "dropped"
