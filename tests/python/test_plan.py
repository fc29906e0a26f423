"""Plans: what they say, and how they are updated."""

import inspect
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from batch import Batch

import pando_attn
from pando_attn._spec import HeadOptions, HeadsNeeded, Spec


def test_plan_finds_what_is_shared():
    plan = Batch([133] * 4, [1] * 4, prefix=8).plan(share="all")
    root, *own = plan.segments()
    assert (root.token_begin, root.token_end, root.sequences, root.shared) == (0, 128, 4, True)
    assert [(s.parent, s.depth, s.token_begin, s.token_end) for s in own] == [(0, 1, 128, 133)] * 4
    assert "shared" in plan.explain()
    assert plan.kv_bytes < plan.unshared_kv_bytes


def test_plan_says_its_numbers():
    plan = Batch([133] * 4, [1] * 4, prefix=8).plan()
    said = json.loads(plan.json(work_items=True))
    assert said["workspace_bytes"] == plan.workspace_bytes > 0
    assert said["cost"]["predicted_us"] == plan.predicted_us > 0
    assert said["cost"]["predicted_unshared_us"] == plan.predicted_unshared_us
    assert said["cost"]["roof_us"] == plan.roof_us > 0
    assert said["items"] == len(said["work_items"]) and said["plan_bytes"] == plan.plan_bytes
    assert (plan.q_rows, plan.sequences, plan.page_tokens) == (4, 4, 16)
    assert "4 sequences" in repr(plan)


def test_plan_from_lists_and_a_block_table_is_the_same():
    batch = Batch([133, 40], [1, 1])
    width = max(map(len, batch.tables))
    table = np.full((2, width), -1, np.int64)
    for row, pages in zip(table, batch.tables):
        row[: len(pages)] = pages
    options = {"q_heads": 4, "kv_heads": 2, "head_dim": 64, "dtype": np.float32}
    plan = pando_attn.plan([0, 1, 2], [133, 40], None, table, 16, **options)
    want = pando_attn.attend(batch.plan(), batch.q, batch.k, batch.v)
    assert np.array_equal(pando_attn.attend(plan, batch.q, batch.k, batch.v), want)


@pytest.mark.parametrize("changed", [None, [], [1]])
def test_update_of_a_decode_step_is_a_new_plan(changed):
    before, after = Batch([143, 150], [1, 1], prefix=8), Batch([145, 151], [1, 1], prefix=8)
    # The same pages, one more of the first sequence; seeds make the same order only by size.
    plan = before.plan()
    tables = [[*before.tables[0], before.num_pages], before.tables[1]]
    ids = np.concatenate(tables)
    indptr = np.cumsum([0, *map(len, tables)])
    plan.update([0, 1, 2], [145, 151], indptr, ids, changed=changed)
    fresh = pando_attn.plan(
        [0, 1, 2], [145, 151], indptr, ids, 16, q_heads=4, kv_heads=2, head_dim=64, dtype="fp32"
    )
    assert plan.json(work_items=True) == fresh.json(work_items=True)
    assert plan.q_rows == after.q_indptr[-1]


def test_failed_update_changes_nothing():
    batch = Batch([133, 140], [1, 1], prefix=8)
    plan = batch.plan()
    want = pando_attn.attend(plan, batch.q, batch.k, batch.v)
    said = plan.json()
    with pytest.raises(ValueError, match=r"kv_len\[1\]"):
        plan.update([0, 1, 2], [133, 1000], batch.page_indptr, batch.page_ids)
    with pytest.raises(ValueError, match="visible"):  # after the forest has been made
        plan.update([0, 1, 2], [1, 1], batch.page_indptr, batch.page_ids, visible=[[0, 1]])
    assert plan.json() == said
    assert np.array_equal(pando_attn.attend(plan, batch.q, batch.k, batch.v), want)
    plan.update([0, 1, 2], [134, 141], batch.page_indptr, batch.page_ids, changed=[])
    assert [s.token_end for s in plan.segments()] == [128, 134, 141]


