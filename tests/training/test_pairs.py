"""Pairs: every method's loss and gradient against plain forward passes of each sequence alone, however it is cut.

In float64. Sums in another order agree to 1e-10.
"""

import copy
import inspect
import math
from dataclasses import replace

import pytest
import torch

from grape_rl import ALGORITHMS
from grape_rl.data.order import rows_of_step
from grape_rl.data.preferences import Pair
from grape_rl.methods import build_objective, resolve_options
from grape_rl.model.forward import ForwardContext
from grape_rl.sources.preferences import Preferences, experience_from_pairs
from grape_rl.training import pairs as training_pairs
from grape_rl.training.objective import DISTRIBUTION_FIELDS, PAIR_FIELDS, Objective, Term, example_loss
from grape_rl.training.pairs import PairExperience, pair_batches, pair_logprobs, pair_loss_inputs, pair_metrics
from grape_rl.training.update import UpdateSettings
from grape_rl.types import PairBatch
from precise import doubled as in_doubles
from waits import waits_counted

OF_PAIRS = [name for name, row in ALGORITHMS.items() if isinstance(row.source, Preferences)]
"""The online forms have the same terms and updates, row for row: see test_algorithms.py."""
SETTINGS = UpdateSettings(ForwardContext(30, temperature=1.0), max_tokens=9, max_grad_norm=1e9, seed=3)
REORDERED = {"rtol": 1e-10, "atol": 1e-12}


@pytest.fixture
def model(model):
    return in_doubles(model)


@pytest.fixture
def other(model):
    """A reference of whole choices: the model with other weights."""
    reference, generator = copy.deepcopy(model), torch.Generator().manual_seed(11)
    with torch.no_grad():
        for weight in reference.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    return reference.requires_grad_(False)


def given_pairs():
    """Five pairs with prompts and responses of different lengths, either of the two the longer one."""
    generator = torch.Generator().manual_seed(5)
    draw = lambda n: torch.randint(4, 40, (n,), generator=generator)  # noqa: E731
    shapes = [(5, 3, 6), (2, 4, 1), (8, 2, 2), (3, 6, 5), (1, 1, 3)]
    rewards = [(1.0, 0.0), (2.0, 0.5), (0.25, -3.0), (1.0, 0.9), (5.0, 1.0)]
    return [Pair(draw(p), draw(c), draw(r), *gw) for (p, c, r), gw in zip(shapes, rewards, strict=True)]


def experience(found=None, reference=None):
    """The pairs with a reference that is not the model: made-up log-probs, and the whole choices of ``reference``."""
    made = experience_from_pairs(given_pairs() if found is None else found, None, reference)
    generator = torch.Generator().manual_seed(7)
    mask = made.batch.mask
    logp = (-3.5 * torch.rand(mask.shape, generator=generator, dtype=torch.float64) - 0.5).masked_fill(~mask, 0)
    return replace(made, batch=replace(made.batch, reference_logp=logp))


def goal_of(name, **given):
    """The row's objective with every weight switched on."""
    row = ALGORITHMS[name]
    return build_objective(row, resolve_options(row, {term.option: 0.3 for term in row.terms if term.option} | given))


def step_by(model, name, what, settings=SETTINGS, goal=None):
    """The gradient (by plain descent with rate 1: what the weights lost), and what the update told."""
    before = [p.detach().clone() for p in model.parameters()]
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    update = ALGORITHMS[name].update
    asked = {"step": 0} if "step" in inspect.signature(update).parameters else {}
    told = update(model, sgd, what, goal or goal_of(name), settings, **asked)
    lost = [b - p.detach() for b, p in zip(before, model.parameters(), strict=True)]
    with torch.no_grad():
        for p, b in zip(model.parameters(), before, strict=True):
            p.copy_(b)
    return lost, told


def distributions(model, prompt, response):
    """Log-probs of all tokens at each of the response's, by the model's own forward pass."""
    return model(input_ids=torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1].log_softmax(-1)


def alone(model, prompt, response):
    """Log-probs of the response's tokens, and the entropy of each choice, by the model's own forward pass."""
    choices = distributions(model, prompt, response)
    entropy = -(choices.exp() * choices).sum(-1)
    return choices.gather(1, response[:, None]).squeeze(1), entropy


def plain(model, what):
    """The fields of ``PAIR_FIELDS`` from plain forward passes of each response alone, pair by pair."""
    made = {name: [] for name in PAIR_FIELDS if what.reference is not None or name not in DISTRIBUTION_FIELDS}
    for i, pair in enumerate(given_pairs()):
        shorter = min(len(pair.chosen), len(pair.rejected))
        for which, response, row in (("chosen", pair.chosen, i), ("rejected", pair.rejected, i + 5)):
            logp, _ = alone(model, pair.prompt, response)
            frozen = what.batch.reference_logp[row, : len(response)]
            for whose, each in (("", logp), ("reference_", frozen)):
                made[f"{whose}{which}_logp"].append(each.sum())
                made[f"{whose}{which}_head_logp"].append(each[:shorter].sum())
            made[f"{which}_length"].append(torch.tensor(float(len(response)), dtype=torch.float64))
            if what.reference is not None:
                ours = distributions(model, pair.prompt, response).exp()
                theirs = distributions(what.reference, pair.prompt, response).exp()
                kl = sum((q * (q / p).log()).sum() for p, q in zip(ours, theirs, strict=True))
                made[f"{which}_kl"].append(kl)
                made[f"{which}_collision"].append(sum((p * p).sum().log() for p in ours))
        made["chosen_reward"].append(torch.tensor(pair.chosen_reward, dtype=torch.float64))
        made["rejected_reward"].append(torch.tensor(pair.rejected_reward, dtype=torch.float64))
    return {name: torch.stack(values) for name, values in made.items()}


