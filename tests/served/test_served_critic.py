"""Judging by a real vLLM server: its answers to our requests, compared with the model's own outputs."""

import asyncio
import json
import math
from collections import Counter

import pytest
import torch
from small_critic import CONTEXT
from transformers import AutoModelForCausalLM, AutoTokenizer
from vllm_server import BLOCK, NAME

from grape_rl.data.chat import prompt_tokens
from grape_rl.reward.critic.endpoint import Client
from grape_rl.reward.critic.judge import Confidence, Judge
from grape_rl.reward.critic.judging import CriticJob, Judging
from grape_rl.reward.critic.prompt import answer_schema, fence_mark, judge_messages
from grape_rl.reward.critic.settings import Endpoint
from grape_rl.types import Response

VERBALIZED = Judge(criterion="It is right.")
LOGPROB = Judge(criterion="It is right.", confidence=Confidence(mode="logprob"))


def response(text="It is so.", prompt="What is it?"):
    return Response(prompt, text, {}, 10, "stop")


def judging(vllm, total_timeout_s=60.0, **more):
    endpoint = Endpoint(base_url=vllm.base_url, model=NAME, total_timeout_s=total_timeout_s, **more)
    limiter = endpoint.limiter()
    return Judging({"default": lambda: Client(endpoint, limiter)})


def jobs(judge, count):
    return [CriticJob("item", judge, response(f"It is {i}.", f"What is {i // 8}?")) for i in range(count)]


def replies(vllm, told, judge, seeds, labels=(), **more):
    """The server's answers to one conversation, one for each seed, requested concurrently."""
    endpoint = Endpoint(base_url=vllm.base_url, model=NAME, total_timeout_s=60.0, **more)

    async def asked():
        client = Client(endpoint, endpoint.limiter())
        try:
            return await asyncio.gather(*(client.reply(told, answer_schema([judge]), labels, seed) for seed in seeds))
        finally:
            await client.close()

    return asyncio.run(asked())


def test_random_answers_under_the_schema_are_all_verdicts(vllm):
    """At temperature 1 this critic writes noise; the schema makes it parseable."""
    told = judge_messages([VERBALIZED], response(), fence_mark("any"))
    found = replies(vllm, told, VERBALIZED, range(64), temperature=1.0, max_tokens=512)
    assert {each.status for each in found} == {"ok"} and {each.finish for each in found} <= {"stop", "length"}
    answers = [json.loads(each.text) for each in found if each.finish == "stop"]
    assert len(answers) >= 40
    assert all(list(answer) == ["reasoning", "verdict", "confidence"] for answer in answers)
    assert {answer["verdict"] for answer in answers} == {"no", "yes"}
    assert {answer["confidence"] for answer in answers} <= set(range(21))
    assert len({answer["confidence"] for answer in answers}) > 3
    assert len({answer["reasoning"] for answer in answers}) > 8


def test_without_the_schema_no_answer_is_parseable(vllm):
    found = judging(vllm, temperature=1.0, max_tokens=64, structured="prompted").verdicts(jobs(VERBALIZED, 16))
    assert {each.status for each in found} <= {"unparseable", "truncated"}
    assert all(math.isnan(each.score) for each in found)


def test_a_truncated_answer_is_not_a_verdict(vllm):
    (found,) = judging(vllm, max_tokens=3).verdicts(jobs(VERBALIZED, 1))
    assert (found.status, math.isnan(found.score)) == ("truncated", True)
    assert "max_tokens" in found.reasoning


def test_agreement_of_several_calls(vllm):
    judge = Judge(criterion="It is right.", confidence=Confidence(mode="agreement", k=5))
    found = judging(vllm, temperature=1.0, max_tokens=512).verdicts(jobs(judge, 8))
    assert all(each.status == "ok" for each in found)
    assert {round(5 * each.confidence) for each in found} <= {3, 4, 5}


@pytest.mark.parametrize("labels", [{"no": 0, "yes": 1}, {"yes": 1, "no": 0, "certain": 0.5}])
def test_label_probabilities_equal_the_model_s(labels, vllm, critic_folder):
    """Compared with transformers' forward pass over the same conversation: the labels' first tokens."""
    judge = LOGPROB.model_copy(update={"labels": labels})
    asked = response("It is 4.", "What is 2+2?")
    told = judge_messages([judge], asked, fence_mark("2+2"))
    (reply,) = replies(vllm, told, judge, [0], tuple(labels))
    tokenizer = AutoTokenizer.from_pretrained(critic_folder)
    model = AutoModelForCausalLM.from_pretrained(critic_folder, dtype=torch.float32)
    ids = prompt_tokens(tokenizer, told)
    assert reply.prompt_tokens == len(ids)
    with torch.no_grad():
        logp = model(input_ids=ids[None]).logits[0, -1].log_softmax(-1)
    top = logp.topk(20)
    for label in labels:
        # Every one of the twenty likeliest tokens that the label begins with counts for it.
        words = {int(token): tokenizer.decode([int(token)]).strip().strip('"') for token in top.indices}
        begins = [token for token, word in words.items() if word and label.startswith(word)]
        expected = torch.logsumexp(logp[begins], 0) if begins else top.values.min()
        assert reply.label_logp[label] == pytest.approx(float(expected), abs=1e-3)
    assert any(value > float(top.values.min()) + 0.1 for value in reply.label_logp.values())


