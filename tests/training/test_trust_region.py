"""TRPO's step against enumeration: its Fisher matrix, its natural gradient, and what it promises of KL and surrogate.

In float64 but for the weights of tokens, which are float32 in the update, and rounded so here.
"""

import copy
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from torch import nn

import grape_rl
from grape_rl import ALGORITHMS
from grape_rl.maths.reduction import token_weight
from grape_rl.methods import build_objective, resolve_options
from grape_rl.model.forward import ForwardContext
from grape_rl.rollout.experience import TokenExperience
from grape_rl.training import trust_region as update
from grape_rl.training.objective import Objective, Term
from grape_rl.training.trust_region import fisher_product, trust_region
from grape_rl.training.update import UpdateSettings
from grape_rl.types import Sequences, TokenBatch
from precise import doubled
from small_runs import lines, settings, weights

SETTINGS = UpdateSettings(ForwardContext(90, temperature=0.7), max_tokens=9, max_grad_norm=1e-9, seed=3)


def cut_at(tokens: int) -> ForwardContext:
    """SETTINGS' forward context with micro-batches of ``tokens`` positions."""
    return replace(SETTINGS.forward, tokens_per_microbatch=tokens)


"""A limit on the gradient's norm that would stop everything, if TRPO had one."""

SHAPE = dict(vocab_size=17, pad_token_id=0, bos_token_id=1, eos_token_id=2)
LLAMA = dict(SHAPE, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=4)
LLAMA |= dict(num_key_value_heads=2, max_position_embeddings=32)
MODELS = {
    "llama, grouped queries": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA, tie_word_embeddings=True)),
    "mistral, window 4": lambda: hf.MistralForCausalLM(hf.MistralConfig(**LLAMA, sliding_window=4)),
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**SHAPE, n_embd=8, n_layer=2, n_head=2, n_positions=32)),
}