def compare(found, expected, **tolerance):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def test_the_fields_are_those_of_a_plain_forward_pass(model):
    what = experience()
    with torch.no_grad():
        expected = plain(model, what)
    for tokens in (1, 30, 10_000):
        found = pair_loss_inputs(pair_logprobs(model, what.sequences, ForwardContext(tokens)), what.batch)
        assert found.keys() == set(PAIR_FIELDS) - set(DISTRIBUTION_FIELDS)
        for name in found:
            rewards = {"rtol": 1e-6, "atol": 0} if name.endswith("reward") else REORDERED  # kept in float32
            torch.testing.assert_close(found[name], expected[name], **rewards)


@pytest.mark.parametrize("name", OF_PAIRS)
def test_loss_and_gradient_are_those_of_plain_forward_passes(model, other, name):
    what, goal = experience(reference=other), goal_of(name)
    fields = plain(model, what)
    total = sum(
        term.coefficient * term.function(**{n: fields[n] for n in term.parameters}, **term.options).mean()
        for term in goal.terms
    )
    expected = torch.autograd.grad(total, list(model.parameters()))
    assert max(g.abs().max() for g in expected) > 0.01
    assert all((g != 0).any() for g in expected), "every parameter has a part in it"
    found, told = step_by(model, name, what)
    # odpo and rpo read rewards that are kept in float32
    of_rewards = name in ("odpo", "rpo", "mixture")
    compare(found, expected, **({"rtol": 1e-5, "atol": 1e-7} if of_rewards else REORDERED))
    assert told["loss"] == pytest.approx(float(total.detach()), rel=1e-6)
    assert told["grad_norm"] == pytest.approx(math.sqrt(sum(float(g.square().sum()) for g in expected)), rel=1e-5)


@pytest.mark.parametrize("name", OF_PAIRS)
def test_micro_batches_and_the_order_of_pairs_change_nothing(model, other, name):
    what = experience(reference=other)
    expected, whole = step_by(model, name, what, replace(SETTINGS, forward=ForwardContext(10_000)))
    found, told = step_by(model, name, what, replace(SETTINGS, forward=ForwardContext(1)))
    compare(found, expected, **REORDERED)
    assert told == pytest.approx(whole, rel=1e-8)
    order = torch.tensor([3, 0, 4, 2, 1])
    rows = torch.cat([order, order + 5])
    found = given_pairs()
    shuffled = experience([found[i] for i in order.tolist()], other)
    shuffled = replace(shuffled, batch=replace(shuffled.batch, reference_logp=what.batch.reference_logp[rows]))
    compare(step_by(model, name, shuffled)[0], expected, **REORDERED)


def test_a_pair_is_never_split_and_its_prompt_is_encoded_once(model, monkeypatch):
    seen = []
    run = training_pairs.compute_logprobs

    def counted(model, sequences, *rest):
        seen.append((len(sequences.prompts), sequences.group.tolist()))
        return run(model, sequences, *rest)

    monkeypatch.setattr(training_pairs, "compute_logprobs", counted)
    step_by(model, "dpo", experience())
    assert sum(prompts for prompts, _ in seen) == 5 and len(seen) > 1
    assert all(sorted(group) == sorted([*range(prompts)] * 2) for prompts, group in seen)


def test_pairs_that_run_together_fit_the_budget():
    what = experience()
    for budget in (1, 20, 30, 60, 10_000):
        parts = [part.tolist() for part in pair_batches(what.sequences, budget)]
        assert sorted(i for part in parts for i in part) == [0, 1, 2, 3, 4]
        tokens = [len(pair.prompt) + len(pair.chosen) + len(pair.rejected) for pair in given_pairs()]
        longer = [max(len(pair.chosen), len(pair.rejected)) for pair in given_pairs()]
        order = [longer[i] for part in parts for i in part]
        assert order == sorted(order), "those of similar lengths stand together"
        costs = [sum(tokens[i] for i in part) for part in parts]
        assert all(cost <= budget or len(part) == 1 for cost, part in zip(costs, parts, strict=True))
        firsts = [tokens[part[0]] for part in parts[1:]]
        assert all(cost + first > budget for cost, first in zip(costs, firsts, strict=False)), "no room is left over"
    assert len(parts) == 1


