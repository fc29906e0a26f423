"""Bad input and ranks that end: every rank gets an error that says so, and none waits for ever."""

import datetime
import functools
import os
import re
import time

import numpy as np
import pytest
from batch import Batch
from test_distributed import arguments, attend, tables, tensors

from pando_attn.distributed import place

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

BATCH = Batch([133, 140], [1, 2], prefix=4)
SECONDS = 5  # the timeout of the groups whose ranks end


@pytest.fixture
def two(rank_groups):
    return rank_groups(2)


@pytest.fixture
def doomed(tmp_path):
    from ranks import Ranks

    group = Ranks(3, tmp_path)
    group.run(attend, BATCH)  # all have started
    yield group
    group.close()


def plan_of_own(rank, changes):
    """Each rank plans with changes of its own."""
    from pando_attn.distributed import ContextParallel

    cp = ContextParallel(**changes[rank].pop("how", {}))
    batch = list(tables(BATCH))
    for index, value in changes[rank].pop("batch", {}).items():
        batch[index] = value
    size = changes[rank].pop("page_tokens", BATCH.page_tokens)
    placement = changes[rank].pop("order", None)
    if placement is not None:
        placement = place(*tables(BATCH)[1:], BATCH.page_tokens, placement)
    cp.plan(*batch, size, **{**arguments(BATCH), "placement": placement, **changes[rank]})


@pytest.mark.parametrize(
    "changes",
    [
        {"batch": {1: [133, 139]}},
        {"batch": {0: [0, 2, 3]}},
        {"batch": {3: np.roll(BATCH.page_ids, 4)}},
        {"visible": [[0, 100]] * 3},
        {"scale": 0.5},
        {"causal": False},
        {"dtype": "bf16"},
        {"q_heads": 8},
        {"how": {"collective": "all_to_all"}},
        {"how": {"head_parts": 2}},
    ],
)
def test_ranks_that_disagree_are_named_with_their_hashes(two, changes):
    for outcome in two.outcomes(plan_of_own, [{}, changes]):
        assert outcome.kind == "ValueError"
        hashes = re.search(
            r"plan: rank 1 has placement, lengths and shapes of hash (0x[0-9a-f]{16}), "
            r"rank 0 of (0x[0-9a-f]{16}); want the same arguments on all ranks",
            outcome.text,
        )
        assert hashes and hashes[1] != hashes[2]
    two.run(attend, BATCH)  # nothing is left over


@pytest.mark.parametrize(
    ("changes", "kind", "text"),
    [
        ({"dtype": "int8"}, "ValueError", "dtype: got 'int8'"),
        ({"head_dim": 7}, "NotImplementedError", "head_dim"),
        ({"batch": {1: [133, 10**6]}}, "ValueError", r"kv_len\[1\]"),
        ({"device": "tpu"}, "ValueError", "device: got 'tpu'"),
        ({"order": 3}, "ValueError", "placement: got one of pages of 16 tokens on 3 ranks, want"),
        ({"page_tokens": 24}, "ValueError", "page_tokens: got 24"),
        ({"q_heads": None}, "TypeError", "q_heads: got NoneType"),
        ({"kv_dtype": "fp4"}, "ValueError", "kv_dtype: got 'fp4', want one of"),
    ],
)
def test_a_rank_that_refuses_its_arguments_stops_the_others(two, changes, kind, text):
    fine, refused = two.outcomes(plan_of_own, [{}, changes])
    assert refused.kind == kind and re.search(text, refused.text)
    assert fine.kind == "ValueError"
    assert fine.text == "plan: rank 1 refused its arguments, rank 0 did not"
    two.run(attend, BATCH)


def update_of_own(rank, lengths):
    from pando_attn.distributed import ContextParallel

    cp = ContextParallel()
    mine = cp.plan(*tables(BATCH), BATCH.page_tokens, **arguments(BATCH))
    with pytest.raises(ValueError, match=r"refused its arguments|hash|kv_len"):
        cp.update(BATCH.q_indptr, lengths[rank], BATCH.page_indptr, BATCH.page_ids)
    with pytest.raises(ValueError, match="plan: got none"):
        cp.attend(*tensors(BATCH, mine.pages))


@pytest.mark.parametrize("other", [[133, 139], [133, 10**6]])
def test_an_update_that_is_refused_leaves_no_plan(two, other):
    two.run(update_of_own, [BATCH.kv_lens, other])


def out_of_memory_once(rank, batch):
    """Rank 1 has no room for the buffers of its first plan; the answer of the second."""
    from pando_attn.distributed import ContextParallel, _exchange

    cp = ContextParallel()
    room = _exchange.Rows.room

    def no_room(self, *shape):
        raise torch.OutOfMemoryError("out of memory")

    if rank == 1:
        _exchange.Rows.room = no_room
    try:
        with pytest.raises((torch.OutOfMemoryError, ValueError), match=r"out of memory|refused"):
            cp.plan(*tables(batch), batch.page_tokens, **arguments(batch))
    finally:
        _exchange.Rows.room = room
    mine = cp.plan(*tables(batch), batch.page_tokens, **arguments(batch))
    return cp.attend(*tensors(batch, mine.pages)).numpy()


def test_a_rank_without_room_for_buffers_stops_the_others(two):
    for out in two.run(out_of_memory_once, BATCH):
        BATCH.answer().check(out)