def test_failed_update_leaves_the_forest_of_the_plan():
    ids = [[0, 1 + b // 4, 8 + b // 2, 16 + b] for b in range(8)]
    options = {"q_heads": 2, "kv_heads": 1, "head_dim": 8, "dtype": "fp32", "share": "all"}
    plan = pando_attn.plan(range(9), [64] * 8, None, ids, 16, **options)
    before = plan.segments()
    assert len(before) == 15 and sum(s.shared for s in before) == 7
    for changed in (None, [0]):
        with pytest.raises(ValueError, match="visible"):  # after the forest has been made
            plan.update([0, 1], [16], None, [[0]], visible=[[0, 1]] * 2, changed=changed)
        assert plan.segments() == before
    with pytest.raises(ValueError, match="visible"):
        plan.update([0, 1], [16], None, [[0]], visible=[[0, 1]] * 2)
    with pytest.raises(ValueError, match=r"kv_len\[3\]: got 60 tokens, had 64"):
        plan.update(range(9), [64] * 3 + [60] * 5, None, ids, changed=[])
    ids[7][3] = 30
    plan.update(range(9), [64] * 8, None, ids, changed=[7])
    fresh = pando_attn.plan(range(9), [64] * 8, None, ids, 16, **options)
    assert plan.json(work_items=True) == fresh.json(work_items=True)
    assert plan.segments() == before


@pytest.mark.parametrize("page", [-1_000_000_000, 1_000_000])
def test_page_ids_that_no_sequence_held_are_refused_in_those_not_listed(page):
    options = {"q_heads": 2, "kv_heads": 1, "head_dim": 8, "dtype": "fp32"}
    plan = pando_attn.plan([0, 1, 2], [20, 20], None, [[2, 0], [2, 1]], 16, **options)
    said = plan.json()
    with pytest.raises(ValueError, match=f"page_ids: got {page} in sequence 1, which held no such"):
        plan.update([0, 1, 2], [21, 21], None, [[2, 0], [2, page]], changed=[])
    assert plan.json() == said
    plan.update([0, 1, 2], [21, 21], None, [[2, 0, -1], [2, 1, -1]], changed=[])  # never read


def test_pages_of_a_sequence_that_changed_are_forgotten():
    batch = Batch([16], [1])
    plan = batch.plan()
    plan.update([0, 1], [16], [0, 1], [10**6], changed=[0])
    with pytest.raises(ValueError, match="1000000"):
        pando_attn.attend(plan, batch.q, batch.k, batch.v)
    plan.update([0, 1], [16], [0, 1], batch.page_ids, changed=[0])
    batch.answer().check(pando_attn.attend(plan, batch.q, batch.k, batch.v))


def test_segments_are_of_one_plan_beside_updates():
    plan = Batch([16], [1]).plan()
    batches = [[np.arange(n + 1), np.full(n, 16), None, np.arange(n)[:, None]] for n in (1, 64)]

    def update():
        for step in range(600):
            plan.update(*batches[step % 2])

    with ThreadPoolExecutor(1) as threads:
        updates = threads.submit(update)
        while not updates.done():
            assert len(plan.segments()) in (1, 64)
        updates.result()


def test_page_ids_may_lie_in_a_buffer_that_is_longer():
    batch = Batch([133, 140], [1, 1], prefix=8)
    plan = batch.plan()
    want = pando_attn.attend(plan, batch.q, batch.k, batch.v)
    buffer = np.concatenate([batch.page_ids, np.full(1000, -1, np.int32)])
    plan.update(batch.q_indptr, batch.kv_lens, batch.page_indptr, buffer)
    assert np.array_equal(pando_attn.attend(plan, batch.q, batch.k, batch.v), want)


def test_plan_for_an_h100_can_be_made_anywhere():
    batch = Batch([4000] * 8, [1] * 8, prefix=200, head_dim=128, dtype="bf16")
    plan = batch.plan(device="h100")
    assert "H100" in plan.explain()
    with pytest.raises(TypeError, match="memory of the host"):
        pando_attn.attend(plan, batch.q, batch.k, batch.v)


@pytest.mark.parametrize("name", ["bf16", "bfloat16", "torch.bfloat16"])
def test_plan_knows_dtypes_by_their_names(name):
    assert Batch([16], [1]).plan(dtype=name).dtype == "bf16"


def test_arguments_of_heads_have_the_same_names_and_defaults_everywhere():
    wanted = inspect.signature(Spec.of).parameters
    given = inspect.signature(pando_attn.plan).parameters
    assert {name: given[name].default for name in wanted} == {
        name: of.default for name, of in wanted.items()
    }
    options = {*HeadOptions.__annotations__, *HeadsNeeded.__annotations__}
    assert options == {*wanted} - {"page_tokens"}
    assert Spec.of(16, q_heads=2, kv_heads=1, head_dim=64) == Spec(16, 2, 1, 64, 1)


def test_a_stream_that_is_none_is_refused():
    from pando_attn import _arrays

    with pytest.raises(TypeError, match="stream: got str, want a stream of PyTorch or CuPy"):
        _arrays.current_stream(0, "fast")
    assert _arrays.current_stream(0, 77) == 77