def built(name):
    """The model in float64, with random weights large enough for its choices to be far from uniform."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = doubled(MODELS[name]())
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.mul_(20.0)
    return model.eval()


class Itself(nn.Module):
    """A trunk whose hidden state at a token is that token alone."""

    def __init__(self, vocabulary):
        super().__init__()
        self.size = vocabulary
        self.config = SimpleNamespace(_attn_implementation_internal=None)

    def forward(self, input_ids, **_):
        return SimpleNamespace(last_hidden_state=torch.eye(self.size, dtype=torch.float64)[input_ids])


class Bigrams(nn.Module):
    """A language model that is a table: the logits of a token are the row of the one before it."""

    def __init__(self, vocabulary):
        super().__init__()
        self.head = nn.Linear(vocabulary, vocabulary, bias=False, dtype=torch.float64)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(1)
            self.head.weight.copy_(torch.randn(vocabulary, vocabulary, generator=generator, dtype=torch.float64))
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace())
        self.base_model = Itself(vocabulary)

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids):
        return SimpleNamespace(logits=self.head(self.base_model(input_ids).last_hidden_state))


def choices(model, s, row):
    """The log-probabilities of all choices at each token of one row that the policy wrote, that row read alone."""
    prompt = s.prompts[int(s.group[row])]
    ids = torch.cat([prompt, s.tokens[row]])
    logits = model(input_ids=ids[None]).logits[0, len(prompt) - 1 : -1] / SETTINGS.forward.temperature
    return logits[s.mask[row]].log_softmax(-1)


def experience(model, vocabulary=17, apart=False):
    """Seven responses to three prompts, on-policy: two advantages of 0, one missing (row 3), a gap in row 2."""
    generator = torch.Generator().manual_seed(5)
    draw = lambda *shape: torch.randint(3, vocabulary, shape, generator=generator)  # noqa: E731
    group = torch.arange(7) if apart else torch.tensor([0, 0, 1, 1, 1, 2, 2])
    mask = torch.arange(6) < torch.tensor([4, 1, 6, 3, 2, 5, 6])[:, None]
    mask[2, 1:3] = False
    prompts = tuple(draw(n) for n in ((5, 2, 8, 4, 1, 3, 6) if apart else (5, 2, 8)))
    sequences = Sequences(prompts, draw(7, 6), mask, group)
    behavior = torch.zeros(7, 6, dtype=torch.float64)
    for row in range(7):
        with torch.no_grad():
            chosen = sequences.tokens[row][mask[row]]
            at = choices(model, sequences, row)
            behavior[row, mask[row]] = at.gather(1, chosen[:, None]).squeeze(1).double()
    usable = mask.clone()
    usable[3] = False
    advantage = torch.tensor([1.0, -0.5, 0.0, 9.0, -1.5, 0.0, 0.7], dtype=torch.float64)[:, None].expand(7, 6)
    return TokenExperience(sequences, TokenBatch(usable, behavior, behavior, advantage), {})


def goal_of(**given):
    row = ALGORITHMS["trpo"]
    return build_objective(row, resolve_options(row, given))


def trainable(model):
    return [p for p in model.parameters() if p.requires_grad]


def flat(tensors):
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def stepped(model, what, goal=None, settings=SETTINGS, **options):
    """What the update told, its warnings, and how far it moved the weights."""
    warnings = []
    old = flat(trainable(model))
    told = trust_region(model, what, goal or goal_of(), settings, lambda *w: warnings.append(w), **options)
    return told, warnings, flat(trainable(model)) - old


def enumerated_fisher(model, what):
    """E[∇logp ∇logpᵀ]: over all tokens that the policy wrote, and at each over the whole vocabulary, one by one."""
    parameters = trainable(model)
    total = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
    total = total[:, None] * total
    count = int(what.sequences.mask.sum())
    for row in range(len(what.sequences.tokens)):
        for at in choices(model, what.sequences, row):
            for logp in at:
                grad = torch.autograd.grad(logp, parameters, retain_graph=True, materialize_grads=True)
                score = flat(grad)
                total.addr_(score, score, alpha=logp.exp().item() / count)
    return total


def surrogate(model, what, reduction="token"):
    """Σ w ρ A over the tokens of usable responses, row by row."""
    weight = token_weight(what.batch.mask, reduction, SETTINGS.max_tokens).double()
    total = torch.zeros((), dtype=torch.float64)
    for row in range(len(what.sequences.tokens)):
        mask = what.sequences.mask[row]
        logp = choices(model, what.sequences, row).gather(1, what.sequences.tokens[row][mask][:, None]).squeeze(1)
        rho = (logp - what.batch.behavior_logp[row, mask]).exp()
        total = total + (weight[row, mask] * rho * what.batch.advantage[row, mask]).sum()
    return total


def mean_kl(before, after, what):
    """KL(before‖after), the mean over every token that the policy wrote: a missing reward is no license."""
    kls = []
    for row in range(len(what.sequences.tokens)):
        for p, q in zip(choices(before, what.sequences, row), choices(after, what.sequences, row), strict=True):
            kls.append(sum(math.exp(a) * (a - b) for a, b in zip(p.tolist(), q.tolist(), strict=True)))
    return sum(kls) / len(kls)


# The Fisher matrix


SMALL = ["model.layers.0.self_attn.k_proj", "norm", "1.attn.c_attn", "ln_"]


def few(model):
    """Only some of the parameters to be trained, so that their Fisher matrix can be written out."""
    for name, p in model.named_parameters():
        p.requires_grad_(any(part in name for part in SMALL))
    return model


@pytest.mark.parametrize("apart", [False, True], ids=["shared prompts", "own prompts"])
@pytest.mark.parametrize("name", MODELS)
def test_products_are_those_of_the_enumerated_fisher_matrix(name, apart):
    model = few(built(name))
    what = experience(model, apart=apart)
    matrix = enumerated_fisher(model, what)
    generator = torch.Generator().manual_seed(2)
    for tokens in (1, 90, 10_000):
        product = fisher_product(model, what.sequences, replace(SETTINGS, forward=cut_at(tokens)), trainable(model))
        vector = torch.randn(len(matrix), generator=generator, dtype=torch.float64)
        expected = matrix @ vector
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(product(vector), expected, rtol=1e-9, atol=1e-11)


# The step


def natural_by_hand(model, what):
    """On a table F is one block a row s, d_s (diag p − p pᵀ)/T²: its inverse on g_s = p u is T²/d_s (u − mean u)."""
    table, temperature = model.head.weight.detach().T, SETTINGS.forward.temperature
    (gradient,) = torch.autograd.grad(surrogate(model, what), model.head.weight)
    gradient = gradient.T
    visits = torch.zeros(len(table), dtype=torch.float64)
    for row in range(7):
        prompt = what.sequences.prompts[int(what.sequences.group[row])]
        ids = torch.cat([prompt, what.sequences.tokens[row]])
        for t in what.sequences.mask[row].nonzero().flatten().tolist():
            visits[ids[len(prompt) + t - 1]] += 1 / int(what.sequences.mask.sum())
    p = (table / temperature).softmax(-1)
    u = gradient / p
    direction = torch.where(visits[:, None] > 0, temperature**2 * (u - u.mean(1, keepdim=True)) / visits[:, None], 0.0)
    return gradient.T.reshape(-1), direction.T.reshape(-1)


@pytest.mark.parametrize("delta", [1e-3, 1e-6])
@pytest.mark.parametrize("reduction", ["token", "fixed_length"])
def test_the_step_is_the_natural_gradient_in_closed_form(delta, reduction):
    """√(2δ / gᵀF⁻¹g) F⁻¹g; the gradient's length is of no account, and so neither is what it is a mean over."""
    model = Bigrams(6)
    what = experience(model, 6)
    gradient, direction = natural_by_hand(model, what)
    expected = (2 * delta / (gradient @ direction)).sqrt() * direction
    goal = goal_of(reduction=reduction)
    told, warnings, moved = stepped(model, what, goal, delta=delta, damping=0.0, cg_iterations=36, backtracks=30)
    assert told["step_accepted"] == 1 and not warnings
    torch.testing.assert_close(moved, 0.8 ** told["backtracks"] * expected, rtol=1e-6, atol=1e-9)
    assert told["approx_kl"] == pytest.approx(delta * 0.64 ** told["backtracks"], rel=0.05)
    assert told["cg_residual"] < 1e-8


