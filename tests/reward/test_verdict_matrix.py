"""The verdicts of a category as matrices: where a response does not have an item there is nothing, gate or none."""

import pytest
import torch

from grape_rl.reward.item import Item
from grape_rl.reward.verdict_matrix import apply_gates, build_matrix
from grape_rl.types import Verdict


def item(name, weight=1.0, gate=False):
    check = {"type": "length", "max_tokens": 5}
    return Item.model_validate({"id": name, "weight": weight, "gate": gate, "check": check})


@pytest.mark.parametrize("gate", ["shared", "own"])
def test_a_closed_gate_closes_the_items_of_its_own_response_only(gate):
    shared = [item("a", gate=gate == "shared")]
    own = [[item("row/b", 2.0, gate=gate == "own"), item("row/c", -1.0)], [item("row/d", 3.0)]]
    items = [[*shared, *own[0]], [*shared, *own[0]], [*shared, *own[1]]]
    shut = {"shared": "a", "own": "row/b"}[gate]
    verdicts = [[Verdict(i.id, 0.0 if i.id == shut and n != 1 else 0.5) for i in of] for n, of in enumerate(items)]
    group = torch.tensor([0, 0, 1])
    columns = build_matrix(shared, items, verdicts, group)
    has = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0], [1, 0, 0, 1]], dtype=torch.bool)
    assert torch.equal(columns.weight, torch.tensor([1.0, 2, -1, 3], dtype=torch.float64) * has)
    assert torch.equal(columns.gate, torch.tensor([[i.id == shut for i in (*shared, *own[0], *own[1])]]) & has)
    score, confidence = apply_gates(columns, group)
    assert torch.equal(score.isnan(), ~has) and torch.equal(confidence.isnan(), ~has)
    last = [0, 0] if gate == "shared" else [0.5, 0.5]
    assert score[has].tolist() == [0, 0, 0.5, 0.5, 0.5, 0.5, *last]