@pytest.mark.parametrize("name", ["dpo", "aot", "tdpo1", "mixture"])
def test_the_device_is_waited_for_no_more_often_in_many_micro_batches(model, other, name, monkeypatch):
    """Each number read from a tensor makes the program wait until the device has come to it."""
    counts = []
    for tokens in (1, 10_000):
        with waits_counted(monkeypatch) as waits:
            step_by(model, name, experience(reference=other), replace(SETTINGS, forward=ForwardContext(tokens)))
        counts.append(len(waits))
    assert counts[0] == counts[1] <= 4


def test_the_metrics_against_a_loop(model):
    what = experience()
    _, told = step_by(model, "dpo", what)
    entropy, count, margins, chosen, rejected = 0.0, 0, [], [], []
    for i, pair in enumerate(given_pairs()):
        gains = []
        for response, row in ((pair.chosen, i), (pair.rejected, i + 5)):
            logp, choices = (x.detach() for x in alone(model, pair.prompt, response))
            gains.append(float(logp.sum() - what.batch.reference_logp[row].sum()))
            entropy, count = entropy + float(choices.sum()), count + len(response)
        margins.append(gains[0] - gains[1])
        chosen.append(gains[0])
        rejected.append(gains[1])
    expected = {
        "accuracy": sum(m > 0 for m in margins) / 5,
        "margin": sum(margins) / 5,
        "chosen_reward": sum(chosen) / 5,
        "rejected_reward": sum(rejected) / 5,
        "entropy": entropy / count,
    }
    assert {name: told[name] for name in expected} == pytest.approx(expected, rel=1e-8)
    assert 0 < told["accuracy"] < 1
    lengths = {"chosen_length": (3 + 4 + 2 + 6 + 1) / 5, "rejected_length": (6 + 1 + 2 + 5 + 3) / 5}
    assert {name: what.metrics[name] for name in lengths} == pytest.approx(lengths)
    assert what.metrics["tokens"] == 16 + 17 + 19


def test_a_tie_is_half_right():
    fields = {name: torch.tensor([1.0, 2.0, 0.0]) for name in PAIR_FIELDS} | {"chosen_logp": torch.tensor([1.0, 3, -1])}
    assert pair_metrics(fields)["accuracy"].tolist() == [0.5, 1.0, 0.0]


def test_terms_are_summed_with_their_coefficients_over_the_whole_count():
    fields = {name: torch.tensor([1.0, 3.0]) for name in PAIR_FIELDS}
    goal = Objective((Term(doubled, 0.5), Term(powered, -1.0, {"power": 2})), None)
    total, shares = example_loss(goal, fields, 4)
    assert float(total) == pytest.approx(0.5 * (2 + 6) / 4 - (1 + 9) / 4)
    assert {name: float(v) for name, v in shares.items()} == pytest.approx({"doubled": 1.0, "powered": -2.5})


def doubled(chosen_logp):
    return 2 * chosen_logp


def powered(rejected_length, power):
    return rejected_length**power


def test_both_shares_of_a_loss_with_two_terms_are_told(model):
    _, told = step_by(model, "simpo", experience())
    assert told["loss"] == pytest.approx(told["loss/simpo"] + told["loss/chosen_nll"], rel=1e-8)
    _, told = step_by(model, "aot", experience())
    assert told["loss"] == pytest.approx(told["loss/aot"] + told["loss/chosen_nll"], rel=1e-8)


def test_a_gradient_that_is_not_finite_moves_no_weight(model):
    what = experience()
    broken = replace(what, batch=replace(what.batch, reference_logp=what.batch.reference_logp * math.nan))
    before = [p.detach().clone() for p in model.parameters()]
    adam = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for name in ("dpo", "aot"):
        with pytest.raises(RuntimeError, match=r"the gradient's norm is nan"):
            ALGORITHMS[name].update(model, adam, broken, goal_of(name), SETTINGS)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_the_source_draws_every_pair_before_any_comes_again_and_asks_the_reference(model):
    found = given_pairs()

    def reference(sequences):
        return pair_logprobs(model, sequences, ForwardContext(30))

    def source(step):
        return experience_from_pairs([found[i] for i in rows_of_step(5, 2, step, seed=0)], reference)

    drawn = [source(step) for step in range(5)]
    assert all(isinstance(what, PairExperience) and isinstance(what.batch, PairBatch) for what in drawn)
    prompts = [len(p) for what in drawn for p in what.sequences.prompts]
    assert sorted(prompts[:5]) == sorted(prompts[5:]) == [1, 2, 3, 5, 8]
    again = source(3)
    assert torch.equal(again.sequences.tokens, drawn[3].sequences.tokens)
    fields = pair_loss_inputs(pair_logprobs(model, again.sequences, ForwardContext(30)), again.batch)
    assert torch.equal(fields["chosen_logp"], fields["reference_chosen_logp"])
    assert pair_metrics(fields)["accuracy"].tolist() == [0.5, 0.5], "at the reference nothing is preferred"
    assert not experience_from_pairs(found, None).batch.reference_logp.any()
