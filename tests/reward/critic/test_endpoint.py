"""One call to a server: retries and their timing, truncated answers, and the cost."""

import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from judging_fixtures import judge_by_server, judging, response
from server import Server, completion, labels, verdict

from grape_rl.reward.critic.endpoint import Client, _retry_after_seconds
from grape_rl.reward.critic.judge import Judge
from grape_rl.reward.critic.judging import CriticJob
from grape_rl.reward.critic.settings import Endpoint, parse_critics

RIGHT = Judge(criterion="It is right.")


@pytest.mark.parametrize("code", [400, 401, 403, 404, 409, 413, 422])
def test_permanent_errors_are_not_retried(code):
    (found,), server, usage = judge_by_server((code, {"retry-after": "0"}, {"error": {"message": "no"}}))
    assert found.status == "infrastructure" and len(server.requests) == usage.tries == 1


def test_a_retry_waits_for_the_server_s_retry_after():
    (found,), server, _ = judge_by_server(lambda r, n: (429, {"retry-after": "1"}, {}) if n == 0 else verdict("yes"))
    assert found.score == 1 and len(server.requests) == 2
    began = time.monotonic()
    judge_by_server(lambda r, n: (503, {"retry-after": "1.2"}, {}) if n == 0 else verdict("yes"))
    assert time.monotonic() - began >= 1.2


@pytest.mark.parametrize("dated", [False, True])
def test_a_retry_after_beyond_the_deadline_fails_at_once(dated):
    asked = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True) if dated else "30"
    began = time.monotonic()
    (found,), server, _ = judge_by_server((429, {"retry-after": asked}, {}), total_timeout_s=25.0)
    assert found.status == "infrastructure" and "429" in found.reasoning and len(server.requests) == 1
    assert time.monotonic() - began < 20


def test_forms_of_retry_after():
    soon = datetime.now(UTC) + timedelta(seconds=50)
    assert 45 < _retry_after_seconds(format_datetime(soon, usegmt=True)) < 51
    assert 45 < _retry_after_seconds(format_datetime(soon)) < 51
    assert _retry_after_seconds(format_datetime(soon - timedelta(hours=1))) < 0
    assert [_retry_after_seconds(each) for each in ("2.5", "", "soon", "inf", "nan")] == [2.5, 0, 0, 0, 0]


def test_the_wait_for_the_rate_limit_is_not_part_of_the_time_limit(monkeypatch):
    monkeypatch.setattr("grape_rl.reward.critic.limiter._WINDOW", 1.0)
    jobs = [CriticJob(str(n), RIGHT, response(str(n))) for n in range(3)]
    found, _, _ = judge_by_server(verdict("yes"), jobs, requests_per_minute=1, total_timeout_s=0.9)
    assert [each.status for each in found] == ["ok"] * 3


def test_the_limiter_gets_tokens_and_cost():
    heard = []
    of = Endpoint(model="m", prompt_price=1.0, completion_price=100.0)
    client = Client(of, of.limiter())
    reply = client._read(completion(verdict("yes")), (), 1, lambda *told: heard.append(told))
    assert heard == [(110, pytest.approx((100 + 10 * 100) / 1e6))]
    assert (reply.prompt_tokens, reply.completion_tokens) == (100, 10)


CUT = {"content": '{"reasoning": "so', "finish_reason": "length"}


@pytest.mark.parametrize(
    ("answers", "status", "rooms", "tries"),
    [
        ([CUT, verdict("yes")], "ok", [50, 100], 2),
        ([CUT, CUT], "truncated", [50, 100], 2),
        ([CUT, (400, {}, {"error": {"message": "max_tokens is too large"}})], "truncated", [50, 100], 2),
        ([(500, {}, {}), CUT, (500, {}, {}), verdict("yes")], "ok", [50, 50, 100, 100], 4),
    ],
)
def test_a_truncated_answer_is_requested_once_more_with_twice_the_limit(answers, status, rooms, tries):
    (found,), server, usage = judge_by_server(lambda r, n: answers[n], max_tokens=50, prompt_price=1e4)
    assert found.status == status and [request["max_tokens"] for request in server.requests] == rooms
    assert len({str(request["messages"]) for request in server.requests}) == 1, "the broken answer is not repeated"
    answered = sum(isinstance(each, dict) for each in answers)
    assert usage.tries == tries and found.tokens == 110 * answered
    assert found.cost == pytest.approx(usage.cost) == pytest.approx(answered)


