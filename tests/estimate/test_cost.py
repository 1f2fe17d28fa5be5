"""The arithmetic of an estimate, by numbers small enough to be reckoned by hand."""

import pytest

from grape_rl.estimate import cost
from grape_rl.estimate.cost import Estimate, ExtraModels, Machine, ModelFootprint, Step, peak_memory, step_seconds
from grape_rl.estimate.flops import ModelShape, Work

SHAPE = ModelShape(trunk=100, trunk_trained=100, head=30, head_trained=30, layers=2, width=5)
FRAME = ModelFootprint(
    SHAPE, parameters=150, trunk=140, trained=150, largest=40, activations=800.0, cached=16.0, vocabulary=10
)
STEP = Step(learned=Work(20, 8, 60), microbatches=2, positions=12, chosen=6)


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """Constants that are easy to reckon with: only what they stand for is tested, not what they were measured as."""
    given = {
        "MATRIX_SHARE": 0.5, "DECODE_SHARE": 0.25, "TRAFFIC_FORWARD": 2.0, "TRAFFIC_BACKWARD": 3.0,
        "HEAD_TRAFFIC": 4.0, "DRAW_TRAFFIC": 5.0, "LAYER_OPERATIONS": 10, "OPTIMIZER_TRAFFIC": 40.0,
        "ADDED_TRAFFIC": 7.0,
        "HEAD_TILE": 50, "HEAD_COPIES": 3, "DRAW_BYTES": 7, "SLACK": 1.0,
    }  # fmt: skip
    for name, value in given.items():
        monkeypatch.setattr(cost, name, value)


def test_memory_of_an_update():
    found = peak_memory(FRAME, STEP, ExtraModels(), base=1000.0)
    assert found == {
        "libraries": 1000.0,
        "weights": 4 * 150,
        "gradients": 4 * 150,
        "optimizer": 8 * 150,
        "activations": 12 * 800 * 3 / 2 + 3 * 4 * 50 + 4 * 40,  # two layers, and one in work; 60 logits, 50 at once
    }
    small = peak_memory(FRAME, Step(Work(), 1, positions=1, chosen=2), ExtraModels(), 0.0)
    assert small["activations"] == 800 * 3 / 2 + 3 * 4 * 20 + 4 * 40


def test_layers_computed_again_keep_what_they_read():
    kept, again = (
        peak_memory(FRAME, STEP, ExtraModels(checkpointing=again), 0.0)["activations"] for again in (False, True)
    )
    assert kept - again == 12 * (800 - 4 * 5 * 2)  # positions, and 5 numbers that each of 2 layers reads


def test_memory_of_sampling_where_that_is_more():
    step = Step(Work(), 1, positions=1, chosen=0, rows=9, cached=200)
    found = peak_memory(FRAME, step, ExtraModels(), 0.0)
    assert found["sampling"] == 200 * 16 + 9 * 10 * 7
    assert "activations" not in found


def test_models_beside_the_policy():
    adapted = ModelFootprint(
        SHAPE, parameters=150, trunk=140, trained=20, largest=4, activations=800.0, cached=16.0, vocabulary=10
    )
    found = peak_memory(
        adapted, STEP, ExtraModels(references=2), 0.0
    )  # what is not trained is shared with the reference
    assert (found["weights"], found["gradients"], found["optimizer"]) == (4 * (150 + 2 * 20), 4 * 20, 8 * 20)
    found = peak_memory(FRAME, STEP, ExtraModels(references=1, trunks=1), 0.0)
    assert found["weights"] == 4 * (150 + 150 + 140)
    assert (found["gradients"], found["optimizer"]) == (4 * 290, 8 * 290)


def test_half_precision_copies_the_matrices(monkeypatch):
    whole, half = (peak_memory(FRAME, STEP, ExtraModels(half=half), 5.0) for half in (False, True))
    assert half["activations"] - whole["activations"] == 2 * 130
    assert {**half, "activations": 0} == {**whole, "activations": 0}
    monkeypatch.setattr(cost, "SLACK", 2.0)
    assert peak_memory(FRAME, STEP, ExtraModels(), 5.0)["libraries"] == 5.0
    assert peak_memory(FRAME, STEP, ExtraModels(), 5.0)["weights"] == 2 * whole["weights"]


def test_seconds_of_an_update_are_matrices_traffic_and_starts():
    forward = 2 * (20 * 100 + 8 * 30) + 4 * 2 * 5 * 60
    only = dict(matrix_rate=float("inf"), memory_rate=float("inf"), operation_seconds=0.0)
    still = Step(STEP.learned, 2, 12, 6, updates=0)
    products = Machine(**{**only, "matrix_rate": 1e3})
    head = 2 * 8 * 30  # its tiles are made again in backward
    assert step_seconds(FRAME, still, products) == {"update": (3 * forward + head) / 500}
    assert step_seconds(FRAME, still, products, checkpointing=True) == {"update": 4 * forward / 500}
    traffic = 20 * 800 * (2 + 3) + 8 * 10 * 4 * 4 * 2 + 2 * 150 * 7
    assert step_seconds(FRAME, still, Machine(**{**only, "memory_rate": 1e3})) == {"update": traffic / 1e3}
    assert step_seconds(FRAME, still, Machine(**{**only, "operation_seconds": 0.5})) == {
        "update": 2 * 2 * (2 * 10 * 0.5)
    }
    found = step_seconds(FRAME, STEP, Machine(**{**only, "memory_rate": 1e3}))
    assert found["update"] == pytest.approx((traffic + 150 * 40) / 1e3)


def test_seconds_of_what_needs_no_gradient():
    step = Step(Work(), 0, 0, 0, updates=0, no_grad=Work(20, 8, 60), no_grad_passes=3)
    forward = 2 * (20 * 100 + 8 * 30) + 4 * 2 * 5 * 60
    found = step_seconds(FRAME, step, Machine(1e3, 1e4, 0.5))
    assert found["reference"] == pytest.approx(forward / 500 + (20 * 800 * 2 + 8 * 10 * 4 * 4) / 1e4 + 3 * 10.0)
    assert found["update"] == 0


def test_seconds_of_sampling():
    step = Step(Work(), 0, 0, 0, updates=0, decoded=Work(20, 8, 60), decodes=4, rows=2)
    forward = 2 * (20 * 100 + 8 * 30) + 4 * 2 * 5 * 60
    traffic = 4 * 4 * 130 + 60 * 16 + 20 * 800 * 2 + 8 * 10 * 8 * 5  # the weights once a pass
    found = step_seconds(FRAME, step, Machine(1e3, 1e4, 0.5))
    assert found["sampling"] == pytest.approx(forward / 250 + traffic / 1e4 + 4 * 10.0)
    assert "reference" not in found


def test_an_estimate_in_words():
    told = Estimate(
        {"libraries": 5e8, "weights": 1e8, "gradients": 1e8, "optimizer": 2e8, "activations": 1.05e9, "crumbs": 1e6},
        {"sampling": 1.04, "update": 2.11, "crumbs": 0.001},
        Machine(3.9e11, 1.0, 1.0),
    )
    assert str(told) == (
        "about 2 GB at the peak (libraries 0.5, weights 0.1, gradients 0.1, optimizer 0.2, activations 1.1) and 3.2 s "
        "a step (sampling 1, update 2.1) at the 390 GFLOP/s measured here"
    )
    large = Estimate({"weights": 31e9}, {"update": 120.0}, Machine(3.9e11, 1.0, 1.0))
    assert "about 31 GB at" in str(large) and "and 120 s a step (update 120)" in str(large)
