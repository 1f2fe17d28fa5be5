"""Several items in one call: the request, and the verdicts of malformed answers."""

import json
import math
from collections import Counter

import pytest
from judging_fixtures import judging, response
from server import Server

from grape_rl.reward.critic.judge import Judge
from grape_rl.reward.critic.judging import CriticJob
from grape_rl.reward.critic.questions import plan_questions
from grape_rl.reward.critic.reply import Reply, parse_reply

WORDS = ("clear", "right", "kind", "short", "bold")


def judge(word, **more):
    return Judge(criterion=f"It is {word}.", calls="batched", **more)


def jobs(texts=("the answer",), **more):
    return [CriticJob(f"item-{word}", judge(word, **more), response(text)) for text in texts for word in WORDS]


def criteria(request):
    """The criteria of a request by their names in it, in order."""
    lines = request["messages"][1]["content"].split("\n")
    found = [line.removeprefix("Criterion ").split(": It is ") for line in lines if line.startswith("Criterion c")]
    return {name: word.rstrip(".") for name, word in found}


def one(label="yes", confidence=20, reasoning="so"):
    return {"reasoning": reasoning, "verdict": label, "confidence": confidence}


def by_word(labels):
    """A server's answer that gives each criterion the label of its word."""
    return lambda request, n: {
        "content": json.dumps({name: one(labels[w], reasoning=w) for name, w in criteria(request).items()})
    }


def run(answer, asked, **more):
    with Server(answer) as server:
        critics = judging(server, **more)
        return critics.verdicts(asked), server.requests, critics.usage


LABELS = {word: ("yes", "no")[n % 2] for n, word in enumerate(WORDS)}


def test_one_call_for_all_items_of_a_response():
    texts = [f"text {n}" for n in range(6)]
    found, requests, usage = run(by_word(LABELS), jobs(texts), prompt_price=10.0, completion_price=100.0)
    assert len(requests) == usage.calls == 6
    assert [each.item for each in found] == [f"item-{word}" for word in WORDS] * 6
    assert [each.score for each in found] == [float(LABELS[word] == "yes") for word in WORDS] * 6
    assert [each.reasoning for each in found] == [*WORDS] * 6
    assert sum(each.tokens for each in found[:5]) == 110 and max(each.tokens for each in found) == 22
    assert sum(each.cost for each in found) == pytest.approx(usage.cost) == pytest.approx(6 * 2e-3)
    for request in requests:
        assert not any(f"item-{word}" in json.dumps(request) for word in WORDS), "ids would tell of the rubric"
        form = request["response_format"]["json_schema"]["schema"]
        assert list(form["properties"]) == form["required"] == [f"c{n}" for n in range(1, 6)]
        assert not form["additionalProperties"]
        for each in form["properties"].values():
            assert list(each["properties"]) == each["required"] == ["reasoning", "verdict", "confidence"]
            assert not each["additionalProperties"]
        assert request["max_tokens"] == 5 * 1024
        assert "several criteria" in request["messages"][0]["content"]


def test_the_order_of_items_is_random_but_fixed_for_a_response():
    texts = [f"text {n}" for n in range(60)]
    orders = []
    for asked in (jobs(texts), jobs(texts)[::-1]):
        _, requests, _ = run(by_word(LABELS), asked)
        orders.append({r["messages"][1]["content"].split("begins\n")[2].split("\n")[0]: criteria(r) for r in requests})
    assert orders[0] == orders[1], "no matter in which order the jobs come"
    firsts = Counter(each["c1"] for each in orders[0].values())
    assert set(firsts) == set(WORDS) and max(firsts.values()) < 30, firsts


def test_each_sample_of_agreement_has_its_own_order():
    sure = {"mode": "agreement", "k": 8}
    found, requests, _ = run(by_word(LABELS), jobs(confidence=sure))
    assert len(requests) == 8 and len({tuple(criteria(request).values()) for request in requests}) > 3
    assert [each.score for each in found] == [float(LABELS[word] == "yes") for word in WORDS]
    assert [each.confidence for each in found] == pytest.approx([0.9] * 5)
    assert sum(each.tokens for each in found) == 8 * 110


