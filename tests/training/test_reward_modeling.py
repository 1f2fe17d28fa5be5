"""Training a model that scores: its loss and gradient against loops, however the batch is cut, and what it learns."""

import math

import pytest
import torch

from grape_rl import ALGORITHMS
from grape_rl.data.comparisons import tokenize_comparisons
from grape_rl.data.steps import tokenize_solutions
from grape_rl.methods import build_objective, resolve_options
from grape_rl.model.forward import ForwardContext
from grape_rl.model.logprobs import hidden_states_after
from grape_rl.model.reward_head import build_reward_model
from grape_rl.sources.comparisons import experience_from_comparisons, summarize_comparisons
from grape_rl.sources.steps import experience_from_solutions, summarize_steps
from grape_rl.training.optimizer import adamw, set_learning_rate
from grape_rl.training.reward_modeling import comparison_gradient, step_gradient
from grape_rl.training.update import UpdateSettings
from precise import doubled

PAIRS = [
    {"prompt": "1+1=", "chosen": "2", "rejected": "13.", "margin": 0.5},
    {"prompt": "12+1=", "chosen": "thirteen", "rejected": "1", "margin": 0.0},
    {"prompt": "3=", "chosen": "3", "rejected": "4", "margin": -0.25},
]
SOLUTIONS = [
    {"prompt": "1+1+1=", "completions": ["2+1=", "3"], "labels": [True, True]},
    {"prompt": "2+2=", "completions": ["5", "so 5", "4"], "labels": [False, False, True]},
]


@pytest.fixture
def scorer(model, tokenizer):
    """An exact reward model whose scores differ."""
    made = build_reward_model(model, tokenizer, seed=0)
    made.score.weight.data.mul_(20)
    return doubled(made)


def pairs_of(tokenizer, rows, **options):
    columns = ("margin", "chosen_reward", "rejected_reward")
    return tokenize_comparisons(rows, tokenizer, (tokenizer.eos_token_id,), 64, columns, "data", **options)[0]


def goal(name, **given):
    return build_objective(ALGORITHMS[name], resolve_options(ALGORITHMS[name], given))


def settings(tokens=10**6, norm=1e9):
    return UpdateSettings(ForwardContext(tokens), 64, norm, 0)


def idle_optimizer(model):
    """An optimizer that moves nothing, so that the gradient can be looked at."""
    return torch.optim.SGD(model.parameters(), lr=0.0)


def said(model, tokenizer, prompt, text):
    """The model's own number behind prompt and text, read by itself."""
    return model(input_ids=torch.tensor([tokenizer(prompt + text)["input_ids"]])).logits[0, 0]


def gradients(model):
    return [p.grad.clone() for p in model.parameters()]


def test_the_loss_of_pairs_and_its_gradient_by_hand(scorer, tokenizer):
    told = comparison_gradient(
        scorer,
        idle_optimizer(scorer),
        experience_from_comparisons(pairs_of(tokenizer, PAIRS)),
        goal("reward_model", centering=0.1),
        settings(),
    )
    found = gradients(scorer)
    scorer.zero_grad()
    loss, won, rewards = 0.0, [], []
    for row in PAIRS:
        w = said(scorer, tokenizer, row["prompt"], row["chosen"] + "<eos>")
        l = said(scorer, tokenizer, row["prompt"], row["rejected"] + "<eos>")  # noqa: E741
        loss = loss + (torch.log(1 + torch.exp(-(w - l - row["margin"]))) + 0.1 * (w + l) ** 2) / 3
        won.append(float(w > l))
        rewards += [w.item(), l.item()]
    loss.backward()
    assert told["loss"] == pytest.approx(loss.item(), rel=1e-9)
    assert told["accuracy"] == pytest.approx(sum(won) / 3) and told["reward"] == pytest.approx(sum(rewards) / 6)
    assert told["loss/bradley_terry"] + told["loss/score_centering"] == pytest.approx(told["loss"])
    for a, b in zip(found, gradients(scorer), strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-7)


