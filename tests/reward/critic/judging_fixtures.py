"""Judging through a test server: a response, critics of a server, and the verdicts of jobs."""

from server import Server

from grape_rl.reward.critic.endpoint import Client
from grape_rl.reward.critic.judge import Judge
from grape_rl.reward.critic.judging import CriticJob, Judging
from grape_rl.reward.critic.settings import Endpoint
from grape_rl.types import Response


def response(text="the answer", prompt="the question"):
    return Response(prompt, text, {}, 10, "stop")


def jobs(texts, calls="per_item"):
    """Jobs on three items for each text, item by item."""
    return [
        CriticJob(word, Judge(criterion=f"It is {word}.", calls=calls), response(text))
        for word in "abc"
        for text in texts
    ]


def judging(server, cache=None, **settings):
    """Critics with one endpoint, the server, under the name ``default``."""
    endpoint = Endpoint(base_url=server.base_url, model="stub", **settings)
    limiter = endpoint.limiter()
    return Judging({"default": lambda: Client(endpoint, limiter)}, cache)


def judge_by_server(answer, jobs=None, judge=None, delay=0.0, **settings):
    """The verdicts of the jobs (by default one), the server with its requests, and the usage.

    ``answer`` is the server's answer, or a function of the request and its number.
    """
    judge = judge or Judge(criterion="It is right.")
    with Server(answer if callable(answer) else lambda request, number: answer, delay) as server:
        critics = judging(server, **settings)
        verdicts = critics.verdicts(jobs or [CriticJob("item", judge, response())])
        return verdicts, server, critics.usage
