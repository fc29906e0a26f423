"""Context parallelism of 2 GPUs over NCCL, in CUDA graphs too."""

import os
import time

import numpy as np
import pytest
from batch import Batch
from test_distributed import arguments, tables, tensors

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.torch,
    pytest.mark.cuda,
    pytest.mark.skipif(
        torch.cuda.device_count() < 2,
        reason=f"needs 2 GPUs, this machine has {torch.cuda.device_count()}",
    ),
]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    from ranks import Ranks

    group = Ranks(2, tmp_path_factory.mktemp("nccl"), backend="nccl")
    yield group
    group.close()


def planned(batch, collective, head_parts):
    from pando_attn.distributed import ContextParallel

    cp = ContextParallel(collective=collective, head_parts=head_parts)
    options = {**arguments(batch), "device": "cuda", "threads": 0}
    mine = cp.plan(*tables(batch), batch.page_tokens, **options)
    return cp, [x.cuda() for x in tensors(batch, mine.pages)]


def attend(rank, batch, collective, head_parts):
    cp, (q, k, v) = planned(batch, collective, head_parts)
    out, lse = cp.attend(q, k, v, return_lse=True, layout=batch.layout)
    assert torch.equal(cp.attend(q, k, v, layout=batch.layout), out)
    return out.float().cpu().numpy(), lse.cpu().numpy()


HEADS = {"q_heads": 8, "kv_heads": 2}
BATCHES = {
    "ragged": Batch([1330, 1400, 1290, 2000, 1], [1, 2, 1, 1, 1], prefix=80, dtype="bf16", **HEADS),
    "unshared": Batch([370, 5, 640, 1000], [1, 1, 3, 1], dtype="fp16", **HEADS),
    "head_dim 128": Batch([3330, 3400], [1, 3], prefix=200, dtype="bf16", head_dim=128, **HEADS),
    "HND": Batch([3330, 3400], [1, 3], prefix=200, dtype="bf16", layout="HND", **HEADS),
    "window": Batch([1330, 3000], [5, 1], prefix=8, dtype="bf16", options={"window": 500}, **HEADS),
    "empty rank": Batch([16, 0], [1, 1], dtype="bf16", **HEADS),
    "nothing to see": Batch([0, 0], [1, 2], dtype="bf16", **HEADS),
}


@pytest.mark.parametrize("head_parts", [1, 2])
@pytest.mark.parametrize("collective", ["all_gather", "all_to_all"])
@pytest.mark.parametrize("name", BATCHES)
def test_both_gpus_get_the_whole(two, name, collective, head_parts):
    batch = BATCHES[name]
    results = two.run(attend, batch, collective, head_parts)
    for out, lse in results:
        assert np.array_equal(out, results[0][0]) and np.array_equal(lse, results[0][1])
        batch.answer().check(out, lse, dtype=batch.dtype, roundings=2)


def replayed(rank, batch, shorter, collective, head_parts):
    """What a graph gives as it was captured, and after an update."""
    cp, (q, k, v) = planned(batch, collective, head_parts)
    out = torch.empty_like(q)
    cp.attend(q, k, v, out=out)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        cp.upload()
        cp.attend(q, k, v, out=out)
    outs = []
    for lengths in (batch.kv_lens, shorter.kv_lens):
        cp.update(batch.q_indptr, lengths, batch.page_indptr, batch.page_ids)
        for _ in range(3):
            out.zero_()
            graph.replay()
            torch.cuda.synchronize()
        outs.append(out.float().cpu().numpy())
    return outs


@pytest.mark.parametrize("head_parts", [1, 2])
@pytest.mark.parametrize("collective", ["all_gather", "all_to_all"])
def test_a_graph_holds_all_of_a_step(two, collective, head_parts):
    batch, shorter = (
        Batch([n] * 8, [1] * 8, prefix=200, dtype="bf16", **HEADS) for n in (4000, 3990)
    )
    shorter.q, shorter.k, shorter.v, shorter.tables = batch.q, batch.k, batch.v, batch.tables
    for first, second in two.run(replayed, batch, shorter, collective, head_parts):
        batch.answer().check(first, dtype="bf16", roundings=2)
        shorter.answer().check(second, dtype="bf16", roundings=2)


SECONDS = 10  # the timeout of a group whose rank ends


def ends(rank, batch):
    """Rank 1 ends before it attends; what the other gets, and after how long."""
    cp, (q, k, v) = planned(batch, "all_gather", 1)
    cp.attend(q, k, v)
    torch.cuda.synchronize()
    if rank == 1:
        os._exit(1)
    begin = time.monotonic()
    with pytest.raises(RuntimeError, match="group: the all-gather of partials failed on rank 0"):
        while time.monotonic() < begin + 6 * SECONDS:
            cp.attend(q, k, v)
            torch.cuda.synchronize()
    return time.monotonic() - begin


def test_a_rank_that_ends_leaves_no_other_waiting(tmp_path):
    from ranks import Failed, Ranks

    group = Ranks(2, tmp_path, backend="nccl", seconds=SECONDS)
    begin = time.monotonic()
    outcome = group.outcomes(ends, BATCHES["ragged"])
    group.close()
    assert outcome[1] is None
    assert not isinstance(outcome[0], Failed), outcome[0]  # an error, or NCCL has ended the process
    assert time.monotonic() - begin < 9 * SECONDS