def test_which_items_share_a_call():
    asked = [
        CriticJob("a", judge("a"), response()),
        CriticJob("b", judge("b"), response()),
        CriticJob("c", judge("c", show=("response",)), response()),
        CriticJob("d", judge("d", confidence={"mode": "agreement", "k": 2}), response()),
        CriticJob("e", judge("e", show=("response", "reference"), reference="x"), response()),
        CriticJob("f", judge("f", show=("response", "reference"), reference="y"), response()),
        CriticJob("g", judge("g", critic="other"), response()),
        CriticJob("h", judge("h"), response("another")),
        CriticJob("i", Judge(criterion="i"), response()),
        CriticJob("j", judge("j", confidence={"transform": "chance_corrected"}), response()),
    ]
    questions, _ = plan_questions(asked)
    together = {frozenset(each.criterion.split()[-1].rstrip(".") for each in q.judges) for q in questions}
    assert together == {frozenset("abj"), *(frozenset(name) for name in "cdefghi")}


def test_a_single_batched_item_is_asked_like_any_other():
    (found,), (request,), _ = run(lambda r, n: {"content": json.dumps(one())}, jobs()[:1])
    assert found.score == 1 and "one criterion" in request["messages"][0]["content"]


GOOD = json.dumps(one())


@pytest.mark.parametrize(
    ("text", "statuses"),
    [
        ('{"c1": %s, "c2": %s, "c3": %s}', "ooo"),
        ('{"c1": %s, "c3": %s}', "ouo"),
        ('{"c1": %s, "c2": %s, "c3": %s, "c4": %s}', "ooo"),
        ('{"c1": %s, "c2": %s, "c3": %s, "c1": %s}', "uoo"),
        ('{"c1": %s, "c2": {"verdict": "yes", "verdict": "no", "reasoning": "", "confidence": 3}, "c3": %s}', "ouo"),
        ('{"c1": %s, "c2": {"verdict": "maybe", "reasoning": "", "confidence": 3}, "c3": %s}', "ouo"),
        ('{"c1": %s, "c2": {"verdict": ["yes"], "reasoning": "", "confidence": 3}, "c3": %s}', "ouo"),
        ('{"c1": %s, "c2": "yes", "c3": %s}', "ouo"),
        ('{"c1": %s, "c2": {"verdict": "yes"}, "c3": %s}', "ouo"),
        ('{"item": %s}', "uuu"),
        ("[%s, %s, %s]", "uuu"),
        ('{"c1": %s', "uuu"),
        ("yes", "uuu"),
    ],
)
def test_an_error_in_one_item_affects_no_other(text, statuses):
    content = text.replace("%s", GOOD)
    found = parse_reply(Reply(content), [judge(word) for word in "abc"])
    assert "".join(each.status[0] for each in found) == statuses
    assert all(each.label == "yes" and each.confidence == 1 for each in found if each.status == "ok")
    assert all(each.reasoning and math.isnan(each.confidence) for each in found if each.status != "ok")


def test_a_repeated_verdict_is_unparseable():
    (found,) = parse_reply(Reply('{"verdict": "yes", "reasoning": "", "confidence": 3, "verdict": "no"}'), [judge("a")])
    assert found.status == "unparseable" and "'verdict' is repeated" in found.reasoning


def test_shares_of_cost_and_tokens_add_up():
    for n in range(1, 8):
        found = parse_reply(
            Reply("?", prompt_tokens=90, completion_tokens=11, cost=0.7), [judge(w) for w in "abcdefg"[:n]]
        )
        assert sum(each.tokens for each in found) == 101 and max(each.tokens for each in found) <= 101 // n + 1
        assert math.fsum(each.cost for each in found) == pytest.approx(0.7)


def test_a_batched_answer_is_cached_only_if_it_is_complete(tmp_path):
    def answer(request, number):
        said = by_word(LABELS)(request, number)
        return said if number else {"content": json.dumps(dict(list(json.loads(said["content"]).items())[:4]))}

    with Server(answer) as server:
        told = []
        for asked in (jobs(), jobs(), jobs()[::-1]):
            critics = judging(server, tmp_path / "cache.sqlite")
            told.append((critics.verdicts(asked), critics.usage, len(server.requests)))
    (broken, *_), (found, paid, second), (again, free, third) = told
    assert Counter(each.status for each in broken) == {"ok": 4, "unparseable": 1}
    assert (paid.cached, second, third) == (0, 2, 2)
    assert (free.calls, free.cached, free.tries, free.cost) == (1, 1, 0, 0)
    assert [each.score for each in again[::-1]] == [each.score for each in found]
    assert {(each.cost, each.tokens) for each in again} == {(0.0, 0)}


def test_batched_calls_do_not_go_with_log_probs():
    with pytest.raises(ValueError, match="calls: batched: in confidence mode logprob an answer is one label"):
        judge("a", confidence={"mode": "logprob"})