@pytest.mark.parametrize("name", ["llama, grouped queries", "gpt2"])
def test_the_damped_step_is_a_direct_solver_s_and_as_long_as_the_undamped_matrix_says(name):
    model = few(built(name))
    what = experience(model)
    matrix = enumerated_fisher(model, what)
    gradient = flat(torch.autograd.grad(surrogate(model, what), trainable(model)))
    direction = torch.linalg.solve(matrix + 0.05 * torch.eye(len(matrix), dtype=torch.float64), gradient)
    delta = 1e-6
    expected = (2 * delta / (direction @ matrix @ direction)).sqrt() * direction
    told, _, moved = stepped(model, what, delta=delta, damping=0.05, cg_iterations=60)
    assert told["step_accepted"] == 1
    torch.testing.assert_close(moved, 0.8 ** told["backtracks"] * expected, rtol=1e-4, atol=1e-8)
    assert told["grad_norm"] == pytest.approx(float(gradient.norm()), rel=1e-6)


def test_the_size_of_rewards_changes_no_step():
    model = built("gpt2")
    what = experience(model)
    larger = replace(what, batch=replace(what.batch, advantage=1000 * what.batch.advantage))
    _, _, one = stepped(copy.deepcopy(model), what)
    _, _, other = stepped(copy.deepcopy(model), larger)
    assert one.abs().max() > 1e-4
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


# What it promises


@pytest.mark.parametrize("delta", [1e-3, 1.0])
@pytest.mark.parametrize("name", MODELS)
def test_after_each_step_the_kl_is_within_delta_and_the_surrogate_better(name, delta):
    """Both recomputed row by row; several steps on the same responses, so that all but the first are off-policy."""
    model = built(name)
    what = experience(model)
    taken = 0
    for _ in range(2):
        before = copy.deepcopy(model)
        told, warnings, moved = stepped(model, what, delta=delta, cg_iterations=4)
        was, now = surrogate(before, what).item(), surrogate(model, what).item()
        assert told["loss"] == pytest.approx(-was, abs=1e-9)
        assert told["loss_after"] == pytest.approx(-now, abs=1e-9)
        assert told["approx_kl"] == pytest.approx(mean_kl(before, model, what), rel=1e-6, abs=1e-12)
        own = [-(at.exp() * at).sum().item() for row in range(7) for at in choices(before, what.sequences, row)]
        assert told["entropy"] == pytest.approx(sum(own) / len(own), rel=1e-6)
        assert all(p.grad is None for p in model.parameters())
        if told["step_accepted"]:
            assert 0 < told["approx_kl"] <= delta and now > was and moved.any() and not warnings
            taken += 1
        else:
            assert not moved.any() and len(warnings) == 1
    assert taken