def test_the_loss_of_steps_and_its_gradient_by_hand(scorer, tokenizer):
    found, _ = tokenize_solutions(SOLUTIONS, tokenizer, 64, "data")
    told = step_gradient(
        scorer, idle_optimizer(scorer), experience_from_solutions(found), goal("process_reward_model"), settings()
    )
    mine = gradients(scorer)
    scorer.zero_grad()
    loss, right = 0.0, []
    for row in SOLUTIONS:
        text = ""
        for step, label in zip(row["completions"], row["labels"], strict=True):
            text += step + "\n"
            chance = torch.sigmoid(said(scorer, tokenizer, row["prompt"], text))
            loss = loss - torch.log(chance if label else 1 - chance) / 5
            right.append(float((chance > 0.5).item() == label))
    loss.backward()
    assert told["loss"] == pytest.approx(loss.item(), rel=1e-9)
    assert told["accuracy"] == pytest.approx(sum(right) / 5)
    for a, b in zip(mine, gradients(scorer), strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-7)
    accuracy, on_right, on_wrong = summarize_steps(scorer, experience_from_solutions(found), ForwardContext(16))
    assert (accuracy.graded, on_right.graded, on_wrong.graded) == (5, 3, 2)
    assert accuracy.mean == pytest.approx(sum(right) / 5)
    assert on_right.mean == pytest.approx((right[0] + right[1] + right[4]) / 3)


@pytest.mark.parametrize("tokens", [1, 25, 40])
def test_the_same_however_a_batch_is_cut(tokens, scorer, tokenizer):
    pairs, steps = (
        experience_from_comparisons(pairs_of(tokenizer, PAIRS)),
        experience_from_solutions(tokenize_solutions(SOLUTIONS, tokenizer, 64, "data")[0]),
    )
    for update, batch, name in (
        (comparison_gradient, pairs, "reward_model"),
        (step_gradient, steps, "process_reward_model"),
    ):
        whole = update(scorer, idle_optimizer(scorer), batch, goal(name), settings())
        before = gradients(scorer)
        cut = update(scorer, idle_optimizer(scorer), batch, goal(name), settings(tokens))
        assert cut == pytest.approx(whole, rel=1e-9)
        for a, b in zip(before, gradients(scorer), strict=True):
            torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-8)
    one, other = (summarize_comparisons(scorer, pairs, ForwardContext(n)) for n in (tokens, 10**6))
    assert [i.mean for i in one] == pytest.approx([i.mean for i in other])


def trained(model, update, source, objective, steps, rate):
    optimizer = adamw(model, 0.0, (0.9, 0.95))
    set_learning_rate(optimizer, rate)
    return [update(model, optimizer, source(step), objective, settings(norm=1.0)) for step in range(steps)]


def test_it_learns_pairs_and_centering_brings_the_mean_score_to_zero(model, tokenizer):
    """Even beats odd. The head starts with a mean score of 3: its level is left to chance, or pulled to 0."""
    rows = [{"prompt": f"{i}=", "chosen": str(2 * i), "rejected": str(2 * i + 1)} for i in range(8)]
    found = pairs_of(tokenizer, rows)
    model = build_reward_model(model, tokenizer, seed=0)
    batch = experience_from_comparisons(found)
    with torch.no_grad():
        mean = hidden_states_after(model, batch.sequences)[torch.arange(16), batch.sequences.mask.sum(1)].mean(0)
        model.score.weight.copy_(3 * mean / mean.square().sum())
    start = {key: value.clone() for key, value in model.state_dict().items()}
    last = {}
    for centering in (0.0, 0.1):
        model.load_state_dict(start)
        goals = goal("reward_model", centering=centering)
        told = trained(model, comparison_gradient, lambda step: batch, goals, 40, 1e-2)
        accuracy, margin, reward = summarize_comparisons(model, batch, ForwardContext(10**6))
        assert accuracy.mean > 0.9 and margin.mean > 1 and told[-1]["loss/bradley_terry" if centering else "loss"] < 0.2
        last[centering] = abs(reward.mean)
    assert last[0.1] < 0.1 and last[0.0] > 0.3


def test_it_learns_steps(model, tokenizer):
    """A step is right if it repeats the prompt's digit."""
    rows = [
        {"prompt": f"{i}:", "completions": [str(i), str(j), str(i)], "labels": [True, i == j, True]}
        for i in range(4)
        for j in range(4)
    ]
    found, _ = tokenize_solutions(rows, tokenizer, 64, "data")
    model = build_reward_model(model, tokenizer, seed=0)
    batch = experience_from_solutions(found)
    told = trained(model, step_gradient, lambda step: batch, goal("process_reward_model"), 40, 1e-2)
    accuracy, on_right, on_wrong = summarize_steps(model, batch, ForwardContext(10**6))
    assert told[-1]["loss"] < 0.2 and math.isfinite(told[-1]["grad_norm"])
    assert accuracy.mean > 0.95 and on_right.mean > 0.9 and on_wrong.mean > 0.9