def test_a_label_alone_is_never_truncated():
    judge = Judge(criterion="It is right.", confidence={"mode": "logprob"})
    (found,), server, _ = judge_by_server(labels(yes=-0.1, no=-3.0) | {"finish_reason": "length"}, judge=judge)
    assert found.status == "ok" and len(server.requests) == 1


@pytest.mark.parametrize(
    "message",
    ["This model's maximum context length is 4096 tokens", "context_length_exceeded", "the prompt is too long"],
)
def test_a_response_too_long_for_the_critic_is_missing(message):
    (found,), server, _ = judge_by_server((400, {}, {"error": {"message": message}}))
    assert found.status == "truncated" and found.missing and len(server.requests) == 1


def test_the_deadline_of_a_batch():
    jobs = [CriticJob(str(n), RIGHT, response(str(n))) for n in range(6)]
    began = time.monotonic()
    with Server(lambda r, n: verdict("yes")) as server:
        critics = judging(server, concurrency=1, deadline_s=3.0)
        critics.prefetch(jobs[:2])
        while critics.usage.calls < 2:
            time.sleep(0.01)
        server.delay = 60.0
        found = critics.verdicts(jobs)
    assert [each.status for each in found] == ["ok", "ok", *["timeout"] * 4]
    assert "deadline_s" in found[-1].reasoning and 3 <= time.monotonic() - began < 50


def test_the_error_for_a_missing_or_wrong_key(monkeypatch):
    monkeypatch.delenv("CRITIC_KEY", raising=False)
    refused = (401, {}, {"error": {"message": "who are you"}})
    (found,), _, _ = judge_by_server(refused, api_key="CRITIC_KEY")
    assert "the environment variable CRITIC_KEY is not set" in found.reasoning
    monkeypatch.setenv("CRITIC_KEY", "sk-secret")
    (found,), _, _ = judge_by_server(refused, api_key="CRITIC_KEY")
    assert "CRITIC_KEY contains a key that the server refuses" in found.reasoning and "secret" not in found.reasoning


def test_extra_fields_are_passed_on():
    (found,), server, _ = judge_by_server(
        verdict("yes"), extra={"top_k": 5, "chat_template_kwargs": {"enable_thinking": False}}
    )
    assert found.status == "ok" and server.requests[0]["top_k"] == 5
    assert server.requests[0]["chat_template_kwargs"] == {"enable_thinking": False}


NO_CONTENT = completion({}) | {"choices": [{"index": 0}]}


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"error": {"message": "overloaded"}}, 0),
        (NO_CONTENT, 110),
        (completion({}) | {"choices": []}, 110),
        (["yes"], 0),
        ("yes", 0),
        (None, 0),
        (completion({}) | {"usage": {"prompt_tokens": "many"}}, 0),
    ],
)
def test_a_malformed_completion_is_missing_and_paid(body, tokens):
    (found,), _, usage = judge_by_server((200, {}, body), prompt_price=1e4)
    assert found.status == "infrastructure" and found.reasoning
    assert found.tokens == usage.prompt_tokens + usage.completion_tokens == tokens
    assert found.cost == pytest.approx(float(tokens > 0))


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"base_url": "localhost:8000"}, "base_url should begin with http:// or https:// but is 'localhost:8000'"),
        (
            {"api_key": "sk-secret"},
            "api_key should name the environment variable that contains the key, not be the key",
        ),
        ({"cost_cap": 3}, "cost_cap needs prompt_price or completion_price"),
        ({"cost_cap": 0, "prompt_price": 1}, "cost_cap: Input should be greater than 0"),
        ({"prompt_price": -1}, "prompt_price: Input should be greater than or equal to 0"),
        ({"completion_price": float("nan")}, "completion_price: Input should be a finite number"),
        ({"concurrency": 0}, "concurrency: Input should be greater than or equal to 1"),
        ({"tokens_per_minute": 0}, "tokens_per_minute: Input should be greater than or equal to 1"),
        ({"deadline_s": 0}, "deadline_s: Input should be greater than 0"),
        ({"extra": {"messages": []}}, "extra: 'messages' cannot be set here"),
        ({"model": ""}, "model: "),
        ({"cost_limit": 3}, "unknown key 'cost_limit'"),
    ],
)
def test_invalid_settings_are_refused(told, message):
    with pytest.raises(ValueError) as error:
        parse_critics({"default": {"model": "stub"} | told}, "critics")
    said = str(error.value)
    assert said.startswith("critics.default: ") and message in said and "\n" not in said and "secret" not in said
    assert Endpoint(model="stub", cost_cap=1.0, completion_price=1.0).limiter().cost == 0
