"""The benchmark report: what it refuses, what it says, and that the one in the tree is current."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "bench"))

from report import __main__ as report  # noqa: E402
from report import document  # noqa: E402
from report.records import BadRecord, read  # noqa: E402

PEER = {
    "shape": "l3-8",
    "dtype": "bf16",
    "peer": "pando",
    "device": "NVIDIA H200",
    "cold": True,
    "date": "2026-11-29T01:00:00Z",
    "commit": "0123abc",
    "command": "python -m peers",
    "run_us": {"median": 10.0, "min": 9.0, "max": 12.0, "count": 25},
    "roof_us": 2.0,
    "max_err": 1e-3,
    "tolerance": 2e-3,
}


def peer(who: str, median: float = 10.0, **changed) -> dict:
    return {**PEER, "peer": who, "run_us": {**PEER["run_us"], "median": median}, **changed}


def no_time(who: str, **why) -> dict:
    kept = {key: PEER[key] for key in ("shape", "dtype", "date", "commit", "command")}
    return {**kept, "peer": who, **why}


def folder_of(path: Path, *records: dict, name: str = "h200-peers-2026-11-29.jsonl") -> Path:
    (path / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def text_of(folder: Path) -> str:
    return document.markdown(report.build(folder)[0])


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"max_err": 3e-3}, "max_err: got 0.003, want at most 0.002"),
        ({"max_err": float("nan")}, "max_err"),
        ({"max_err_lse": 1.0, "tolerance_lse": 0.5}, "max_err_lse"),
        ({"correct": False}, "correct: got false"),
        ({"commit": "0123abc-dirty"}, "commit: got '0123abc-dirty'"),
        ({"commit": "unknown"}, "commit: got 'unknown'"),
        ({"run_us": {"median": 0, "count": 1}}, "got no runs"),
        ({"run_us": {"count": 1}}, "has no run_us.median"),
        ({"tolerance": None}, "tolerance: got None"),
    ],
)
def test_a_record_that_proves_nothing_is_refused(tmp_path, changed, why):
    folder_of(tmp_path, peer("fa3"), peer("pando", **changed))
    with pytest.raises(BadRecord, match=r"h200-peers-2026-11-29\.jsonl:2: ") as error:
        read(tmp_path)
    assert why in str(error.value)


def test_runs_with_fp8_kv_stand_apart(tmp_path):
    folder = folder_of(tmp_path, peer("pando", kv_dtype="bf16"), peer("pando", kv_dtype="fp8"))
    assert [run.dtype for run in read(folder).runs] == ["bf16", "bf16+fp8"]


def test_a_line_that_is_no_json_is_refused(tmp_path):
    (tmp_path / "x.jsonl").write_text("{}\nnothing\n")
    with pytest.raises(BadRecord, match=r"x\.jsonl:2: is no JSON"):
        read(tmp_path)


def test_records_of_other_kinds_are_only_linked(tmp_path):
    folder = folder_of(tmp_path, {"kernel": "01_naive", "run_us": {"median": 1}}, name="lab.jsonl")
    assert "[lab.jsonl](lab.jsonl)" in text_of(folder)


def test_losses_are_red_and_counted(tmp_path):
    other = {"shape": "tp8"}
    folder = folder_of(
        tmp_path,
        peer("pando", 10), peer("fa3", 9.96), peer("hydragen", 30),
        peer("pando", 10, **other), peer("fa3", 25, **other),
    )  # fmt: skip
    text = text_of(folder)
    assert "1.57× the best peer on 2 shared shapes (geometric mean; least 0.99×)" in text
    assert "A peer wins on 1: l3-8." in text
    (row,) = [line for line in text.splitlines() if line.startswith("| l3-8 ")]
    assert "🔴 10.0 µs" in row and "🔴 0.99×" in row and "| fa3 |" in row
    (row,) = [line for line in text.splitlines() if line.startswith("| tp8 ")]
    assert "🔴" not in row and "**2.50×**" in row and "| Pando |" in row
    html = document.page(
        report.build(folder)[0], "t", {"roof-h200-peers-2026-11-29-bf16": "<svg/>"}
    )
    assert '<td class="loss">0.99×</td>' in html


def test_sharing_that_loses_against_no_sharing_is_red(tmp_path):
    text = text_of(folder_of(tmp_path, peer("pando", 10), peer("pando-unshared", 9)))
    assert "🔴 9.0 µs" in text


def test_what_has_no_time_is_named_with_the_reason(tmp_path):
    folder = folder_of(
        tmp_path,
        no_time("flashinfer", skipped="needs flashinfer-python"),
        peer("pando"),
        peer("fa3", 20),
        no_time("torch-flex", failed="crashed: signal 11"),
    )
    text = text_of(folder)
    assert "| flashinfer | skipped: needs flashinfer-python | l3-8 |" in text
    assert text.count("### ") == 1 and "### NVIDIA H200, bf16" in text
    assert "| torch-flex | 🔴 failed: crashed: signal 11 | l3-8 |" in text


def test_losses_by_more_than_two_percent_are_told_apart(tmp_path):
    near = [peer("pando", 10), peer("fa3", 9.9)]
    assert "l3-8. By more than 2 %: none." in text_of(folder_of(tmp_path, *near))
    far = [peer("pando", 10, shape="tp8"), peer("fa3", 9.7, shape="tp8")]
    text = text_of(folder_of(tmp_path, *near, *far))
    assert "A peer wins on 2: l3-8, tp8. By more than 2 %: tp8." in text


def test_a_clear_loss_is_explained_or_red(tmp_path):
    for shape in ("tp8", "l3-1"):
        folder_of(tmp_path, peer("pando", 10, shape=shape), peer("fa3", 9, shape=shape),
                  name=f"h200-peers-{shape}-2026-11-29.jsonl")  # fmt: skip
    (tmp_path / "losses.json").write_text('{"tp8": "that is [why](x.md)"}')
    rows = [line for line in text_of(tmp_path).splitlines() if "| fa3 | 🔴 0.90× |" in line]
    assert [row.split(" | ")[-1] for row in rows] == [
        "🔴 not explained yet |",
        "that is [why](x.md) |",
    ]
    assert "losses.json" not in text_of(tmp_path)


def test_predictions_are_counted(tmp_path):
    good, bad = {"predicted_us": 12.0}, {"predicted_us": 7.9, "shape": "tp8"}
    text = text_of(folder_of(tmp_path, peer("pando", **good), peer("pando", **bad), peer("fa3")))
    assert "within 20 % of it on 1 of 2 shapes" in text


@pytest.mark.parametrize(
    ("changed", "kind"),
    [
        ({"shape": "l3-8@4"}, ": 4 query rows a sequence"),
        ({"shape": "batch-64"}, ": one axis at a time"),
        ({"layers": 32}, ": a decode step of 32 layers"),
        ({"shape": "conversation-7", "context_tokens": 3000, "unique_tokens": 2700, "batch": 2,
          "longest": 2000, "q_heads": 32, "kv_heads": 8}, ": steps of real traces"),
        ({}, ""),
    ],
)  # fmt: skip
def test_a_run_is_called_by_what_it_is_of(tmp_path, changed, kind):
    text = text_of(folder_of(tmp_path, peer("pando", **changed), peer("fa3", 20, **changed)))
    assert f"### NVIDIA H200, bf16{kind}\n" in text
    assert "2.00× the best peer on 1 shared shape" in text


def test_steps_of_a_trace_are_described_by_their_records(tmp_path):
    facts = {"shape": "conversation-7", "context_tokens": 3000, "unique_tokens": 2700, "batch": 2,
             "longest": 2000, "q_heads": 32, "kv_heads": 8}  # fmt: skip
    text = text_of(folder_of(tmp_path, peer("pando", **facts), peer("fa3", 20, **facts)))
    assert "| 2 × 1500 in the mean, 2000 at most, 10 % shared | 32/8 |" in text


def test_a_step_of_a_model_is_another_run(tmp_path):
    model = {"layers": 32}
    text = text_of(folder_of(tmp_path, peer("pando"), peer("fa3", 20),
                             peer("pando", 50, **model), peer("fa3", 60, **model)))  # fmt: skip
    assert text.count("### ") == 2 and "2.00×" in text and "1.20×" in text


def test_the_start_project_stands_beside_the_run_with_most_of_its_shapes(tmp_path):
    shutil.copy(report.FOLDER / "start-project.json", tmp_path)
    seeds = [peer("pando", 10, shape=f"seed-{name}") for name in ("4x4", "32x16")]
    folder_of(tmp_path, *seeds)
    folder_of(tmp_path, peer("pando", 99, shape="seed-4x4"), name="h200-peers-b-2026-11-29.jsonl")
    text = text_of(tmp_path)
    theirs = text[text.index("## The kernels that") :]
    assert "10.0 µs" in theirs and "99.0 µs" not in theirs
    folder_of(tmp_path, *[{**x, "run_us": {"median": 8.0, "count": 9}} for x in seeds],
              name="h200-peers-2026-11-30.jsonl")  # fmt: skip
    theirs = text_of(tmp_path)
    assert "8.0 µs" in theirs[theirs.index("## The kernels that") :]


def test_the_page_links_to_its_headings(tmp_path):
    same = {"name": "h200-peers-b-2026-11-29.jsonl"}
    folder = folder_of(tmp_path, peer("pando"), peer("fa3", 20))
    folder_of(tmp_path, peer("pando"), peer("fa3", 5), **same)
    blocks, plots = report.build(folder)
    html = document.page(blocks, "t", dict.fromkeys(plots, "<svg/>"))
    for at in ("nvidia-h200-bf16", "nvidia-h200-bf16-1", "in-short"):
        assert html.count(f'id="{at}"') == 1 and f'<a href="#{at}">' in html
    assert "[NVIDIA H200, bf16](#nvidia-h200-bf16-1), 2026-11-29 | 0.50×" in text_of(folder)


def test_a_folder_without_records_gives_a_page(tmp_path):
    assert text_of(tmp_path).startswith("# Benchmarks\n")


def test_the_provenance_is_complete(tmp_path):
    facts = {"driver": "580.1", "runtime": "13.0", "sm_clock_mhz": 1980,
             "versions": {"torch": "2.11.0"}}  # fmt: skip
    text = text_of(folder_of(tmp_path, peer("pando", **facts), peer("fa3", 20, **facts)))
    for fact in ("NVIDIA H200, bf16", "2026-11-29", "0123abc", "driver 580.1", "1980 MHz",
                 "torch 2.11.0", "`python -m peers`"):  # fmt: skip
        assert fact in text


def test_the_page_in_the_tree_is_what_its_records_say():
    assert text_of(report.FOLDER) == (report.FOLDER / "index.md").read_text(), "run make report"


def test_the_same_records_give_the_same_bytes(tmp_path):
    pytest.importorskip("matplotlib", reason="drawn by make report")
    made = []
    for name in ("a", "b"):
        folder = tmp_path / name
        shutil.copytree(report.FOLDER, folder, ignore=shutil.ignore_patterns("index.*", "plots"))
        report.write(folder)
        made.append({p.name: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()})
    assert made[0] == made[1]
    assert made[0]["index.html"] == (report.FOLDER / "index.html").read_bytes()
