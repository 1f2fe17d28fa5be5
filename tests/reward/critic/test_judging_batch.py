"""Batches of judging and prefetching: equal verdicts, and no thread, file or connection left over."""

import gc
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest
from judging_fixtures import jobs, judging, response
from server import Server, verdict

from grape_rl.reward.critic.judge import Judge
from grape_rl.reward.critic.judging import CriticJob, Judging
from grape_rl.reward.critic.limiter import CostCapReached
from grape_rl.reward.critic.questions import plan_questions
from grape_rl.reward.critic.reply import Reply
from grape_rl.reward.critic.reply_cache import ReplyCache

CALLS = ("per_item", "batched")


def by_content(request, number):
    """A verdict that depends on the request alone."""
    mark = request["messages"][0]["content"].split("the mark ")[1].split(".")[0]
    asked = request["messages"][1]["content"].replace(mark, "")
    form = request["response_format"]["json_schema"]["schema"]["properties"]

    def one(told):
        lot = sum(asked.split("begins\n")[2].encode()) + sum(told.encode())
        return {"reasoning": "", "verdict": ("no", "yes")[lot % 2], "confidence": lot % 21}

    several = {name: one(f"{name} of {len(form)}") for name in form}
    return {"content": json.dumps(several if "c1" in form else one("alone"))}


def handles():
    """The number of files and connections that this process has open."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def left():
    """The number of threads of critics."""
    named = [each for each in threading.enumerate() if each.name.startswith(("critic", "asyncio_"))]
    return len(named)


def said(verdicts):
    return [(each.item, each.score, each.confidence, each.status) for each in verdicts]


@pytest.mark.parametrize("calls", CALLS)
@pytest.mark.parametrize("parts", [[[]], [["t0"], ["t1", "t1"], ["t2"]], [["t2", "t0", "t1", "t1"]], [["t9"], ["t1"]]])
def test_verdicts_do_not_depend_on_prefetching(calls, parts):
    texts = ["t0", "t1", "t1", "t2", "t3"]
    with Server(by_content) as server:
        plain = judging(server).verdicts(jobs(texts, calls))
        once = len(server.requests)
        critics = judging(server)
        for part in parts:
            critics.prefetch(jobs(part, calls))
        assert said(critics.submit(jobs(texts, calls)).result()) == said(plain)
        asked = len(server.requests) - once
    assert once == (12 if calls == "per_item" else 4), "an equal response is asked about once"
    stray = 1 if ["t9"] in parts else 0
    assert asked == once + stray * once // 4
    assert critics.usage.calls == asked and left() == 0


def test_prefetching_half_of_a_batched_call_is_wasted_but_changes_nothing():
    with Server(by_content) as server:
        plain = judging(server).verdicts(jobs(["t0"], "batched"))
        critics = judging(server)
        critics.prefetch(jobs(["t0"], "batched")[:2])
        assert said(critics.verdicts(jobs(["t0"], "batched"))) == said(plain)
        assert len(server.requests) == 3


def test_prefetched_jobs_are_judged_before_submit():
    with Server(by_content, delay=0.05) as server:
        critics = judging(server)
        critics.prefetch(jobs(["t0", "t1"]))
        until = time.monotonic() + 20
        while critics.usage.calls < 6 and time.monotonic() < until:
            time.sleep(0.01)
        assert critics.usage.calls == 6
        assert len(critics.verdicts(jobs(["t0", "t1", "t2"]))) == 9
        assert len(server.requests) == 9


def test_a_shared_answer_is_paid_once():
    with Server(lambda r, n: verdict("yes")) as server:
        critics = judging(server, prompt_price=1.0)
        found = critics.verdicts(jobs(["t", "t", "t"]))
    assert [each.tokens for each in found] == [110, 0, 0] * 3
    assert sum(each.cost for each in found) == pytest.approx(critics.usage.cost) == pytest.approx(3e-4)


def test_the_usage_of_a_step_is_a_difference():
    with Server(lambda r, n: verdict("yes")) as server:
        critics = judging(server)
        critics.verdicts(jobs(["t"]))
        before = critics.usage
        critics.verdicts(jobs(["u", "v"]))
    used = critics.usage - before
    assert (used.calls, used.tries, used.prompt_tokens, critics.usage.calls) == (6, 6, 600, 9)


def test_the_cost_cap_of_prefetched_jobs_is_raised_by_the_batch():
    with Server(lambda r, n: verdict("yes")) as server:
        critics = judging(server, concurrency=1, prompt_price=1e4, cost_cap=2.0)
        critics.prefetch(jobs(["t0", "t1"]))
        until = time.monotonic() + 20
        while left() and time.monotonic() < until:
            time.sleep(0.01)
        critics.prefetch(jobs(["t2"]))
        with pytest.raises(CostCapReached):
            critics.submit(jobs(["t0", "t1", "t2"])).result()
        with pytest.raises(CostCapReached):
            critics.verdicts(jobs(["t3"]))
    assert len(server.requests) == 2 and left() == 0
    critics.close()


@pytest.mark.parametrize("begun", [False, True])
def test_close_stops_unfinished_calls_and_keeps_cached_answers(begun, tmp_path):
    files = handles()
    with Server(lambda r, n: verdict("yes")) as server:
        critics = judging(server, tmp_path / "cache.sqlite", concurrency=2)
        critics.prefetch(jobs(["t0"]))
        until = time.monotonic() + 20
        while critics.usage.calls < 3 and time.monotonic() < until:
            time.sleep(0.01)
        server.delay = 60.0
        critics.prefetch(jobs(["t1", "t2"]))
        waiting = critics.submit(jobs(["t0", "t1", "t2"])) if begun else None
        critics.close()
        assert left() == 0
        if waiting:
            with pytest.raises(RuntimeError, match="stopped before all verdicts"):
                waiting.result(timeout=0)
        critics.close()
        server.delay = 0.0
        again = judging(server, tmp_path / "cache.sqlite", concurrency=2)
        again.verdicts(jobs(["t0", "t3"]))
        assert again.usage.cached == 3, "it goes on after it was closed, and knows what was answered"
    assert handles() <= files, "no connection and no file is left open"


def test_nothing_is_left_after_many_batches():
    with Server(lambda r, n: verdict("yes") if n % 5 else (400, {}, {})) as server:
        judging(server).verdicts(jobs(["t"]))
        files = handles()
        for n in range(2):
            critics = judging(server, concurrency=3)
            critics.prefetch(jobs([f"{n}"]))
            critics.verdicts(jobs([f"{n}", "more"]))
            time.sleep(0.05)  # the server's side of a connection closes a moment later
            assert left() == 0 and handles() <= files
    assert critics.verdicts([]) == []


class Broken:
    name, concurrency, deadline_s, closed = "broken", 2, None, 0

    async def reply(self, messages, schema, labels, seed, items=1):
        raise ZeroDivisionError("a fault of the program")

    async def close(self):
        type(self).closed += 1


def test_an_exception_of_a_critic_reaches_the_caller():
    critics = Judging({"default": Broken})
    critics.prefetch(jobs(["t"]))
    with pytest.raises(ZeroDivisionError):
        critics.verdicts(jobs(["t"]))
    assert Broken.closed == 1 and left() == 0
    with pytest.raises(KeyError):
        Judging({}).verdicts(jobs(["t"]))
    assert left() == 0


def test_a_file_that_is_not_a_cache_is_refused_in_one_line(tmp_path):
    (tmp_path / "text").write_text("no database, but text " * 100)
    with (
        Server(by_content) as server,
        pytest.raises(ValueError, match="text: cannot be used as a cache of critics' answers"),
    ):
        judging(server, tmp_path / "text").verdicts(jobs(["t"]))
    assert left() == 0


def test_a_cache_that_fails_later_stops_the_run_in_one_line(tmp_path):
    kept = ReplyCache(tmp_path / "cache")
    with sqlite3.connect(tmp_path / "cache") as other:
        other.execute("DROP TABLE replies")
    with pytest.raises(RuntimeError, match=r"cache: the cache of critics' answers failed: no such table: replies"):
        kept.get("a")
    kept.put("a", Reply("x"))
    with pytest.raises(RuntimeError, match="answers failed"):
        kept.close()


def test_another_table_is_refused_and_an_unreadable_reply_is_requested_again(tmp_path):
    with sqlite3.connect(tmp_path / "other") as other:
        other.execute("CREATE TABLE replies (question TEXT, answer TEXT)")
    other.close()
    with Server(by_content) as server:
        with pytest.raises(ValueError, match="other: cannot be used as a cache of critics' answers: no such column"):
            judging(server, tmp_path / "other").verdicts(jobs(["t"]))
        first = judging(server, tmp_path / "cache").verdicts(jobs(["t"]))
        for reply in ('{"text": "yes", "mood": "fine"}', "[]", "{"):
            with sqlite3.connect(tmp_path / "cache") as kept:
                kept.execute("UPDATE replies SET reply = ?", [reply])
            kept.close()
            again = judging(server, tmp_path / "cache")
            assert again.verdicts(jobs(["t"])) == first and again.usage.cached == 0
        again = judging(server, tmp_path / "cache")
        again.verdicts(jobs(["t"]))
        assert again.usage.cached == again.usage.calls, "what was asked again is kept"


def test_a_program_that_exits_does_not_wait_for_critics_and_keeps_cached_answers(tmp_path):
    program = f"""