def captured(rank, batch):
    """Of a batch whose step is in a graph, as far as that goes without a GPU."""
    from pando_attn.distributed import ContextParallel

    cp = ContextParallel()
    mine = cp.plan(*tables(batch), batch.page_tokens, **arguments(batch))
    cp._captured = True
    cp.update(*tables(batch))
    fewer = [0, 1, 2]
    with pytest.raises(ValueError, match="q_indptr: got 2 query rows, want 3 as in the captured"):
        cp.update(fewer, *tables(batch)[1:])
    with pytest.raises(ValueError, match="plan: got none"):
        cp.attend(*tensors(batch, mine.pages))
    stays = place(*tables(batch)[1:], batch.page_tokens, 2, previous=cp.placement)
    again = cp.plan(
        fewer, *tables(batch)[1:], batch.page_tokens, placement=stays, **arguments(batch)
    )
    assert np.array_equal(again.pages, mine.pages)
    q, k, v = tensors(batch, again.pages)
    return cp.attend(q[:2], k, v).numpy()


def test_the_rows_of_a_captured_step_stay(two):
    batch = Batch([133, 140], [1, 1], prefix=4)
    batch.q = BATCH.q[:2]
    for out in two.run(captured, BATCH):
        batch.k, batch.v, batch.tables = BATCH.k, BATCH.v, BATCH.tables
        batch.answer().check(out)


def misuse(rank):
    import torch.distributed as dist

    from pando_attn.distributed import ContextParallel

    for options, text in (
        ({"collective": "broadcast"}, "collective: got 'broadcast', want one of all_gather"),
        ({"head_parts": 0}, "head_parts: got 0, want 1 or more"),
    ):
        with pytest.raises(ValueError, match=text):
            ContextParallel(**options)
    alone = dist.new_group([0])
    if rank == 1:
        with pytest.raises(ValueError, match="group: got one that this process is not in"):
            ContextParallel(alone)
    cp = ContextParallel()
    update = functools.partial(cp.update, [0], [], [0], [])
    for call in (lambda: cp.batch, lambda: cp.placement, cp.upload, update):
        with pytest.raises(ValueError, match="plan: got none, want plan"):
            call()
    three = ContextParallel(head_parts=3)
    with pytest.raises(ValueError, match="head_parts: got 3, want a divisor of kv_heads, 2"):
        three.plan(*tables(BATCH), 16, **arguments(BATCH))
    halves = ContextParallel(head_parts=2)
    mine = halves.plan(*tables(BATCH), 16, **arguments(BATCH))
    q, k, v = tensors(BATCH, mine.pages)
    for wrong, text in (
        ((q[:, :3], k, v), "q: got shape"),
        ((q, k[:, :, :1], v), "k_cache: got"),
        ((q, k, torch.cat([v, v[:, :, :1]], 2)), r"v_cache: got shape .*, want 2 heads"),
    ):
        with pytest.raises(ValueError, match=text):
            halves.attend(*wrong)
    for wrong, text in (({"tree_mask": [1]}, "'tree_mask'"), ({"head_dim": None}, "head_dim: got")):
        with pytest.raises(TypeError, match=text):
            ContextParallel().plan(*tables(BATCH), 16, **{**arguments(BATCH), **wrong})
    for collective in ("all_gather", "all_to_all"):
        whole = ContextParallel(collective=collective)
        whole.plan(*tables(BATCH), 16, **arguments(BATCH))
        for wrong, kind, text in (
            ({"out": q.double()}, TypeError, "out: got dtype torch.float64, want torch.float32"),
            ({"out": q[None].clone()}, ValueError, r"out: got shape \(1, 3, 4, 64\), want \(3, 4"),
            ({"lse": q[..., 0].half()}, TypeError, "lse: got dtype torch.float16, want"),
            ({"lse": q[:2, :, 0]}, ValueError, r"lse: got shape \(2, 4\), want \(3, 4\)"),
        ):
            with pytest.raises(kind, match=text):
                whole.attend(q, k, v, **wrong)
        for wrong, text in (
            ((q.numpy(), k, v), "q: got numpy.ndarray, want a torch.Tensor"),
            ((q, k, None), "v_cache: got NoneType, want a torch.Tensor"),
        ):
            with pytest.raises(TypeError, match=text):
                whole.attend(*wrong)


def test_misuse_is_refused_by_name(two):
    two.run(misuse)


def test_without_a_group():
    from pando_attn.distributed import ContextParallel

    with pytest.raises(ValueError, match="group: got no process group"):
        ContextParallel()


def ends(rank, how, where):
    """Rank 1 ends, or does not answer, before ``where``; the others say how long they waited."""
    import torch.distributed as dist

    from pando_attn.distributed import ContextParallel

    cp = ContextParallel(dist.new_group(timeout=datetime.timedelta(seconds=SECONDS)))
    if where == "attend":
        mine = cp.plan(*tables(BATCH), BATCH.page_tokens, **arguments(BATCH))
    if rank == 1:
        if how == "exits":
            os._exit(1)
        time.sleep(3 * SECONDS)
        return None
    begin = time.monotonic()
    with pytest.raises(RuntimeError, match=r"group: (the all-gather|comparing).* failed on rank"):
        if where == "attend":
            cp.attend(*tensors(BATCH, mine.pages))
        else:
            cp.plan(*tables(BATCH), BATCH.page_tokens, **arguments(BATCH))
    return time.monotonic() - begin


@pytest.mark.parametrize(
    ("how", "where"), [("exits", "plan"), ("exits", "attend"), ("sleeps", "attend")]
)
def test_ranks_get_an_error_when_another_ends(doomed, how, where):
    waited = doomed.outcomes(ends, how, where)
    assert waited[1] is None
    for seconds in (waited[0], waited[2]):
        assert isinstance(seconds, float) and seconds < 3 * SECONDS, seconds
