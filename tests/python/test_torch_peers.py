"""The harness that runs Pando beside its peers: its logic, and its CPU peers against the oracle."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")
sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

from peers import catalog, traces, worker, workloads  # noqa: E402
from peers.oracle import WrongAnswer, answer  # noqa: E402
from peers.peer import Peer, Skip  # noqa: E402
from peers.problem import Problem  # noqa: E402
from peers.supervisor import Supervisor, Task  # noqa: E402
from peers.workloads import Shape  # noqa: E402

pytestmark = pytest.mark.torch

SHAPES = [
    Shape("two", 8, 2, (1, 6), (100, 7)),
    Shape("mha", 4, 4, (1, 3), (64, 64)),
    Shape("tree", 8, 2, (1, 2, 8), (70, 33, 5)),
    Shape("forest", 4, 1, (2, 4), (90, 1)),
    Shape("no prefix", 8, 2, (1, 3), (0, 50)),
    Shape("no suffix", 4, 4, (1, 5), (65, 0)),
    Shape("one", 2, 2, (1, 1), (0, 129)),
]


def settings(**changed):
    values = {
        "device": "cpu",
        "dtype": "bf16",
        "reps": 2,
        "commit": "c",
        "command": "x",
        "deadline": 1e12,
        "seconds_a_config": 0.1,
    }
    return worker.Settings(**{**values, **changed})


def run(peer: Peer | str, shape: Shape = SHAPES[0], **changed) -> dict:
    records: list[dict] = []
    made = worker.Worker(settings(**changed), records.append)
    name = peer if isinstance(peer, str) else peer.name
    if not isinstance(peer, str):
        made._peers[name] = peer
    made.run(shape, name)
    (record,) = records
    json.dumps(record)
    return record


class Fake(Peer):
    name, about, devices = "fake", "for tests", ("cpu",)

    def __init__(self, call=None, check=None, configs=({},)):
        self._call, self._check, self._configs = call, check, list(configs)

    def check(self, problem):
        if self._check:
            raise self._check

    def configs(self, problem):
        return self._configs

    def prepare(self, problem, config):
        right = next(iter(catalog.peers().values())).prepare(problem, {"page_tokens": 16})
        return lambda: self._call(right(), config)


@pytest.fixture(autouse=True)
def few_copies(monkeypatch):
    from peers import timing

    monkeypatch.setattr(timing, "_COLD_BYTES", 1 << 20)


@pytest.fixture
def trace(tmp_path):
    """Three requests that share a block, two of which share another; one whose second block is
    called like theirs after another first one; a short one."""
    requests = [
        {"input_length": 1100, "output_length": 9, "hash_ids": [0, 1, 2]},
        {"input_length": 1024, "output_length": 1, "hash_ids": [0, 1]},
        {"input_length": 700, "output_length": 64, "hash_ids": [0, 3]},
        {"input_length": 1024, "output_length": 4, "hash_ids": [9, 1]},
        {"input_length": 30, "output_length": 2, "hash_ids": [1]},
    ]
    path = tmp_path / "tiny_trace.jsonl"
    path.write_text("".join(json.dumps({"timestamp": 0, **r}) + "\n" for r in requests))
    return str(path)


def test_a_step_of_a_trace_shares_equal_blocks_from_the_start(trace):
    (step,) = traces.steps(trace, 1, 5, q_heads=4, kv_heads=2)
    assert step.name == "tiny-0" and step.batch == 5 and step.shares
    assert step.lengths.tolist() == [1104, 1025, 732, 1026, 31]
    assert step.unique_tokens == 2 * 512 + (1104 - 1024) + 1 + (732 - 512) + 1026 + 31
    problem = Problem(step, "fp32", "cpu")
    for page_tokens in (1, 16, 256):
        paged = problem.paged(page_tokens)
        assert (paged.table[0, : 512 // page_tokens] == paged.table[2, : 512 // page_tokens]).all()
        assert paged.table[0, 512 // page_tokens] != paged.table[2, 512 // page_tokens]
        for b, length in enumerate(step.lengths):
            ids = paged.ids[paged.indptr[b] : paged.indptr[b + 1]]
            assert len(ids) == -(-length // page_tokens)
            tokens = paged.k[torch.from_numpy(ids)].flatten(0, 1)[:length]
            assert torch.equal(tokens, problem.sequence(b)[0])


@pytest.mark.parametrize("name", ["pando", "pando-unshared", "pando-invariant"])
def test_a_step_of_a_trace_is_answered(trace, name):
    record = run(name, traces.steps(trace, 2, 2, q_heads=4, kv_heads=2)[0])
    assert record["max_err"] <= record["tolerance"] and record["trace"] == "tiny_trace.jsonl"
    assert record["context_tokens"] == 1104 + 1025 and record["longest"] == 1104


def test_what_needs_equal_lengths_leaves_a_trace_out(trace):
    (step,) = traces.steps(trace, 1, 4)
    for name in ("torch-flash", "torch-flash-levels", "hydragen", "chunk-attention"):
        assert "of one length" in run(name, step)["skipped"]
    with pytest.raises(ValueError, match="got 2 steps of 3, want no more than 5 lines"):
        traces.steps(trace, 2, 3)


def test_a_shape_of_any_kind_reaches_the_worker(trace):
    (step,) = traces.steps(trace, 1, 4)
    for shape in (step, SHAPES[2]):
        fields = json.loads(json.dumps(dataclasses.asdict(shape)))
        assert worker.shape_of(fields) == shape


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
@pytest.mark.parametrize("page_tokens", [1, 16, 64])
def test_every_form_holds_the_same_tokens(shape, page_tokens):
    problem = Problem(shape, "fp32", "cpu")
    paged = problem.paged(page_tokens)
    for b in range(shape.batch):
        k, v = problem.sequence(b)
        assert len(k) == shape.sequence_tokens
        for mine, form in ((k, paged.k), (v, paged.v)):
            tokens = form[torch.from_numpy(paged.table[b])].flatten(0, 1)
            assert torch.equal(tokens[: shape.sequence_tokens], mine)
        assert torch.equal(problem.whole.k[b], k) and torch.equal(problem.whole.v[b], v)
    pool, tables = problem.level_pages(page_tokens)
    for level, table in zip(problem.levels, tables):
        for node in range(level.nodes):
            tokens = pool.k[torch.from_numpy(table[node])].flatten(0, 1)[: level.tokens]
            assert torch.equal(tokens, level.k[node])


def test_a_clone_holds_the_same_in_other_memory():
    problem = Problem(SHAPES[2], "bf16", "cpu")
    clone = problem.clone()
    assert clone.q is problem.q
    for mine, other in zip(problem.levels, clone.levels):
        assert torch.equal(mine.k, other.k) and torch.equal(mine.v, other.v)
        assert mine.k.data_ptr() != other.k.data_ptr()
    for x in (problem.levels[0].k, clone.levels[0].k, problem.paged(16).k):
        assert x.data_ptr() % 4096 == 0
    assert clone.paged(16).k.data_ptr() != problem.paged(16).k.data_ptr()
    assert clone.kv_bytes == 4 * SHAPES[2].unique_tokens * 2 * 128


def test_pages_are_shared_as_far_as_they_are_full():
    table = workloads.page_tables(Shape("x", 1, 1, (1, 3), (100, 7)), 16).table
    assert all(len(np.unique(column)) == 1 for column in table.T[:6])
    assert len(np.unique(table.T[6])) == 3
    assert len(np.unique(table)) == 6 + 3


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
@pytest.mark.parametrize(
    "name", [name for name, peer in catalog.peers().items() if "cpu" in peer.devices]
)
def test_cpu_peers_give_the_right_answer(name, shape):
    record = run(name, shape)
    if name in ("torch-flash-levels", "hydragen", "chunk-attention") and not shape.shares:
        assert record["skipped"] == "nothing is shared in this shape"
        return
    if record.get("skipped") == "needs llama-cpp-python":
        pytest.skip("needs llama-cpp-python, which is built from source")
    assert record["max_err"] <= record["tolerance"]
    assert record["run_us"]["count"] >= 2
    assert record["run_us"]["min"] <= record["run_us"]["median"] <= record["run_us"]["max"]


@pytest.mark.parametrize("name", ["pando", "torch-flash", "chunk-attention"])
def test_fp32_is_held_to_fp32(name):
    record = run(name, Shape("long", 8, 2, (1, 4), (2048, 256)), dtype="fp32")
    assert record["max_err"] <= record["tolerance"] < 1e-5


ROWS = [
    Shape("verify", 8, 2, (1, 4), (64, 9), q_len=4),
    Shape("verify alone", 4, 4, (1, 3), (0, 40), q_len=3),
    Shape("verify a tree", 8, 2, (1, 2, 4), (33, 20, 5), q_len=5),
]


@pytest.mark.parametrize("shape", ROWS, ids=lambda s: s.name)
@pytest.mark.parametrize(
    "name", ["pando", "pando-unshared", "pando-invariant", "torch-flash", "torch-flash-levels",
             "hydragen"],
)  # fmt: skip
def test_several_rows_see_what_is_before_them(name, shape):
    record = run(name, shape)
    if not shape.shares and name in ("torch-flash-levels", "hydragen"):
        assert record["skipped"] == "nothing is shared in this shape"
    else:
        assert record["max_err"] <= record["tolerance"]


def test_rows_that_a_mask_on_the_last_level_does_not_cut_are_refused():
    shared = Shape("all shared", 4, 4, (1, 3), (40, 0), q_len=2)
    short = Shape("short", 4, 4, (1, 3), (40, 2), q_len=4)
    shortest = Shape("one row short", 4, 4, (1, 3), (40, 3), q_len=4)
    for shape in (shared, short):
        assert "mask in between" in run("torch-flash-levels", shape)["skipped"]
    assert "no own token" in run("torch-flash-levels", shortest)["skipped"]


def test_what_shares_nothing_is_left_out_where_it_is_hopeless():
    shape = Shape("wide", 4, 4, (1, 50), (100, 1))  # 10.3 MB of contexts, 0.31 MB distinct
    record = run("torch-flash", shape, hopeless_gb=0.009)
    assert record["skipped"].endswith("so reads 0.01 GB of which 0.00031 are distinct")
    for name, most in (("torch-flash", 0.011), ("pando", 0.0), ("torch-flash-levels", 0.0)):
        assert "run_us" in run(name, shape, hopeless_gb=most)


def test_a_page_size_is_that_of_the_record():
    (shape,) = workloads.chosen("page-8")
    shape = dataclasses.replace(shape, nodes=(1, 3), tokens=(20, 3))
    record = run("pando", shape)
    assert record["page_tokens"] == record["config"]["page_tokens"] == 8
    assert run("torch-flash", shape)["skipped"] == "takes no page tables"
    assert "page_tokens" not in run("pando")


@pytest.mark.parametrize("name", ["pando", "torch-flash", "torch-flash-levels"])
def test_a_step_of_a_model_is_checked_with_its_last_queries(name):
    alone, step = run(name, dtype="fp32"), run(name, dtype="fp32", layers=3)
    assert step["max_err"] <= step["tolerance"] and step["layers"] == 3
    width, heads, d = 8 * 128, 8 + 2 * 2, 128
    weights = width * heads * d + width * width + 3 * width * (width * 7 // 2)
    assert step["weight_bytes"] == 3 * 4 * weights
    assert step["roof_us"] > 3 * alone["roof_us"] and "layers" not in alone


def test_a_model_with_a_wrong_attention_is_no_time():
    record = run(Fake(lambda out, config: out + 1), layers=2)
    assert record["failed"].startswith("wrong answer")


def test_a_wrong_answer_is_no_time():
    record = run(Fake(lambda out, config: out + 1))
    assert record["failed"].startswith("wrong answer: largest error 1")
    assert "run_us" not in record


def test_a_nan_is_a_wrong_answer():
    assert "wrong answer" in run(Fake(lambda out, config: out * float("nan")))["failed"]


def test_an_answer_that_turns_wrong_is_no_time():
    calls = []

    def call(out, config):
        calls.append(out)
        return out + (len(calls) > 2)

    assert "wrong answer" in run(Fake(call), reps=5)["failed"]


def test_a_wrong_configuration_is_left_out():
    def call(out, config):
        return out + config["add"]

    record = run(Fake(call, configs=({"add": 1}, {"add": 0})))
    assert record["config"] == {"add": 0}
    assert record["tried"][0]["failed"].startswith("wrong answer")


def test_an_exception_is_recorded():
    def call(out, config):
        raise ValueError("no\nsuch thing")

    assert run(Fake(call))["failed"] == "ValueError: no"


def test_a_skip_says_why():
    assert run(Fake(check=Skip("needs x")))["skipped"] == "needs x"
    assert run("fa3")["skipped"] == "does not run on cpu"


def test_nothing_starts_after_the_budget():
    assert "budget" in run("pando", deadline=0)["skipped"]


def test_the_oracle_refuses_a_small_error():
    problem = Problem(SHAPES[0], "bf16", "cpu")
    wanted = answer(problem)
    exact = torch.zeros(problem.q.shape, dtype=torch.float64)
    by_sequence = exact.view(problem.shape.batch, 1, *exact.shape[1:])
    by_sequence[wanted.sequences] = wanted.out
    assert wanted.error(exact) == 0
    with pytest.raises(WrongAnswer):
        wanted.error(exact + 1.01 * wanted.allowed)


# A worker as the supervisor sees it: one line per task, as told by the name of the peer.
SCRIPT = """
import json, os, sys, time
job = json.loads(sys.stdin.readline())
for task in job["tasks"]:
    print(json.dumps({"start": task["id"]}), flush=True)
    if task["peer"] == "dies":
        os.kill(os.getpid(), 11)
    if task["peer"] == "exits":
        sys.exit(7)
    if task["peer"] == "hangs":
        time.sleep(60)
    record = {"shape": task["shape"]["name"], "peer": task["peer"]}
    print(json.dumps({"record": record}), flush=True)
    if task["peer"] == "breaks":
        sys.exit(3)
