"""The work of a training step, counted instead of timed: positions read, forward passes, rows of the LM head.

Seconds depend on the machine and its load; these counts do not. The required work is computed from the step's
sequences (``grape_rl.estimate.flops``), and the table below limits how much more a step may do.
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

# A pass reads a row with each prompt and response once, padded by at most 1/16. Minibatches that split a group each
# read the group's prompt.
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
        {"update": (1, 1.07)},  # the reference has read each row before the first step
    ),
    "ppo, a trunk for the value": (
        "ppo",
        {},
        {"sampling": (10, 1.2), "reference": (1, 1.07), "value": (2, 1.07), "update": (1, 1.07)},
    ),
    "ppo, one trunk for both": (
        "ppo",
        {"options": {"value_trunk": "shared"}},
        {"sampling": (10, 1.2), "reference": (1, 1.07), "no gradient": (1, 1.07), "update": (1, 1.07)},
    ),
}
"""A run's method and settings; for each kind of pass, the most passes per step and the most positions per required one.

Other kinds of passes may not run at all, such as a pass of the policy over its own responses before the update.
"""


@dataclass
class Step:
    """The forward passes of one step by kind: the positions of each pass, and the rows of the LM head.

    Kinds: ``sampling``; ``reference``, with frozen weights; the ``value`` function's own trunk; the ``update``, with
    a gradient; and ``no gradient``, other passes of the policy's trunk.
    """

    passes: dict[str, list[int]] = field(default_factory=lambda: dict[str, list[int]]())
    head: Counter[str] = field(default_factory=lambda: Counter[str]())
    experience: Any = None


def everywhere(patch: pytest.MonkeyPatch, function: Callable[..., Any], replacement: Callable[..., Any]) -> None:
    """Replace a function in each module of grape_rl that imports it."""
    name = function.__name__
    holders = [m for key, m in sys.modules.items() if key.startswith("grape_rl") and vars(m).get(name) is function]
    assert holders
    for module in holders:
        patch.setattr(module, name, replacement)


def counted(patch: pytest.MonkeyPatch, config: dict[str, Any]) -> list[Step]:
    """The run's steps. A forward pass is recognized by its lookup of embeddings, which every pass needs: one lookup is
    one pass, over as many positions as tokens are looked up."""
    steps: list[Step] = []
    policy: list[nn.Module] = []
    sampling: list[bool] = []

    def kind(weight: nn.Parameter | None = None) -> str:
        if sampling:
            return "sampling"
        if weight is not None and not weight.requires_grad:
            return "reference"
        if weight is not None and policy and weight is not policy[0].get_input_embeddings().weight:
            return "value"
        return "update" if torch.is_grad_enabled() else "no gradient"

    def lookup_value(self: nn.Embedding, ids: Tensor) -> Tensor:
        if steps:
            steps[-1].passes.setdefault(kind(self.weight), []).append(ids.numel())
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
            steps[-1].head["update" if torch.is_grad_enabled() else "no gradient"] += len(tokens)
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
    """The steps of a run on prompts of 20 to 26 tokens; some of a step's three prompts get equal rewards only."""
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
    config = settings(folder, method) | given
    written(folder / "rows.jsonl", rows)
    (folder / "reward.py").write_text(reward)
    config["reward"] = {"function": f"{folder}/reward.py:f"} if method in ("grpo", "ppo") else {}
    return counted(patch, config)


VARIED = """
def f(prompts, completions, flat, **columns):
    return [1.0 if same else float(sum(map(ord, text)) % 7) for text, same in zip(completions, flat)]
"""


def needed(step: Step, method: str) -> tuple[Work, Work]:
    """The required work of all rows of the step, and of those that can change the gradient."""
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
        for name, (passes, share) in most.items():
            assert len(step.passes[name]) <= passes, name
            assert sum(step.passes[name]) <= share * times.get(name, whole.trunk_tokens), name
        # Exactly the sampled tokens; in the update, only those of rows that can change the gradient.
        without_gradient = whole.head_tokens if "reference" in most else 0
        assert step.head == Counter({"update": epochs * learned.head_tokens, "no gradient": without_gradient})
    if method == "grpo":
        shares = [learned.trunk_tokens / whole.trunk_tokens for whole, learned in (needed(s, method) for s in steps)]
        assert 0 < min(shares) < 0.8, "every row has an advantage, so that skipping the others is not tested"


def test_sampling_reads_each_prompt_once_and_then_a_token_a_response(tmp_path, monkeypatch):
    for step in run(tmp_path, "grpo", {"log_kl": False}, monkeypatch, VARIED):
        sequences = step.experience.sequences
        first, *rest = step.passes["sampling"]
        assert first <= 1.2 * sum(len(prompt) for prompt in sequences.prompts)
        assert len(rest) <= int(sequences.mask.sum(dim=1).max()) - 1
        going = sequences.mask[:, 1:].sum(dim=0).tolist()  # a response that has ended is no longer read
        assert all(ran <= most / 0.75 for ran, most in zip(rest, going, strict=False))


@pytest.mark.parametrize("log_kl", [True, False])
def test_a_step_without_any_advantage_runs_no_update(log_kl, tmp_path, monkeypatch):
    alike = "def f(prompts, completions, **columns): return [1.0] * len(completions)"
    for step in run(tmp_path, "grpo", {"log_kl": log_kl}, monkeypatch, alike):
        assert step.passes.keys() == ({"sampling", "reference"} if log_kl else {"sampling"})
        assert "update" not in step.head
