"""What a step runs, counted in place of timed: positions read, forward passes, rows of the head.

Seconds depend on the machine and on what else it does; these numbers do not. What is needed is counted apart, from
the step's sequences (``grape_rl.estimate.flops``), and the tables below say how much more than that a step may do.
"""

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from grape_rl import train
from grape_rl.estimate.flops import Work, forward_work
from grape_rl.model.lm_head import token_logprobs
from grape_rl.model.logprobs import select_rows
from grape_rl.model.sampler import sample
from grape_rl.training.fit import fit
from small_runs import settings, written

# A pass reads one row of prompts and responses, each once, rounded up by 1 in 16 at most. Parts that divide groups read
# a group's prompt once each.
TABLE: dict[str, tuple[str, dict[str, Any], dict[str, tuple[int, float]]]] = {
    "grpo": (
        "grpo",
        {"log_kl": False},
        {"sampling": (10, 1.2), "update": (1, 1.07)},
    ),
    "grpo with a reference": (
        "grpo",
        {},
        {"sampling": (10, 1.2), "reference": (1, 1.07), "update": (1, 1.07)},
    ),
    "grpo, a micro-batch a group": (
        "grpo",
        {"tokens_per_microbatch": 120},
        {"sampling": (10, 1.2), "reference": (3, 1.07), "update": (3, 1.07)},
    ),
    "grpo, 2 epochs of 2 parts": (
        "grpo",
        {"log_kl": False, "options": {"epochs": 2, "minibatches": 2}},
        {"sampling": (10, 1.2), "update": (4, 1.7)},
    ),
    "sft": (
        "sft",
        {},
        {"update": (1, 1.07)},
    ),
    "dpo": (
        "dpo",
        {},
        {"update": (1, 1.07)},  # the reference read each row before the first step
    ),
    "ppo, a trunk for the value": (
        "ppo",
        {},
        {"sampling": (10, 1.2), "reference": (1, 1.07), "value": (2, 1.07), "update": (1, 1.07)},
    ),
    "ppo, one trunk for both": (
        "ppo",
        {"options": {"value_trunk": "shared"}},
        {"sampling": (10, 1.2), "reference": (1, 1.07), "beside": (1, 1.07), "update": (1, 1.07)},
    ),
}
"""A run: its method and settings, and by who reads the most passes a step, and positions over those that are needed.

What is not named may not run at all: no pass of the policy over its own responses before it learns from them, say.
"""


@dataclass
class Step:
    """What one step ran, by who ran it: the positions of each forward pass, and how many rows went through the head.

    ``sampling``; the ``reference``, whose weights are fixed; the ``value`` function's own trunk; the ``update``, which
    needs a gradient; and what the policy's trunk reads ``beside``, without any.
    """

    passes: dict[str, list[int]] = field(default_factory=lambda: dict[str, list[int]]())
    head: Counter[str] = field(default_factory=lambda: Counter[str]())
    experience: Any = None


def everywhere(patch: pytest.MonkeyPatch, function: Callable[..., Any], by: Callable[..., Any]) -> None:
    """Put another in a function's place in each module of grape_rl that knows it by its name."""
    name = function.__name__
    holders = [m for key, m in sys.modules.items() if key.startswith("grape_rl") and vars(m).get(name) is function]
    assert holders
    for module in holders:
        patch.setattr(module, name, by)


def counted(patch: pytest.MonkeyPatch, config: dict[str, Any]) -> list[Step]:
    """The run's steps. A forward pass is told by its look-up of embeddings, which no way to run the layers goes
    without: one look-up is one pass, and it reads as many positions as it is given tokens."""
    steps: list[Step] = []
    policy: list[nn.Module] = []
    sampling: list[bool] = []

    def who(weight: nn.Parameter | None = None) -> str:
        if sampling:
            return "sampling"
        if weight is not None and not weight.requires_grad:
            return "reference"
        if weight is not None and policy and weight is not policy[0].get_input_embeddings().weight:
            return "value"
        return "update" if torch.is_grad_enabled() else "beside"

    def lookup_value(self: nn.Embedding, ids: Tensor) -> Tensor:
        if steps:
            steps[-1].passes.setdefault(who(self.weight), []).append(ids.numel())
        return look_up(self, ids)

    def sampled(model: nn.Module, *given: Any, **more: Any) -> Any:
        policy[:] = [model]
        sampling.append(True)
        try:
            return sample(model, *given, **more)
        finally:
            sampling.pop()

    def headed(logits: Any, hidden: Tensor, tokens: Tensor, *more: Any, **named: Any) -> Any:
        if steps:
            steps[-1].head["update" if torch.is_grad_enabled() else "beside"] += len(tokens)
        return token_logprobs(logits, hidden, tokens, *more, **named)

    def fitted(source: Callable[[int], Any], *given: Any) -> None:
        def watched(step: int) -> Any:
            steps.append(Step())
            steps[-1].experience = source(step)
            return steps[-1].experience

        fit(watched, *given)

    look_up = nn.Embedding.forward
    patch.setattr(nn.Embedding, "forward", lookup_value)
    everywhere(patch, sample, sampled)
    everywhere(patch, token_logprobs, headed)
    everywhere(patch, fit, fitted)
    train(config)
    return steps