"""


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("dies", "crashed: signal 11"),
        ("exits", "crashed: exit code 7"),
        ("hangs", "crashed: still running after 1.5 s"),
        ("breaks", None),
    ],
)
def test_a_crash_ends_one_task_only(bad, why):
    records: list[dict] = []
    names = ["good", bad, bad, "after"]
    tasks = [Task(i, SHAPES[0], name) for i, name in enumerate(names)]
    known = {"dtype": "bf16", "commit": "c", "command": "x"}
    worker_command = (sys.executable, "-c", SCRIPT)
    Supervisor(known, records.append, 1.5, worker_command).run(tasks)
    assert [record["peer"] for record in records] == names
    assert [record.get("failed") for record in records] == [None, why, why, None]


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match='got "nothing"'):
        workloads.chosen("l3-8,nothing")
    with pytest.raises(ValueError, match='got "l3-8@0"'):
        workloads.chosen("l3-8@0")
    with pytest.raises(ValueError, match='got "fa9"'):
        catalog.chosen("fa9", "cpu")


def test_the_command_says_nothing_of_where_the_record_went():
    from peers.records import command_text

    words = ["--shapes", "l3-8", "--out", "/somewhere/x.jsonl", "--reps", "3", "--out=y"]
    assert command_text("python -m peers", words) == "python -m peers --shapes l3-8 --reps 3"


def test_names_and_lists_of_shapes():
    assert [s.name for s in workloads.chosen("tp8,l3-8@4")] == ["tp8", "l3-8@4"]
    assert workloads.chosen("l3-8@4")[0].q_len == 4
    assert len(workloads.chosen("shapes,trees")) == 28
    assert len(workloads.chosen("sweep")) == 15
    assert [s.page_tokens for s in workloads.chosen("pages")] == [2**i for i in range(9)]
    names = [s.name for s in workloads.chosen("scale")]
    assert "batch-4096" in names and "prefix-131072" in names
    assert "depth-8" in names and "prefixes-512" in names


def test_triton_merge_is_the_eager_one(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    sys.modules.pop("peers.merge_kernel", None)
    from peers.merge import merge_eager, merge_triton

    generator = torch.Generator().manual_seed(0)
    parts = []
    for _ in range(3):
        out = torch.randn(4, 5, 128, generator=generator).transpose(0, 1).to(torch.bfloat16)
        parts.append((out, 3 * torch.randn(4, 5, generator=generator).t()))
    error = (merge_triton(parts).float() - merge_eager(parts).float()).abs().max()
    assert error <= 2**-6  # one rounding of bf16 each, of numbers below 4