def test_a_huge_delta_is_backtracked():
    """The quadratic model of the KL holds nearby only: where it does not, the first step tried is too long."""
    model = built("llama, grouped queries")
    what, before = experience(model), copy.deepcopy(model)
    told, warnings, moved = stepped(model, what, delta=1.0, backtracks=40)
    assert told["step_accepted"] == 1 and not warnings
    assert told["backtracks"] >= 1
    # The one before the step taken was refused: longer by 1/0.8, it breaks one of the two promises.
    longer = copy.deepcopy(before)
    with torch.no_grad():
        for p, q, each in zip(longer.parameters(), before.parameters(), split(moved, longer), strict=True):
            p.copy_(q + each / 0.8)
    assert mean_kl(before, longer, what) > 1.0 or surrogate(longer, what) <= surrogate(before, what)


def split(vector, model):
    parts = vector.split([p.numel() for p in model.parameters()])
    return [part.view_as(p) for part, p in zip(parts, model.parameters(), strict=True)]


def bits(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_a_step_whose_kl_is_always_too_large_is_undone():
    model = built("llama, grouped queries")
    what, before = experience(model), bits(model)
    told, warnings, _ = stepped(model, what, delta=1.0, backtracks=0)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert [key for key, _ in warnings] == ["rejected_kl"]
    assert "after 0 backtracks the KL is" in warnings[0][1] and "delta 1" in warnings[0][1]
    assert (told["step_accepted"], told["approx_kl"], told["loss_after"]) == (0, 0, told["loss"])


def test_a_step_out_of_all_bounds_is_undone():
    model = built("gpt2")
    what, before = experience(model), bits(model)
    told, warnings, _ = stepped(model, what, delta=1e300, backtracks=2)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert [key for key, _ in warnings] == ["rejected_kl"] and told["backtracks"] == 2
    assert all(map(math.isfinite, told.values()))


def test_a_step_that_makes_the_surrogate_worse_is_undone():
    """A term whose gradient points the wrong way: within the KL every step is for the worse."""

    def misled(logp, advantage):
        return -advantage * (2 * logp.detach() - logp)

    model = built("gpt2")
    what, before = experience(model), bits(model)
    told, warnings, _ = stepped(model, what, Objective((Term(misled),), "token"), delta=1e-4, backtracks=3)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert [key for key, _ in warnings] == ["rejected_surrogate"]
    assert "after 3 backtracks the loss is no lower" in warnings[0][1]
    assert (told["step_accepted"], told["backtracks"], told["approx_kl"]) == (0, 3, 0)


def test_equal_rewards_move_nothing_and_are_told():
    model = built("gpt2")
    what, before = experience(model), bits(model)
    nothing = replace(what, batch=replace(what.batch, advantage=torch.zeros(7, 6, dtype=torch.float64)))
    told, warnings, _ = stepped(model, nothing)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert warnings == [("no_gradient", "the surrogate's gradient is 0: the step changes nothing")]
    assert told["step_accepted"] == told["approx_kl"] == told["grad_norm"] == 0


def test_a_gradient_that_is_not_finite_stops_the_run_before_it_moves_a_weight():
    model = built("gpt2")
    what, before = experience(model), bits(model)
    broken = what.batch.advantage.clone()
    broken[0] = math.inf
    with pytest.raises(RuntimeError, match=r"the gradient's norm is (nan|inf)"):
        stepped(model, replace(what, batch=replace(what.batch, advantage=broken)))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_the_kl_counts_all_that_the_policy_wrote():
    """Were tokens without an advantage left out, more of the trust region would be used up on the others."""
    model = built("gpt2")
    what = experience(model)
    s, kept = what.sequences, torch.tensor([0, 1, 4, 6])
    fields = {key: value[kept] for key, value in vars(what.batch).items()}
    fewer = TokenExperience(Sequences(s.prompts, s.tokens[kept], s.mask[kept], s.group[kept]), TokenBatch(**fields), {})
    _, _, all_rows = stepped(copy.deepcopy(model), what)
    _, _, some_rows = stepped(copy.deepcopy(model), fewer)
    assert not torch.allclose(all_rows, some_rows, rtol=0.1)


# What may not change it


@pytest.mark.parametrize("name", MODELS)
def test_micro_batches_change_nothing(name):
    """Conjugate gradients enlarge a rounding of 1e-16 by the matrix's condition: 1e-8 is left."""
    model = built(name)
    what = experience(model)
    goal = goal_of(kl=0.1, entropy=0.05)
    ends = []
    for tokens in (10_000, 90, 1):
        settings = replace(SETTINGS, forward=cut_at(tokens))
        ends.append(stepped(copy.deepcopy(model), what, goal, settings, cg_iterations=4))
    assert ends[0][2].abs().max() > 1e-4
    for told, _, moved in ends[1:]:
        torch.testing.assert_close(moved, ends[0][2], rtol=1e-6, atol=1e-8)
        assert told == pytest.approx(ends[0][0], rel=1e-5, abs=1e-8)


class Adapted(nn.Module):
    """A linear layer with a low-rank addition that starts at 0, as LoRA's."""

    def __init__(self, layer, rank=2):
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        self.layer = layer
        self.down = nn.Parameter(torch.randn(rank, layer.in_features, generator=generator, dtype=torch.float64))
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank, dtype=torch.float64))

    def forward(self, x):
        return self.layer(x) + x @ self.down.T @ self.up.T


