"""Labels: every method's loss and gradient against plain forward passes of each response alone, however it is cut.

In float64. Sums in another order agree to 1e-10.
"""

import copy
import math
from dataclasses import replace

import pytest
import torch

from grape_rl import ALGORITHMS
from grape_rl.data.chat import Example
from grape_rl.data.labels import LabeledResponse
from grape_rl.data.order import rows_of_step
from grape_rl.methods import build_objective, resolve_options
from grape_rl.model.forward import ForwardContext
from grape_rl.sources.labels import Labels, experience_from_labels, summarize_labels
from grape_rl.training.labels import label_logprobs, label_metrics
from grape_rl.training.update import UpdateSettings
from precise import doubled
from waits import waits_counted

OF_LABELS = [name for name, row in ALGORITHMS.items() if isinstance(row.source, Labels)]
SETTINGS = UpdateSettings(ForwardContext(20, temperature=1.0), max_tokens=9, max_grad_norm=1e9, seed=3)
OPTIONS = {"beta": 0.4, "desirable_weight": 1.3, "undesirable_weight": 0.6}
REORDERED = {"rtol": 1e-10, "atol": 1e-12}


@pytest.fixture
def model(model):
    return doubled(model)


@pytest.fixture
def other(model):
    """A reference that is not the model: its weights further out, so that the mismatched gain is above 0."""
    reference, generator = copy.deepcopy(model), torch.Generator().manual_seed(13)
    with torch.no_grad():
        for weight in reference.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    return reference.requires_grad_(False)


def given():
    """Five responses, two of them to the same prompt, three of them desirable."""
    generator = torch.Generator().manual_seed(5)
    draw = lambda n: torch.randint(4, 40, (n,), generator=generator)  # noqa: E731
    shapes = [(5, 3, True), (2, 4, False), (8, 2, True), (3, 6, False), (1, 1, True)]
    found = [LabeledResponse(Example(draw(p), draw(c)), good) for p, c, good in shapes]
    return [*found[:2], LabeledResponse(Example(found[1].example.prompt, draw(5)), True), *found[3:]]


def asked(reference):
    return lambda sequences: label_logprobs(reference, sequences, ForwardContext(30))


def step_by(model, name, what, memory=None, settings=SETTINGS):
    """The gradient (by plain descent with rate 1: what the weights lost), and what the update told."""
    row = ALGORITHMS[name]
    before = [p.detach().clone() for p in model.parameters()]
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    goal = build_objective(row, resolve_options(row, OPTIONS))
    told = row.update(model, sgd, what, goal, settings, {} if memory is None else memory)
    lost = [b - p.detach() for b, p in zip(before, model.parameters(), strict=True)]
    with torch.no_grad():
        for p, b in zip(model.parameters(), before, strict=True):
            p.copy_(b)
    return lost, told


def gain(model, reference, prompt, response):
    """log π − log π_ref of a response, by the models' own forward passes."""
    logp = [
        m(input_ids=torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        for m in (model, reference)
    ]
    return sum(logp[0][t, token] - logp[1][t, token] for t, token in enumerate(response))


def behind_others():
    """Each prompt with the next response to another, cut at 7 tokens together, as said by hand for ``given``."""
    found = [each.example for each in given()]
    return [(found[i].prompt, found[j].completion[: 7 - len(found[i].prompt)]) for i, j in enumerate((1, 3, 3, 4, 0))]


def plain_loss(model, reference, name):
    """The mean loss in Python's words, and the number that shifts it."""
    gains = [gain(model, reference, each.example.prompt, each.example.completion) for each in given()]
    with torch.no_grad():
        z = sum(gain(model, reference, *each) for each in behind_others()) / 5
        shift = {"kto": z.clamp(min=0), "bco_unpaired": sum(gains) / 5, "apo_zero_unpaired": 0 * z}[name]
    total = 0
    for h, each in zip(gains, given(), strict=True):
        sign, weight = (1, 1.3) if each.desirable else (-1, 0.6)
        inner = sign * 0.4 * (h - shift)
        total = total + weight * ((1 + (-inner).exp()).log() if name == "bco_unpaired" else 1 / (1 + inner.exp())) / 5
    return total, z, [gain.detach() for gain in gains]


@pytest.mark.parametrize("name", OF_LABELS)
def test_loss_and_gradient_are_those_of_plain_forward_passes(model, other, name):
    what = experience_from_labels(given(), asked(other), 7)
    total, z, gains = plain_loss(model, other, name)
    expected = torch.autograd.grad(total, list(model.parameters()))
    assert max(g.abs().max() for g in expected) > 0.01
    found, told = step_by(model, name, what)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **REORDERED)
    assert told["loss"] == pytest.approx(float(total.detach()), rel=1e-9)
    assert told["grad_norm"] == pytest.approx(math.sqrt(sum(float(g.square().sum()) for g in expected)), rel=1e-9)
    if name == "kto":
        assert told["mismatched_gain"] == pytest.approx(float(z), rel=1e-9) and z > 0.1
    if name == "bco_unpaired":
        assert told["mean_gain"] == pytest.approx(float(sum(gains)) / 5, rel=1e-9)
    good, bad = (
        [float(h) for h, e in zip(gains, given(), strict=True) if e.desirable is side] for side in (True, False)
    )
    right = sum((g > b) + (g == b) / 2 for g in good for b in bad) / 6
    stands = {"accuracy": right, "desirable_reward": sum(good) / 3, "undesirable_reward": sum(bad) / 2}
    stands["margin"] = stands["desirable_reward"] - stands["undesirable_reward"]
    assert {key: told[key] for key in stands} == pytest.approx(stands, rel=1e-8)
    assert told["entropy"] > 0