def run(folder: Path, method: str, given: dict[str, Any], patch: pytest.MonkeyPatch, reward: str) -> list[Step]:
    """The steps of a run on prompts of 20 to 26 tokens; of three prompts a step, some are answered alike well."""
    rows = [
        {
            "prompt": "".join(str(i * k % 10) for k in range(1, 20 + i % 7)) + "=",
            "completion": "7" * (2 + i % 5),
            "chosen": "12345"[: 2 + i % 4],
            "rejected": "987654"[: 1 + i % 6],
            "flat": i % 3 == 0,
        }
        for i in range(12)
    ]
    wanted = settings(folder, method) | given
    written(folder / "rows.jsonl", rows)
    (folder / "reward.py").write_text(reward)
    wanted["reward"] = {"function": f"{folder}/reward.py:f"} if method in ("grpo", "ppo") else {}
    return counted(patch, wanted)


VARIED = """
def f(prompts, completions, flat, **columns):
    return [1.0 if same else float(sum(map(ord, text)) % 7) for text, same in zip(completions, flat)]
"""


def needed(step: Step, method: str) -> tuple[Work, Work]:
    """What all rows of the step need, and what those that can change the gradient do."""
    sequences = step.experience.sequences
    if method in ("sft", "dpo"):
        return forward_work(sequences), forward_work(sequences)
    matter = (step.experience.batch.advantage != 0).any(dim=1) if method == "grpo" else sequences.mask.any(dim=1)
    return forward_work(sequences), forward_work(select_rows(sequences, matter.nonzero().flatten()))


@pytest.mark.parametrize("case", TABLE)
def test_a_step_does_no_more_than_the_table_says(case, tmp_path, monkeypatch):
    method, given, most = TABLE[case]
    steps = run(tmp_path, method, given, monkeypatch, VARIED)
    assert len(steps) == 2 and all(step.experience for step in steps)
    epochs = given.get("options", {}).get("epochs", 1)
    for step in steps:
        whole, learned = needed(step, method)
        assert step.passes.keys() == most.keys()
        times = {"update": epochs * learned.trunk_tokens, "value": 2 * whole.trunk_tokens}
        for who, (passes, share) in most.items():
            assert len(step.passes[who]) <= passes, who
            assert sum(step.passes[who]) <= share * times.get(who, whole.trunk_tokens), who
        # Exactly the tokens that were chosen, and of the update only those of rows that can change the gradient.
        beside = whole.head_tokens if "reference" in most else 0
        assert step.head == Counter({"update": epochs * learned.head_tokens, "beside": beside})
    if method == "grpo":
        shares = [learned.trunk_tokens / whole.trunk_tokens for whole, learned in (needed(s, method) for s in steps)]
        assert 0 < min(shares) < 0.8, "every row has an advantage: leaving out those without is not tried"


def test_sampling_reads_each_prompt_once_and_then_a_token_a_response(tmp_path, monkeypatch):
    for step in run(tmp_path, "grpo", {"log_kl": False}, monkeypatch, VARIED):
        sequences = step.experience.sequences
        first, *rest = step.passes["sampling"]
        assert first <= 1.2 * sum(len(prompt) for prompt in sequences.prompts)
        assert len(rest) <= int(sequences.mask.sum(dim=1).max()) - 1
        going = sequences.mask[:, 1:].sum(dim=0).tolist()  # a response that has just ended is no longer read
        assert all(ran <= most / 0.75 for ran, most in zip(rest, going, strict=False))


@pytest.mark.parametrize("log_kl", [True, False])
def test_a_step_without_any_advantage_runs_no_update(log_kl, tmp_path, monkeypatch):
    alike = "def f(prompts, completions, **columns): return [1.0] * len(completions)"
    for step in run(tmp_path, "grpo", {"log_kl": log_kl}, monkeypatch, alike):
        assert step.passes.keys() == ({"sampling", "reference"} if log_kl else {"sampling"})
        assert "update" not in step.head