def test_only_an_adapter_moves_and_keeps_the_promises():
    model = built("llama, grouped queries").requires_grad_(False)
    model.model.layers[0].self_attn.q_proj = Adapted(model.model.layers[0].self_attn.q_proj)
    what = experience(model)
    for _ in range(2):  # at first the addition is 0, whatever ``down`` is, and F is 0 there
        before = copy.deepcopy(model)
        told, _, _ = stepped(model, what, delta=1e-3)
        assert told["step_accepted"] == 1
        moved = [n for (n, p), q in zip(model.named_parameters(), before.parameters(), strict=True) if (p != q).any()]
        assert {n.rpartition(".")[0] for n in moved} == {"model.layers.0.self_attn.q_proj"}
        assert told["approx_kl"] == pytest.approx(mean_kl(before, model, what), rel=1e-6)
        assert told["approx_kl"] <= 1e-3 and surrogate(model, what) > surrogate(before, what)
    down, was = (m.model.layers[0].self_attn.q_proj.down for m in (model, before))
    assert (down - was).abs().max() > 1e-6


def test_autocast_around_the_update_changes_no_bit():
    model = built("gpt2").float()
    what = experience(model)
    other = copy.deepcopy(model)
    _, _, plain = stepped(model, what)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        _, _, inside = stepped(other, what)
    assert plain.abs().max() > 1e-4 and torch.equal(plain, inside)


# Runs


def test_a_run_keeps_within_its_kl_and_goes_on_to_the_same_bits(tmp_path):
    options = {"delta": 0.02, "baseline": "leave_one_out", "cg_iterations": 2}
    wanted = settings(tmp_path, "trpo") | {"options": options, "group_size": 2}
    straight = grape_rl.train({**wanted, "steps": 4, "output": str(tmp_path / "straight")})
    half = grape_rl.train({**wanted, "steps": 2})
    whole = grape_rl.train({**wanted, "steps": 4}, resume=True)
    assert half.folder == whole.folder
    one, two = weights(straight.model), weights(whole.model)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert sum(told["step_accepted"] for told in straight.metrics) >= 2
    assert all(told["approx_kl"] <= 0.02 for told in straight.metrics)


def test_a_run_says_which_steps_it_undid(tmp_path, monkeypatch):
    honest = update.evaluate_step
    monkeypatch.setattr(update, "evaluate_step", lambda *given: replace(honest(*given), kl=0.5))
    wanted = settings(tmp_path, "trpo") | {
        "options": {"backtracks": 1, "cg_iterations": 1},
        "checkpoint_every": 1,
        "group_size": 2,
    }
    run = grape_rl.train(wanted)
    assert [told["step_accepted"] for told in run.metrics] == [0, 0]
    told = [(w["key"], w["message"]) for w in lines(run.folder / "warnings.jsonl") if w["key"] != "all_truncated"]
    assert told == [("rejected_kl", "no step: after 1 backtracks the KL is 0.5, and delta 0.01")] * 2
    one, two = (weights(run.folder / "checkpoints" / f"step-{n}") for n in (1, 2))
    assert all(torch.equal(one[key], two[key]) for key in one)
