"""Every method's loss and gradient against a loop over single tokens, and what may not change them.

In float64, but for the weights of tokens, which the loop rounds to float32 as the update does. So all that is compared
differs in the order of its sums alone, and agrees to 1e-10.
"""

import math
from dataclasses import replace

import pytest
import torch

from grape_rl import ALGORITHMS
from grape_rl.methods import build_objective, resolve_options
from grape_rl.model.forward import ForwardContext
from grape_rl.model.value_head import PolicyWithValue, separate_value_model, shared_value_head
from grape_rl.rollout.experience import TokenExperience
from grape_rl.training import update
from grape_rl.training.objective import Objective, Term
from grape_rl.training.update import UpdateSettings, gradient
from grape_rl.training.value import frozen_parameters
from grape_rl.types import Sequences, ValueBatch
from precise import doubled

SETTINGS = UpdateSettings(ForwardContext(50, temperature=0.7), max_tokens=9, max_grad_norm=1e9, seed=3)


def cut_at(tokens: int) -> ForwardContext:
    """SETTINGS' forward context with micro-batches of ``tokens`` positions."""
    return replace(SETTINGS.forward, tokens_per_microbatch=tokens)


OF_TOKENS = [name for name, row in ALGORITHMS.items() if row.reduction]  # those of pairs: test_pairs.py
REDUCTIONS = ("token", "sequence", "fixed_length")
REORDERED = {"rtol": 1e-10, "atol": 1e-12}


@pytest.fixture
def model(model):
    return doubled(model)


def experience():
    """Seven responses to three prompts of different length, off-policy, with two advantages of 0 and a gap."""
    generator = torch.Generator().manual_seed(5)
    lengths = [4, 1, 6, 3, 2, 5, 6]
    group = torch.tensor([0, 0, 1, 1, 1, 2, 2])
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    mask[2, 1:3] = False  # a tool's answer
    draw = lambda: torch.rand(7, 6, generator=generator, dtype=torch.float64)  # noqa: E731
    advantage = torch.tensor([1.0, -0.5, 0.0, 2.0, -1.5, 0.0, 0.7], dtype=torch.float64)
    batch = ValueBatch(
        mask,
        (-3.5 * draw() - 0.5).masked_fill(~mask, 0),
        (-3.5 * draw() - 0.5).masked_fill(~mask, 0),
        advantage[:, None].expand(7, 6),
        (value := 2 * draw() - 1).masked_fill(~mask, 0),
        (value + 2 * draw() - 1).masked_fill(~mask, 0),
    )
    prompts = tuple(torch.randint(4, 40, (n,), generator=generator) for n in (5, 2, 8))
    tokens = torch.randint(4, 40, (7, 6), generator=generator)
    return TokenExperience(Sequences(prompts, tokens, mask, group), batch, {})


def coefficients(name):
    """The options that are the coefficients of a row's terms."""
    return [term.option for term in ALGORITHMS[name].terms if term.option]


def goal_of(name, reduction, **given):
    """A row's objective with these coefficients and no other; without any, with every term that it has switched on."""
    row = ALGORITHMS[name]
    on = {key: given.get(key, 0.0) for key in coefficients(name)} if given else dict.fromkeys(coefficients(name), 0.3)
    return build_objective(row, resolve_options(row, {**on, "reduction": reduction}))


def bare(name, reduction):
    """A row's objective without any term that can be switched off."""
    return goal_of(name, reduction, nothing=1.0)


def distinct():
    """One row for each different loss: what an update does depends on a row through its terms alone."""
    found = {}
    for name in OF_TOKENS:
        terms = goal_of(name, "token").terms
        found.setdefault(tuple((t.function, t.coefficient, tuple(t.options.items())) for t in terms), name)
    return list(found.values())


DISTINCT = distinct()


