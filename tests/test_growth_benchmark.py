"""The scaling benchmark: the measurements of its points, its table and its figure."""

from pathlib import Path

import pytest
import torch

import growth
from speed import growth_measure, growth_points
from speed.turns import GROWTH_MEASURE, run_side

WHERE = {"date": "1 May", "machine": "M", "cores": 2, "threads": 2, "torch": "2.13", "python": "3.12"}


@pytest.mark.skipif(not growth_measure.STATUS.is_file(), reason="memory is measured on Linux")
def test_memory_counts_from_the_reset():
    torch.ones(50_000_000)  # freed before the reset
    before = growth_measure.reset_peak()
    here = torch.ones(20_000_000)
    assert here.nbytes < growth_measure.process_memory("VmHWM") - before < here.nbytes + 30e6


@pytest.mark.skipif(not growth_measure.STATUS.is_file(), reason="memory is measured on Linux")
def test_the_memory_of_the_head_alone(tmp_path):
    # In a process of its own: in this one, memory that earlier tests freed is reused, and does not count.
    shape = {**growth_points.SHAPE, "hidden_size": 32, "vocab_size": 20_000}
    memory = run_side(GROWTH_MEASURE, {"shape": shape, "tokens": 512}, tmp_path)["memory"]
    assert 4 * 512 * 1000 < memory < 4 * 512 * 20_000 * 10


@pytest.mark.skipif(not growth_measure.STATUS.is_file(), reason="memory is measured on Linux")
def test_a_point_of_growth_is_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(growth_points, "SHAPE", {**growth_points.SHAPE, "hidden_size": 32, "num_hidden_layers": 2})
    point = {"prompt": 7, "group": 3, "completion": 4, "vocabulary": 96, "batch": 2}
    found = growth_measure.step_point(growth.step_spec(point, 2, tmp_path / "models", tmp_path))
    assert found.keys() == {"sampling", "update", "memory", "operations", "length"} and min(found.values()) > 0


def test_points_are_measured_once_and_the_base_for_all(tmp_path, monkeypatch, capsys):
    measured_points = []

    def run_side(script, spec, folder):
        if "data" in spec:
            assert len(Path(spec["data"]).read_text().splitlines()) == 5 * spec["per_step"], "each prompt once"
        measured_points.append((spec.get("tokens"), spec.get("prompt_tokens"), spec.get("per_step")))
        return {"memory": 1e6, "peak": 5} | ({} if "tokens" in spec else {"sampling": 1.0, "update": 2.0})

    monkeypatch.setattr(growth, "run_side", run_side)
    monkeypatch.setattr(growth_points, "SIZES", {"prompt": (8, 16), "batch": (4, 8), "head": (32,)})
    monkeypatch.setattr(growth_points, "BASE", growth_points.BASE | {"prompt": 16, "vocabulary": 96})
    arguments = ["run", "--turns", "2", "--folder", str(tmp_path), "--results", str(tmp_path / "out.jsonl")]
    growth.main(arguments)
    assert measured_points == [(None, 8, 4), (None, 16, 4), (None, 16, 8), (32, None, None)] * 2
    growth.main(arguments)
    assert len(measured_points) == 8, "recorded points are skipped"


def grown_record(name, size, turn, **measurements):
    return {"point": growth_points.point_at(name, size), "turn": turn, "where": WHERE, **measurements}


def test_the_page_has_a_table_with_exponents_and_a_figure(tmp_path):
    growth_page = pytest.importorskip("speed.growth_page", reason="the picture needs matplotlib")
    found = [
        grown_record(
            "batch", size, turn, sampling=0.5 + turn, update=0.25 * size, memory=1e6 * (10 + turn), operations=1e9
        )
        for size in growth_points.SIZES["batch"]
        for turn in (0, 1)
    ]
    found += [grown_record("head", size, 0, memory=7e6) for size in growth_points.SIZES["head"]]
    made = growth_page.curves(found)
    assert list(made) == ["prompt", "group", "completion", "vocabulary", "batch", "head"]
    assert made["prompt"]["sampling"] == {256: 0.5}, "the base is a point of every dimension"
    assert made["batch"]["memory"] == dict.fromkeys((1, 2, 4, 8, 16), 11e6), "the largest of the turns"
    lines = growth_page.table(made).splitlines()
    assert "| prompts a step | 16 | 0.500 | 4.000 | 11 | 1.0 |" in lines
    assert "| *exponent* |  | *0.00* | *1.00* | *0.00* | *0.00* |" in lines
    assert lines[-1] == "| *exponent* |  |  |  | *0.00* |  |"
    path = tmp_path / "growth.md"
    path.write_text("<!-- growth -->\nold\n<!-- end of growth -->\n")
    growth_page.report(found, path)
    assert "old" not in path.read_text() and "Measured: 1 May" in path.read_text()
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
    real = growth.HERE.parent / "docs" / "benchmarks" / "growth.md"
    assert "<!-- growth -->" in real.read_text(encoding="utf-8"), "the page has the comments"