def test_a_response_is_computed_once_for_all_of_its_items(vllm):
    """Eight items of one long response: all but the last blocks of their prompts are in the prefix cache."""
    long = response(" ".join(f"It is {i}." for i in range(120)), "Which numbers?")
    asked = [
        CriticJob(f"item {i}", LOGPROB.model_copy(update={"criterion": f"It is right about {i}."}), long)
        for i in range(8)
    ]
    critics = judging(vllm, concurrency=1)
    before, queried = vllm.count("prefix_cache_hits"), vllm.count("prefix_cache_queries")
    critics.verdicts(asked)
    hits, read = vllm.count("prefix_cache_hits") - before, vllm.count("prefix_cache_queries") - queried
    assert read == critics.usage.prompt_tokens
    each = read / 8
    mark = fence_mark(long.prompt)
    shared = len(_common([json.dumps(judge_messages([j.judge], long, mark)) for j in asked]))
    share = shared / len(json.dumps(judge_messages([asked[0].judge], long, mark)))  # of characters: about as of tokens
    assert share > 0.6
    assert hits / 7 > each * share - 3 * BLOCK
    assert hits / 7 < each


def _common(texts):
    return next((texts[0][:n] for n in range(len(texts[0])) if len({t[: n + 1] for t in texts}) > 1), texts[0])


def test_usage_equals_the_server_s_counters(vllm):
    critics = judging(vllm, temperature=1.0, max_tokens=256, concurrency=64)
    names = ("prompt_tokens", "generation_tokens", "request_success")
    before = [vllm.count(name) for name in names]
    found = critics.verdicts(jobs(VERBALIZED, 128))
    told = [int(vllm.count(name) - was) for name, was in zip(names, before, strict=True)]
    assert told == [critics.usage.prompt_tokens, critics.usage.completion_tokens, critics.usage.tries]
    assert Counter(each.status for each in found)["ok"] > 100


def test_a_response_too_long_for_the_critic_is_a_typed_failure(vllm):
    long = response("It is so. " * CONTEXT)
    found = judging(vllm, max_tokens=256).verdicts(
        [CriticJob("item", VERBALIZED, long), CriticJob("item", LOGPROB, long)]
    )
    assert [each.status for each in found] == ["truncated"] * 2
    assert all("maximum context length" in each.reasoning and math.isnan(each.score) for each in found)


def test_a_model_that_is_not_served_is_a_typed_failure(vllm):
    critics = Judging({"default": lambda: Client(Endpoint(base_url=vllm.base_url, model="other"), other)})
    other = Endpoint(model="other").limiter()
    (found,) = critics.verdicts(jobs(VERBALIZED, 1))
    assert found.status == "infrastructure" and "does not exist" in found.reasoning


def test_the_same_question_has_the_same_answer(vllm):
    """At temperature 0, one call after the other: equal text."""
    found = [judging(vllm, max_tokens=64, concurrency=1).verdicts(jobs(VERBALIZED, 4)) for _ in range(2)]
    assert [_said(each) for each in found[0]] == [_said(each) for each in found[1]]
    assert "timeout" not in {each.status for each in found[0]}


def _said(verdict):
    return verdict.status, str(verdict.score), str(verdict.confidence), verdict.reasoning


def test_a_server_that_dies_during_a_batch_leaves_typed_failures(vllm, monkeypatch):
    """Some calls have answered by then; the rest are typed failures."""
    critics = judging(vllm, max_tokens=32, concurrency=4, total_timeout_s=8.0)
    vllm.killed_by_a_call(9, monkeypatch, lambda: True)
    found = critics.verdicts(jobs(VERBALIZED, 32))
    count = Counter(each.status for each in found)
    assert 1 <= count["ok"] + count["truncated"] < 32, count
    assert set(count) - {"ok", "truncated"} <= {"infrastructure", "timeout"}
    assert all(math.isnan(each.score) and each.reasoning for each in found if each.status != "ok")