def with_value(model, goal):
    """The model, with a random head for the value beside it where the objective reads that."""
    if not any("value" in term.parameters for term in goal.terms):
        return model
    head = shared_value_head(model)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(6)) / 4)
        head.bias.fill_(0.3)
    return PolicyWithValue(model, head)


def step_by(model, goal, what, settings=SETTINGS, **more):
    """The gradient (by plain descent with rate 1: what the weights lost), and what the update told."""
    model = with_value(model, goal)
    before = [p.detach().clone() for p in model.parameters()]
    told = gradient(model, torch.optim.SGD(model.parameters(), lr=1.0), what, goal, settings, step=0, **more)
    lost = [b - p.detach() for b, p in zip(before, model.parameters(), strict=True)]
    with torch.no_grad():
        for p, b in zip(model.parameters(), before, strict=True):
            p.copy_(b)
    return lost, told


def compare(found, expected, **tolerance):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


# Each term once more, for one token and in Python's words. A new row's new terms have to be added here.
ONE_TOKEN = {
    "policy_gradient": lambda s: -s["a"] * s["logp"],
    "dft": lambda s: -s["logp"].exp().item() * s["logp"] * s["a"],
    "ratio": lambda s: -s["rho"] * s["a"],
    "clipped": lambda s: -min(s["rho"] * s["a"], max(min(s["rho"], 1 + s["clip_high"]), 1 - s["clip_low"]) * s["a"]),
    "sequence_clipped": lambda s: -min(s["mean_rho"] * s["a"], max(min(s["mean_rho"], 1.0004), 0.9997) * s["a"]),
    "cispo": lambda s: -min(s["rho"].item(), 1.28) * s["a"] * s["logp"],
    "rec_one_side": lambda s: -s["a"] * s["logp"] * (s["rho"] <= 1.2 if s["a"] > 0 else s["rho"] >= 0.8),
    "rec_two_side": lambda s: -s["a"] * s["logp"] * s["rho"].item() * (0.8 <= s["rho"] <= 1.2),
    "rec_ring": lambda s: (
        -s["a"] * s["logp"] * (0.8 <= s["rho"] <= 1.2 or (s["rho"] <= 0.4 if s["a"] > 0 else s["rho"] >= 3))
    ),
    "topr": lambda s: -s["a"] * s["logp"] * (1 if s["a"] > 0 else min(s["whole_rho"].item(), 1)),
    "truncated_importance": lambda s: -s["a"] * s["logp"] * min(s["rho"].item(), 2),
    "squared_log_ratio": lambda s: s["rho"].log() ** 2,
    "nll_regularizer": lambda s: -s["logp"],
    "advantage_weighted_entropy": lambda s: -s["a"] * s["entropy"],
    "reference_kl": lambda s: s["rho"] * ((s["ref"] - s["logp"]).exp() - 1 - (s["ref"] - s["logp"])),
    "entropy_bonus": lambda s: -s["entropy"],
    "value_loss": lambda s: (
        max(
            (s["v"] - s["goal"]) ** 2,
            (s["v_old"] + max(min(s["v"] - s["v_old"], s["clip_value"]), -s["clip_value"]) - s["goal"]) ** 2,
        )
        / 2
    ),
}


