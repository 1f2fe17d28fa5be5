"""The benchmark of growth: what its points measure, and what is made of them."""

from pathlib import Path

import pytest
import torch

import growth
from speed import grown

WHERE = {"date": "1 May", "machine": "M", "cores": 2, "threads": 2, "torch": "2.13", "python": "3.12"}


@pytest.mark.skipif(not grown.STATUS.is_file(), reason="memory is measured on Linux")
def test_memory_is_what_came_after():
    torch.ones(50_000_000)  # given back before
    before = grown.from_here()
    here = torch.ones(20_000_000)
    assert here.nbytes < grown.held("VmHWM") - before < here.nbytes + 30e6


@pytest.mark.skipif(not grown.STATUS.is_file(), reason="memory is measured on Linux")
def test_the_head_alone_is_seen_to_need_memory():
    shape = {**growth.SHAPE, "hidden_size": 32, "vocab_size": 20_000}
    memory = grown.head_point({"shape": shape, "tokens": 512})["memory"]
    assert 4 * 512 * 1000 < memory < 4 * 512 * 20_000 * 10


@pytest.mark.skipif(not grown.STATUS.is_file(), reason="memory is measured on Linux")
def test_a_point_of_growth_is_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "SHAPE", {**growth.SHAPE, "hidden_size": 32, "num_hidden_layers": 2})
    point = {"prompt": 7, "group": 3, "completion": 4, "vocabulary": 96, "batch": 2}
    found = grown.step_point(growth.step_spec(point, 2, tmp_path / "models", tmp_path))
    assert found.keys() == {"sampling", "update", "memory", "operations", "length"} and min(found.values()) > 0


def test_points_are_measured_once_and_the_base_for_all(tmp_path, monkeypatch, capsys):
    asked = []

    def told(script, spec, folder):
        if "data" in spec:
            assert len(Path(spec["data"]).read_text().splitlines()) == 5 * spec["per_step"], "each prompt once"
        asked.append((spec.get("tokens"), spec.get("prompt_tokens"), spec.get("per_step")))
        return {"memory": 1e6, "peak": 5} | ({} if "tokens" in spec else {"sampling": 1.0, "update": 2.0})

    monkeypatch.setattr(growth, "side", told)
    monkeypatch.setattr(growth, "SIZES", {"prompt": (8, 16), "batch": (4, 8), "head": (32,)})
    monkeypatch.setattr(growth, "BASE", growth.BASE | {"prompt": 16, "vocabulary": 96})
    arguments = ["run", "--turns", "2", "--folder", str(tmp_path), "--results", str(tmp_path / "out.jsonl")]
    growth.main(arguments)
    assert asked == [(None, 8, 4), (None, 16, 4), (None, 16, 8), (32, None, None)] * 2
    growth.main(arguments)
    assert len(asked) == 8, "what is measured is not run again"


def grown_record(name, size, turn, **told):
    return {"point": growth.at(name, size), "turn": turn, "where": WHERE, **told}


def test_growth_is_told_as_a_table_with_exponents_and_a_picture(tmp_path):
    growth_page = pytest.importorskip("speed.growth_page", reason="the picture needs matplotlib")
    found = [
        grown_record(
            "batch", size, turn, sampling=0.5 + turn, update=0.25 * size, memory=1e6 * (10 + turn), operations=1e9
        )
        for size in growth.SIZES["batch"]
        for turn in (0, 1)
    ]
    found += [grown_record("head", size, 0, memory=7e6) for size in growth.SIZES["head"]]
    made = growth_page.curves(found)
    assert list(made) == ["prompt", "group", "completion", "vocabulary", "batch", "head"]
    assert made["prompt"]["sampling"] == {256: 0.5}, "the base is a point of every dimension"
    assert made["batch"]["memory"] == dict.fromkeys((1, 2, 4, 8, 16), 11e6), "the most of the turns"
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
    assert "<!-- growth -->" in real.read_text(encoding="utf-8"), "the page has a place for it"
