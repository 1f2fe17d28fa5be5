"""The page of the comparison with TRL."""

from pathlib import Path

import vs_trl
from speed import page
from speed.workloads import WORKLOADS

WHERE = {"date": "1 May", "machine": "M", "cores": 2, "threads": 2, "torch": "2.13", "python": "3.12"}


def side(seconds, length=None, peak=1e9, tokens=None, **more):
    """Measurements of a side."""
    return {"seconds": seconds, "length": length, "peak": peak, "tokens": tokens or [100.0], **more}


def record(row, turn, peer_side, our_side, run="2026-05-01 10:00:00", **more):
    machine = {"matrix_rate": 2e11 + turn, "bandwidth": 1e10, "device": "cpu"}
    told = {"row": row, "run": run, "turn": turn, "unlike": "", "ours": our_side, "where": WHERE, "machine": machine}
    return told | ({"peer": peer_side} if peer_side else {}) | more


OURS = {
    "versions": {"grape-rl": "1", "torch": "2"},
    "operations": [2e11],
    "update_operations": [1e11],
    "update_seconds": [1.0],
    "sample_seconds": [0.6],
    "decode_bytes": [2e9],
}
FOUND = [
    record("grpo_tiny", 0, side([9.0]), side([1.0]), run="2026-04-01 10:00:00"),
    record("grpo_tiny", 0, side([3.0, 5.0, 4.0], [40.0], 3e9), side([2.0], [44.0], 1e9, **OURS)),
    record("grpo_tiny", 1, side([6.0], [40.0], 2e9), side([1.0], [44.0], 2e9, **OURS)),
    record("sft_gsm", 0, None, side([0.5], tokens=[50.0, 70.0], operations=[1e11]), unlike="not alike"),
    {"row": "help", "run": "r", "turn": 0, "unlike": "", "where": WHERE, "peer": side([2.0]), "ours": side([0.25])},
]


def cells(text, start):
    """Cells of the table line that starts with this text."""
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_the_table_has_the_last_run_of_each_workload_and_dashes_for_missing_values():
    text = page.table(FOUND, WORKLOADS)
    # Medians of 4 and 6, and of 2 and 1; ratios 2 and 6.
    assert cells(text, "GRPO `tiny`") == ["5 s", "1.5 s", "**4.00×**", "2.00 – 6.00", "≥ 3×", "1 s", "67%"]
    assert cells(text, "SFT `gsm`, 16 GSM8K rows*") == ["–", "0.5 s", "–", "–", "≥ 1.8×", "0.5 s", "100%"]
    assert cells(text, "DPO") == ["not yet measured"] * 2 + ["–", "–", "≥ 2.5×", "–", "–"]
    text = page.memory_table(FOUND, WORKLOADS)
    # 32 rows of 40 tokens in 5 s, and of 44 in 1.5 s.
    assert cells(text, "GRPO `tiny`") == ["3.00 GB", "2.00 GB", "–", "40.0", "44.0", "256", "939"]
    assert cells(text, "SFT `gsm`") == ["–", "1.00 GB", "≤ 1.2 GB", "–", "–", "–", "120"]
    assert cells(page.parts_table(FOUND, WORKLOADS), "GRPO `tiny`") == [
        "cpu", "0.6 s", "0.2 s", "3.0×", "1 s", "50%", "200 GFLOP/s", "10 GB/s"
    ]  # fmt: skip
    assert cells(page.parts_table(FOUND, WORKLOADS), "DPO") == ["not yet measured", *["–"] * 7]
    assert cells(page.starts_table(FOUND), "`grape --help`") == ["2.00 s", "0.25 s", "< 0.4 s", "1000 MB", "1000 MB"]
    assert cells(page.starts_table(FOUND), "`import grape_rl`")[0] == "not yet measured"


def test_seconds_are_the_median_of_turns_of_the_median_of_steps():
    done = [{"ours": side(seconds)} for seconds in ([1.0, 9.0, 2.0], [100.0], [3.0])]
    assert page.median(done, "ours") == 3.0 and page.median(done, "peer") is None


def test_the_summary_reports_different_lengths():
    summary = page.summary(FOUND[1:3])
    assert summary.startswith("grpo_tiny: ours 1.5 s, 2.00 GB; TRL 5 s, 3.00 GB; ratio 4.00; floor 1 s (67%)")
    assert summary.endswith("lengths differ, 44.0 and 40.0: ratio of tokens/s 3.67")
    assert page.summary(FOUND[3:4]).endswith("\nnot alike") and "ratio" not in page.summary(FOUND[3:4])
    assert page.summary(FOUND[4:]) == "help: ours 0.25 s, 1.00 GB; TRL 2 s, 1.00 GB; ratio 8.00"


def test_the_page_has_the_origin_and_keeps_its_text(tmp_path):
    path = tmp_path / "README.md"
    places = ("vs_trl", "parts", "starts", "gpu")
    path.write_text("Before.\n" + "".join(f"<!-- {p} -->\nold\n<!-- end of {p} -->\n" for p in places) + "After.\n")
    page.report(FOUND, path)
    text = path.read_text()
    assert text.startswith("Before.\n") and text.endswith("After.\n") and "old" not in text
    assert "Measured: 1 May, 2 threads of 2 cores (M), torch 2.13, Python 3.12, grape-rl 1.\n" in text
    assert "\\* not alike.\n" in text and "GRPO `qwen05`, 8 × 16, 512 + 512 tokens, bfloat16 autocast |" in text
    cpu, gpu = text.split("<!-- gpu -->")
    assert "qwen05" not in cpu and "`wide`" in cpu and "`wide`" not in gpu
    real = Path(vs_trl.HERE / "README.md").read_text(encoding="utf-8")
    assert all(f"<!-- {p} -->" in real for p in places), "the page has all comments"