def looped(model, goal, what):
    """The loss and its gradient from each row run alone through the model's own head, token by token."""
    whole = with_value(model, goal)
    parameters = list(whole.parameters())
    weigh = whole.value if whole is not model else torch.nn.Linear(16, 1).double()
    rows = [i for i in range(len(what.batch.mask)) if what.batch.mask[i].any()]
    counts = {i: int(what.batch.mask[i].sum()) for i in rows}
    total = torch.zeros((), dtype=torch.float64)
    for i in rows:
        prompt = what.sequences.prompts[int(what.sequences.group[i])]
        ids = torch.cat([prompt, what.sequences.tokens[i]])
        passed = model(input_ids=ids[None], output_hidden_states=True)
        logits, hidden = passed.logits[0] / SETTINGS.forward.temperature, passed.hidden_states[-1][0]
        own = [t for t in range(len(what.sequences.tokens[i])) if what.batch.mask[i, t]]
        moved = sum(
            logits[len(prompt) + t - 1].log_softmax(-1)[what.sequences.tokens[i, t]] - what.batch.behavior_logp[i, t]
            for t in own
        )
        for t in own:
            choices = logits[len(prompt) + t - 1].log_softmax(-1)
            logp = choices[what.sequences.tokens[i, t]]
            said = {
                "a": what.batch.advantage[i, t],
                "logp": logp,
                "rho": (logp - what.batch.behavior_logp[i, t]).exp(),
                "mean_rho": (moved / len(own)).exp(),
                "whole_rho": moved.exp(),
                "ref": what.batch.reference_logp[i, t],
                "entropy": -(choices.exp() * choices).sum(),
                "v": weigh.weight[0] @ hidden[len(prompt) + t - 1] + weigh.bias[0],
                "v_old": what.batch.behavior_value[i, t],
                "goal": what.batch.value_target[i, t],
            }
            weight = {
                "token": 1 / sum(counts.values()),
                "sequence": 1 / (len(rows) * counts[i]),
                "fixed_length": 1 / (len(rows) * SETTINGS.max_tokens),
            }[goal.reduction]
            weight = torch.tensor(weight, dtype=torch.float32).item()
            for term in goal.terms:
                total = total + weight * term.coefficient * ONE_TOKEN[term.function.__name__](said | term.options)
    return torch.autograd.grad(total, parameters), float(total.detach())


def test_every_term_of_tokens_has_its_loop():
    terms = {term.function.__name__ for name in OF_TOKENS for term in ALGORITHMS[name].terms}
    assert terms <= ONE_TOKEN.keys(), "add the term to ONE_TOKEN, in plain Python for one token"


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", DISTINCT)
def test_loss_and_gradient_are_a_loop_over_tokens(model, name, reduction):
    goal = goal_of(name, reduction)
    found, told = step_by(model, goal, experience())
    expected, loss = looped(model, goal, experience())
    assert max(g.abs().max() for g in expected) > 0.005
    compare(found, expected, **REORDERED)
    assert told["loss"] == pytest.approx(loss, rel=1e-5)  # told in float32
    norm = math.hypot(told["grad_norm"], told.get("value_grad_norm", 0.0))
    assert norm == pytest.approx(math.sqrt(sum(float(g.square().sum()) for g in expected)), rel=1e-5)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", DISTINCT)
def test_micro_batches_change_neither_loss_nor_gradient(model, name, reduction):
    goal = goal_of(name, reduction)
    expected, whole = step_by(model, goal, experience(), replace(SETTINGS, forward=cut_at(10_000)))
    for tokens in (1, 50):
        found, told = step_by(model, goal, experience(), replace(SETTINGS, forward=cut_at(tokens)))
        compare(found, expected, **REORDERED)
        assert told == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("name", DISTINCT)