@pytest.mark.parametrize("name", OF_LABELS)
def test_micro_batches_change_nothing(model, other, name):
    what = experience_from_labels(given(), asked(other), 7)
    expected, whole = step_by(model, name, what, settings=replace(SETTINGS, forward=ForwardContext(10_000)))
    found, told = step_by(model, name, what, settings=replace(SETTINGS, forward=ForwardContext(1)))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **REORDERED)
    assert told == pytest.approx(whole, rel=1e-8)


@pytest.mark.parametrize("name", OF_LABELS)
def test_the_device_is_waited_for_no_more_often_in_many_micro_batches(model, other, name, monkeypatch):
    what = experience_from_labels(given(), asked(other), 7)
    counts = []
    for tokens in (1, 10_000):
        with waits_counted(monkeypatch) as waits:
            step_by(model, name, what, settings=replace(SETTINGS, forward=ForwardContext(tokens)))
        counts.append(len(waits))
    assert counts[0] == counts[1] < 12


def test_only_kto_looks_at_mismatched_responses(model, other):
    what = experience_from_labels(given(), asked(other), None)
    assert what.mismatched is None and not what.warnings
    assert what.metrics == pytest.approx({"length": 19 / 5, "desirable_share": 0.6, "tokens": 19 + 5 + 2 + 2 + 3 + 1})
    lost, _ = step_by(model, "apo_zero_unpaired", what)
    with_them, _ = step_by(model, "apo_zero_unpaired", experience_from_labels(given(), asked(other), 7))
    assert all(torch.equal(a, b) for a, b in zip(lost, with_them, strict=True))


def test_one_prompt_alone_is_compared_with_nothing(model, other):
    same = [
        LabeledResponse(Example(given()[0].example.prompt, each.example.completion), each.desirable) for each in given()
    ]
    what = experience_from_labels(same, asked(other), 20)
    assert [key for key, _ in what.warnings] == ["one_prompt"]
    found, told = step_by(model, "kto", what)
    assert told["mismatched_gain"] == 0
    expected, _ = step_by(model, "apo_zero_unpaired", what)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **REORDERED)


def test_the_mean_gain_is_of_all_batches_up_to_now(model, other):
    first = experience_from_labels(given()[:2], asked(other), None)
    second = experience_from_labels(given()[2:], asked(other), None)
    memory, (_, _, gains) = {}, plain_loss(model, other, "bco_unpaired")
    _, told = step_by(model, "bco_unpaired", first, memory)
    assert told["mean_gain"] == pytest.approx(float(gains[0] + gains[1]) / 2, rel=1e-9)
    _, told = step_by(model, "bco_unpaired", second, memory)
    assert told["mean_gain"] == pytest.approx(float(sum(gains)) / 5, rel=1e-9)
    assert {name: value.item() for name, value in memory.items()}["gain_count"] == 5


def test_metrics_of_one_label_are_missing_and_a_tie_is_half_right():
    found = label_metrics(torch.tensor([1.0, 3.0]), torch.tensor([True, True]))
    assert found["desirable_reward"] == 2 and all(
        math.isnan(found[k]) for k in ("accuracy", "margin", "undesirable_reward")
    )
    found = label_metrics(torch.tensor([1.0, 3.0, 1.0]), torch.tensor([True, True, False]))
    assert found == {"accuracy": 0.75, "margin": 1.0, "desirable_reward": 2.0, "undesirable_reward": 1.0}


def test_held_out_labels_are_the_same_metrics(model, other):
    what = experience_from_labels(given(), asked(other), None)
    _, told = step_by(model, "apo_zero_unpaired", what)
    found = {item.item: item for item in summarize_labels(model, what, ForwardContext(20))}
    assert {name: item.mean for name, item in found.items()} == pytest.approx({name: told[name] for name in found})
    assert all((item.category, item.graded) == ("labels", 5) for item in found.values())


def test_the_source_draws_every_response_before_any_comes_again(model):
    reference = asked(model)

    def source(step):
        return experience_from_labels([given()[i] for i in rows_of_step(5, 2, step, seed=0)], reference, 9)

    drawn = [source(step) for step in range(5)]
    firsts = [int(row[0]) for what in drawn for row in what.sequences.tokens]
    assert sorted(firsts[:5]) == sorted(firsts[5:]) == sorted(int(each.example.completion[0]) for each in given())
    assert torch.equal(source(3).sequences.tokens, drawn[3].sequences.tokens)
    assert any(what.mismatched is not None for what in drawn)


def test_a_gradient_that_is_not_finite_moves_no_weight(model, other):
    what = experience_from_labels(given(), asked(other), 7)
    broken = replace(what, batch=replace(what.batch, reference_logp=what.batch.reference_logp * math.nan))
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match=r"the gradient's norm is nan"):
        step_by(model, "kto", broken)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
