"""Conjugate gradient against a direct solver, Fisher-vector products against the enumerated matrix, and their step."""

import math

import pytest
import torch

from grape_rl.maths.exact import (
    enumerated,
    expected_reward_gradient,
    logprobs,
    probabilities,
    random_table,
    response_kl,
)
from grape_rl.maths.natural import conjugate_gradient, fisher_vector_product

WORLDS = [pytest.param(enumerated(4, 1), id="one token"), pytest.param(enumerated(3, 2, end=2), id="one or two")]


def positive_definite(n, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(n, n, generator=generator, dtype=dtype)
    return root @ root.T + torch.eye(n, dtype=dtype), torch.randn(n, generator=generator, dtype=dtype)


@pytest.mark.parametrize("n", [1, 3, 12])
def test_conjugate_gradient_against_a_direct_solver(n):
    a, b = positive_definite(n)
    found = conjugate_gradient(lambda x: a @ x, b, iterations=2 * n)
    torch.testing.assert_close(found, torch.linalg.solve(a, b), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_few_iterations_give_the_optimum_of_the_krylov_space(iterations):
    """The least of ½xᵀAx − bᵀx over combinations of b, Ab, …, found by solving in a basis of them."""
    a, b = positive_definite(8)
    basis = [b / b.norm()]
    for _ in range(iterations - 1):
        image = a @ basis[-1]
        for q in basis * 2:  # twice: once leaves rounding behind
            image = image - (q @ image) * q
        basis.append(image / image.norm())
    q = torch.stack(basis, 1)
    best = q @ torch.linalg.solve(q.T @ a @ q, q.T @ b)
    torch.testing.assert_close(conjugate_gradient(lambda x: a @ x, b, iterations), best, rtol=1e-9, atol=1e-10)


def calls_until(tolerance, a, b):
    calls = []
    x = conjugate_gradient(lambda x: (calls.append(1), a @ x)[1], b, iterations=50, tolerance=tolerance)
    return len(calls), ((b - a @ x).norm() / b.norm()).item()


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_it_stops_at_the_tolerance_for_any_scale_of_b(scale):
    a, b = positive_definite(12)
    few, rough = calls_until(1e-1, a, b * scale)
    more, fine = calls_until(1e-6, a, b * scale)
    assert few < more < 50
    assert 1e-6 < rough <= 1e-1
    assert fine <= 1e-6


def test_in_float32_it_stops_at_rounding_also_for_a_singular_matrix():
    """The noise left in the residual has a part that the matrix sends to 0; a step along it would have no bound."""
    p = torch.tensor([0.5, 0.3, 0.15, 0.05])
    fisher = p.diag() - p[:, None] * p
    b = fisher @ torch.tensor([1.0, -2.0, 0.5, 3.0])
    found = conjugate_gradient(lambda x: fisher @ x, b, iterations=50)
    expected = torch.tensor([1.0, -2.0, 0.5, 3.0]) - 2.5 / 4
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_solution_for_b_0_is_0():
    assert not conjugate_gradient(lambda x: 1 / 0 * x, torch.zeros(3)).any()


@pytest.mark.parametrize(
    "apply", [lambda x: -x, torch.zeros_like, lambda x: x * torch.nan, lambda x: x * torch.inf], ids=range(4)
)
def test_a_non_positive_matrix_raises(apply):
    with pytest.raises(ValueError, match=r"curvature is .* in iteration 0"):
        conjugate_gradient(apply, torch.tensor([1.0, 2.0]))


def test_later_non_finite_numbers_raise():
    calls = []

    def apply(x):
        calls.append(1)
        return torch.tensor([1.0, 2.0]) * x * (1.0 if len(calls) == 1 else math.nan)

    with pytest.raises(ValueError, match="curvature is nan in iteration 1"):
        conjugate_gradient(apply, torch.tensor([1.0, 2.0]))


def test_it_stops_before_a_direction_without_positive_curvature():
    a = torch.tensor([2.0, -1.0], dtype=torch.float64)
    b = torch.tensor([1.0, 0.5], dtype=torch.float64)
    first = conjugate_gradient(lambda x: a * x, b, iterations=1)
    assert torch.equal(conjugate_gradient(lambda x: a * x, b, iterations=10), first)
    assert b @ first > 0


# Fisher


def fisher_matrix(world, table):
    """Σ p ∇log p ∇log pᵀ over all responses."""
    p, logp = probabilities(world, table).tolist(), logprobs(world, table).sum(1)
    total = torch.zeros(table.numel(), table.numel(), dtype=torch.float64)
    for each, value in zip(p, logp, strict=True):
        score = torch.autograd.grad(value, table, retain_graph=True)[0].flatten()
        total += each * score[:, None] * score
    return total


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_products_against_the_enumerated_fisher_matrix(world, damping):
    table = random_table(world, 0)
    kl, matrix = response_kl(world, table.detach(), table), fisher_matrix(world, table)
    for row in torch.eye(table.numel(), dtype=torch.float64):  # the same graph serves all of them
        found = fisher_vector_product(kl, [table], row, damping)
        torch.testing.assert_close(found, matrix @ row + damping * row, rtol=1e-10, atol=1e-12)
        assert not found.requires_grad


def test_it_stops_before_a_direction_of_no_curvature_at_all():
    """From b the second direction is exactly along the axis that the matrix sends to 0."""
    found = conjugate_gradient(lambda x: torch.tensor([1.0, 0.0]) * x, torch.tensor([1.0, 0.5]))
    assert found.tolist() == [1.25, 0.625], "the first iteration's"


def test_the_default_is_ten_iterations():
    a, b = positive_definite(30)
    calls = []
    conjugate_gradient(lambda x: (calls.append(1), a @ x)[1], b)
    assert len(calls) == 10


def test_the_vector_is_a_constant_even_if_it_depends_on_the_parameters():
    """g itself, say: else the derivative of v by the parameters would be added."""
    x = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    kl = (x**4).sum() / 12  # H = diag(x²)
    (slope,) = torch.autograd.grad(kl, x, create_graph=True)
    found = fisher_vector_product(kl, [x], slope)
    torch.testing.assert_close(found, (x**2 * x**3 / 3).detach())


def test_parameters_are_concatenated_in_order_and_unused_ones_give_zero():
    world = enumerated(3, 1)
    left, right = random_table(world, 0), random_table(world, 1)
    idle = torch.ones(2, dtype=torch.float64, requires_grad=True)
    table = left + 2 * right
    kl = response_kl(world, table.detach(), table)
    matrix = fisher_matrix(world, random_table(world, 0).detach().add(2 * right.detach()).requires_grad_())
    vector = torch.arange(8, dtype=torch.float64)
    along = matrix @ (vector[:3] + 2 * vector[5:])
    expected = torch.cat([along, torch.zeros(2, dtype=torch.float64), 2 * along])
    torch.testing.assert_close(fisher_vector_product(kl, [left, idle, right], vector), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("size", [2, 4])
def test_a_vector_of_another_size_raises(size):
    table = random_table(enumerated(3, 1), 0)
    kl = response_kl(enumerated(3, 1), table.detach(), table)
    with pytest.raises(ValueError, match=f"vector has {size} entries; the parameters have 3"):
        fisher_vector_product(kl, [table], torch.zeros(size, dtype=torch.float64))


def natural(world, table, reward):
    gradient = expected_reward_gradient(world, table, reward).flatten()
    kl = response_kl(world, table.detach(), table)
    direction = conjugate_gradient(lambda v: fisher_vector_product(kl, [table], v), gradient, iterations=20)
    return gradient, direction


def test_for_single_tokens_the_natural_gradient_is_the_reward():
    """(diag p − p pᵀ) x = p (R − J) is solved by x = R less any constant; conjugate gradients find that of mean 0."""
    world, reward = enumerated(4, 1), torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    _, direction = natural(world, random_table(world, 0), reward)
    torch.testing.assert_close(direction, reward - reward.mean(), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("world", WORLDS)
def test_the_trust_region_step_has_the_kl_of_its_bound(world):
    """Of length √(2δ / gᵀF⁻¹g): its KL is δ up to the third order, so their ratio tends to 1 like √δ."""
    table = random_table(world, 0)
    gradient, direction = natural(world, table, (torch.arange(len(world.tokens)) * 1.7).cos().double())
    off = []
    for delta in (1e-4, 1e-6):
        step = (2 * delta / (gradient @ direction)).sqrt() * direction
        kl = response_kl(world, table.detach(), table.detach() + step.reshape(table.shape))
        off.append(abs(kl.item() / delta - 1))
    assert off[0] < 0.05
    assert off[1] < off[0] / 5