def test_micro_batches_change_no_parameter_after_steps_of_adam(model, name):
    """Adam divides by the gradient's size, so that rounding of a gradient near 0 counts: 1e-6 of a step of 1e-3."""
    goal = goal_of(name, "token")
    model = with_value(model, goal)
    start, ends = [p.detach().clone() for p in model.parameters()], []
    for tokens in (20, 10_000):
        with torch.no_grad():
            for p, s in zip(model.parameters(), start, strict=True):
                p.copy_(s)
        adam = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-8)
        settings = replace(SETTINGS, forward=cut_at(tokens), max_grad_norm=0.5)
        gradient(model, adam, experience(), goal, settings, step=0, epochs=2, minibatches=2)
        ends.append([p.detach().clone() for p in model.parameters()])
    assert max((a - b).abs().max() for a, b in zip(ends[0], start, strict=True)) > 1e-4
    for end in ends[1:]:
        compare(end, ends[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", DISTINCT)
def test_the_order_of_rows_changes_nothing(model, name):
    what, order = experience(), torch.tensor([4, 6, 0, 2, 5, 1, 3])
    fields = {key: value[order] for key, value in vars(what.batch).items()}
    s = what.sequences
    shuffled = TokenExperience(
        Sequences(s.prompts, s.tokens[order], s.mask[order], s.group[order]), ValueBatch(**fields), {}
    )
    goal = goal_of(name, "sequence")
    compare(step_by(model, goal, shuffled)[0], step_by(model, goal, what)[0], **REORDERED)


@pytest.fixture
def rows_run(monkeypatch):
    """How many rows each forward pass had."""
    counts: list[int] = []
    run = update.compute_logprobs

    def counted(model, sequences, *rest):
        counts.append(len(sequences.tokens))
        return run(model, sequences, *rest)

    monkeypatch.setattr(update, "compute_logprobs", counted)
    return counts


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", DISTINCT)
def test_rows_without_advantage_are_skipped_for_the_same_gradient(model, name, reduction, rows_run):
    goal = bare(name, reduction)
    assert goal.sees_only_advantage
    found, told = step_by(model, goal, experience())
    assert sum(rows_run) == 5
    rows_run.clear()
    nothing = Term(lambda logp: 0 * logp)  # sees no advantage, so that every row has to be run
    every, all_told = step_by(model, Objective((*goal.terms, nothing), reduction), experience())
    assert sum(rows_run) == 7
    compare(found, every, **REORDERED)
    compare(found, looped(model, goal, experience())[0], **REORDERED)
    assert told["loss"] == pytest.approx(all_told["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("name", "penalty"),
    [(name, key) for name in DISTINCT for key in coefficients(name) if key != "advantage_entropy"],
)
def test_a_penalty_reaches_rows_without_advantage(model, name, penalty, rows_run):
    goal = goal_of(name, "token", **{penalty: 0.1})
    assert not goal.sees_only_advantage
    step_by(model, goal, experience())
    assert sum(rows_run) == 7


def without_advantage():
    what = experience()
    return replace(what, batch=replace(what.batch, advantage=torch.zeros_like(what.batch.advantage)))


@pytest.mark.parametrize("name", DISTINCT)
def test_equal_rewards_leave_every_bit_even_with_momentum_and_weight_decay(model, name, rows_run):
    goal = bare(name, "token")
    adam = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    gradient(model, adam, experience(), goal, SETTINGS, step=0)
    rows_run.clear()
    before = [p.detach().clone() for p in model.parameters()]
    told = gradient(model, adam, without_advantage(), goal, SETTINGS, step=1, epochs=2, minibatches=3)
    assert told == {} and not rows_run
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_masked_rows_count_for_nothing_and_are_not_run(model, rows_run):
    """A response whose reward is missing: neither in the gradient nor in its denominator."""
    what, kept = experience(), torch.tensor([0, 1, 2, 4, 5, 6])
    mask = what.batch.mask.clone()
    mask[3] = False
    masked = replace(what, batch=replace(what.batch, mask=mask))
    s = what.sequences
    fields = {key: value[kept] for key, value in vars(what.batch).items()}
    smaller = TokenExperience(
        Sequences(s.prompts, s.tokens[kept], s.mask[kept], s.group[kept]), ValueBatch(**fields), {}
    )
    for reduction in REDUCTIONS:
        goal = goal_of("grpo", reduction)
        rows_run.clear()
        found, _ = step_by(model, goal, masked)
        assert sum(rows_run) == 6
        compare(found, step_by(model, goal, smaller)[0], **REORDERED)


def test_what_is_masked_may_hold_anything(model):
    what = experience()
    hidden = ~what.batch.mask
    spoiled = {
        key: value if key == "mask" else value.masked_fill(hidden, torch.nan) for key, value in vars(what.batch).items()
    }
    goal = goal_of("grpo", "token")
    found, told = step_by(model, goal, replace(what, batch=ValueBatch(**spoiled)))
    compare(found, step_by(model, goal, what)[0], **REORDERED)
    assert all(map(math.isfinite, told.values()))


def test_minibatches_part_the_rows_anew_each_epoch_and_step_by_each(model):
    seen: list[torch.Tensor] = []
    steps = 0

    class Counting(torch.optim.SGD):
        def step(self, closure=None):
            nonlocal steps
            steps += 1

    def spy(logp, behavior_logp):
        seen.append(behavior_logp[:, 0].detach())
        return logp

    what = experience()
    settings = replace(SETTINGS, forward=cut_at(10_000))
    optimizer = Counting(model.parameters(), lr=0.0)
    gradient(model, optimizer, what, Objective((Term(spy),), "token"), settings, step=0, epochs=2, minibatches=3)
    every = sorted(what.batch.behavior_logp[:, 0].tolist())
    assert steps == len(seen) == 6
    first, second = seen[:3], seen[3:]
    for epoch in (first, second):
        assert sorted(torch.cat(epoch).tolist()) == every
    assert [sorted(p.tolist()) for p in first] != [sorted(p.tolist()) for p in second]


def test_minibatches_part_what_was_kept_evenly(model):
    """Of seven responses three are kept: three parts have one each, as if there had been no others."""
    what, kept, sizes = experience(), torch.tensor([0, 4, 5]), []
    mask = what.batch.mask & torch.isin(torch.arange(7), kept)[:, None]

    def spy(logp, behavior_logp):
        sizes.append(len(logp))
        return logp

    few = replace(what, batch=replace(what.batch, mask=mask))
    gradient(
        model, torch.optim.SGD(model.parameters(), lr=0.0), few, Objective((Term(spy),), "token"), SETTINGS, 0, 2, 3
    )
    assert sizes == [1] * 6


def test_the_gradient_is_clipped_to_its_limit_and_told_as_it_was(model):
    goal = goal_of("grpo", "token")
    free, told = step_by(model, goal, experience())
    size = told["grad_norm"]
    clipped, again = step_by(model, goal, experience(), replace(SETTINGS, max_grad_norm=size / 4))
    assert again["grad_norm"] == pytest.approx(size)
    compare([4 * g for g in clipped], free, rtol=1e-4, atol=1e-9)  # torch adds 1e-6 to the norm


def test_what_the_step_tells_of_itself(model):
    """Entropy, and the KL (k3) from the policy that sampled, are means over tokens of the policy before the step."""
    what, entropy, moved = experience(), [], []
    for i, prompt in enumerate(what.sequences.prompts[g] for g in what.sequences.group.tolist()):
        ids = torch.cat([prompt, what.sequences.tokens[i]])
        choices = (model(input_ids=ids[None]).logits[0] / SETTINGS.forward.temperature).log_softmax(-1).detach()
        for t in what.batch.mask[i].nonzero().flatten().tolist():
            at = choices[len(prompt) + t - 1]
            entropy.append(float(-(at.exp() * at).sum()))
            d = float(what.batch.behavior_logp[i, t] - at[what.sequences.tokens[i, t]])
            moved.append(math.exp(-d) - 1 + d)
    _, told = step_by(model, goal_of("grpo", "token"), what)
    assert told["entropy"] == pytest.approx(sum(entropy) / len(entropy), rel=1e-5)
    assert told["approx_kl"] == pytest.approx(sum(moved) / len(moved), rel=1e-5)
    names = ("clipped", "reference_kl", "entropy_bonus", "advantage_weighted_entropy")
    terms = [told[f"loss/{name}"] for name in names]
    assert told["loss"] == pytest.approx(sum(terms), rel=1e-5)


def test_a_gradient_that_is_not_finite_stops_the_run_before_it_moves_a_weight(model):
    what = experience()
    broken = what.batch.advantage.clone()
    broken[0] = math.inf
    spoiled = replace(what, batch=replace(what.batch, advantage=broken))
    before = [p.detach().clone() for p in model.parameters()]
    adam = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with pytest.raises(RuntimeError, match=r"the gradient's norm is (nan|inf)"):
        gradient(model, adam, spoiled, goal_of("grpo", "token"), SETTINGS, step=0)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not adam.state


@pytest.mark.parametrize("name", DISTINCT)
def test_every_trainable_parameter_gets_a_gradient_and_a_frozen_one_keeps_its_bits(model, name):
    frozen = model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    kept, goal = frozen.clone(), goal_of(name, "token")
    model = with_value(model, goal)
    adam = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    gradient(model, adam, experience(), goal, SETTINGS, step=0)
    assert frozen.grad is None and torch.equal(frozen, kept)
    silent = [key for key, p in model.named_parameters() if p is not frozen and not (p.grad != 0).any()]
    assert not silent


# A value function beside the policy


@pytest.mark.parametrize("trunk", ["shared", "own"])
def test_the_value_s_gradient_is_clipped_by_a_norm_of_its_own(model, trunk):
    """However far off the value is, the policy's step is as long as ever; without a clip, the two are as they were."""
    row, what = ALGORITHMS["ppo"], experience()
    goal = build_objective(row, resolve_options(row, {"value_coefficient": 1.0, "clip_value": 1e9}))
    far = replace(what, batch=replace(what.batch, value_target=what.batch.value_target + 1000))
    value = with_value(model, goal).value if trunk == "shared" else separate_value_model(model)
    whole, rate = PolicyWithValue(model, value), torch.optim.SGD
    before = [p.detach().clone() for p in whole.parameters()]
    settings = replace(SETTINGS, max_grad_norm=0.5)
    told = gradient(whole, rate(whole.parameters(), lr=1.0), far, goal, settings, step=0)
    lost = [float((b - p.detach()).square().sum()) for b, p in zip(before, whole.parameters(), strict=True)]
    count = len(list(model.parameters()))
    assert told["value_grad_norm"] > 10
    assert math.sqrt(sum(lost[:count])) == pytest.approx(min(0.5, told["grad_norm"]), rel=1e-4)
    assert math.sqrt(sum(lost[count:])) == pytest.approx(0.5, rel=1e-4)


def test_an_own_value_model_leaves_the_policy_s_gradient_as_it_is_without_a_value(model):
    goal, what = goal_of("ppo", "token", value_coefficient=1.0), experience()
    plain, _ = step_by(model, bare("ppo", "token"), what)
    whole = PolicyWithValue(model, separate_value_model(model))
    before = [p.detach().clone() for p in model.parameters()]
    gradient(whole, torch.optim.SGD(whole.parameters(), lr=1.0), what, goal, SETTINGS, step=0)
    compare([b - p.detach() for b, p in zip(before, model.parameters(), strict=True)], plain, **REORDERED)
    assert whole.value.score.weight.any()


@pytest.mark.parametrize("trunk", ["shared", "own"])
def test_while_the_policy_is_held_still_only_the_value_moves(model, trunk):
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    goal = goal_of("ppo", "token")
    value = with_value(model, goal).value if trunk == "shared" else separate_value_model(model)
    whole = PolicyWithValue(model, value)
    adam = torch.optim.AdamW(whole.parameters(), lr=1e-2, weight_decay=0.1)
    before = {key: p.detach().clone() for key, p in whole.named_parameters()}
    with frozen_parameters(model):
        told = gradient(whole, adam, experience(), goal, SETTINGS, step=0, epochs=2)
    moved = {key for key, p in whole.named_parameters() if not torch.equal(p, before[key])}
    assert moved == {key for key, _ in whole.named_parameters() if key.startswith("value.")}
    assert told["grad_norm"] == 0 < told["value_grad_norm"]
    trains = {key for key, p in model.named_parameters() if p.requires_grad}
    assert {key for key, _ in model.named_parameters()} - trains == {"model.layers.0.mlp.up_proj.weight"}, "as before"


# An end to a step that has gone far enough


def test_a_step_ends_before_the_part_whose_kl_is_over_the_limit(model):
    what, goal = experience(), goal_of("grpo", "token")
    on_policy = replace(what, batch=replace(what.batch, behavior_logp=behavior_of(model, what)))
    start = [p.detach().clone() for p in model.parameters()]

    def run(limit, epochs):
        with torch.no_grad():
            for p, s in zip(model.parameters(), start, strict=True):
                p.copy_(s)
        rate = torch.optim.SGD(model.parameters(), lr=0.02)
        return gradient(model, rate, on_policy, goal, SETTINGS, step=0, epochs=epochs, step_kl_limit=limit)

    kls = []
    for made in range(1, 5):
        free = run(0.0, made)
        assert "optimizer_steps" not in free
        kls.append(free["approx_kl"] * made - sum(kls))  # of the last pass; what is told is their mean
    assert kls[0] == pytest.approx(0, abs=1e-9) and 0 < kls[1] < kls[2] < kls[3]

    two = run(0.0, 2)
    after_two = [p.detach().clone() for p in model.parameters()]
    ended = run((kls[1] + kls[2]) / 2, 4)
    assert ended["optimizer_steps"] == 2 and ended["early_stop_kl"] == pytest.approx(kls[2], rel=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(after_two, model.parameters(), strict=True))
    assert {key: ended[key] for key in two} == two, "what is told is of the passes that were made"
    whole = run(kls[3] * 1.01, 4)
    assert whole["optimizer_steps"] == 4 and "early_stop_kl" not in whole


def test_a_step_that_is_over_the_limit_from_the_start_changes_nothing_and_says_so(model):
    before = [p.detach().clone() for p in model.parameters()]
    adam = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    told = gradient(model, adam, experience(), goal_of("grpo", "token"), SETTINGS, step=0, step_kl_limit=1e-3)
    assert (
        told == {"early_stop_kl": pytest.approx(told["early_stop_kl"]), "optimizer_steps": 0.0}
        and told["early_stop_kl"] > 1e-3
    )
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)) and not adam.state


def behavior_of(model, what):
    with torch.no_grad():
        return update.compute_logprobs(model, what.sequences, SETTINGS.forward.temperature).logp


@pytest.mark.parametrize(("build", "minibatches"), [(goal_of, 1), (goal_of, 3), (bare, 1)])
def test_clip_ratios_are_shares_of_all_tokens_of_the_step(model, build, minibatches):
    """Against the ratios of one forward pass, for a model that does not move. Rows that are not run count too."""
    what, goal = experience(), build("grpo", "token")
    clip = next(term.options for term in goal.terms if term.function.__name__ == "clipped")
    logp = update.compute_logprobs(model, what.sequences, SETTINGS.forward.temperature).logp.detach()
    batch = what.batch
    clipped = 0
    for i, t in batch.mask.nonzero().tolist():
        rho = math.exp(float(logp[i, t] - batch.behavior_logp[i, t]))
        advantage = float(batch.advantage[i, t])
        clipped += advantage > 0 and rho > 1 + clip["clip_high"]
        clipped += advantage < 0 and rho < 1 - clip["clip_low"]
    sgd = torch.optim.SGD(model.parameters(), lr=0.0)
    told = gradient(model, sgd, what, goal, SETTINGS, step=0, minibatches=minibatches)
    assert 0 < clipped < int(batch.mask.sum())
    assert told["clip_ratio"] == pytest.approx(clipped / int(batch.mask.sum()))


def test_a_loss_without_a_clip_logs_no_clip_ratio(model):
    assert "clip_ratio" not in step_by(model, goal_of("reinforce", "token"), experience())[1]