import sys, time
sys.path.insert(0, {str(__file__).rsplit("/", 1)[0]!r})
from judging_fixtures import jobs, judging
from server import Server, verdict
from pathlib import Path
server = Server(lambda r, n: verdict("yes")).__enter__()
critics = judging(server, Path({str(tmp_path / "cache.sqlite")!r}))
critics.prefetch(jobs(["t0"]))
while critics.usage.calls < 3:
    time.sleep(0.01)
raise SystemExit(3)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=120).returncode == 3
    with sqlite3.connect(tmp_path / "cache.sqlite") as kept:
        assert kept.execute("SELECT count(*) FROM replies").fetchone() == (3,)
    kept.close()


def test_questions_are_ordered_by_prompt_and_response():
    asked = [
        CriticJob(word, Judge(criterion=word), response(text, prompt))
        for word in "abc"
        for text in "xy"
        for prompt in "pq"
    ]
    questions, places = plan_questions(asked)
    order = [(each.response.prompt, each.response.text, each.judges[0].criterion) for each in questions]
    assert order == [(p, t, w) for p in "pq" for t in "xy" for w in "abc"]
    at = {each.key: each for each in questions}
    assert [at[place.key].judges[place.position] for place in places] == [job.judge for job in asked]


def test_prompts_are_written_only_when_a_worker_is_free(monkeypatch):
    written = Counter()

    def messages(judges, answer, mark):
        written["now"] += 1
        written["most"] = max(written["now"] - written["answered"], written["most"])
        return [{"role": "user", "content": answer.text}]

    class Counting(Broken):
        async def reply(self, messages, schema, labels, seed, items=1):
            from grape_rl.reward.critic.reply import Reply

            written["answered"] += 1
            return Reply(verdict("yes")["content"])

    from grape_rl.reward.critic import judging_batch

    monkeypatch.setattr(judging_batch, "judge_messages", messages)
    found = Judging({"default": Counting}).verdicts(jobs([str(n) for n in range(300)]))
    assert len(found) == 900 and written["most"] <= 2 and written["now"] == 900
