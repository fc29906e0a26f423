"""How the harness calls libraries that need a GPU, with stand-ins that check the arguments."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")
sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

from peers import catalog, traces  # noqa: E402
from peers.oracle import answer  # noqa: E402
from peers.peer import Skip  # noqa: E402
from peers.problem import Problem  # noqa: E402
from peers.workloads import Shape  # noqa: E402

pytestmark = pytest.mark.torch

SHAPES = [
    Shape("two", 8, 2, (1, 6), (100, 7)),
    Shape("tree", 8, 2, (1, 2, 8), (70, 33, 5)),
    Shape("no prefix", 8, 2, (1, 3), (0, 50)),
    Shape("no suffix", 4, 4, (1, 5), (65, 0)),
    Shape("verify", 8, 2, (1, 4), (64, 9), q_len=4),
    Shape("verify tree", 4, 4, (1, 2, 4), (33, 20, 4), q_len=3),
]


def attention(q, k, v, causal=False):
    """(out, lse) of rows ``[rows, heads, d]`` over ``[tokens, kv_heads, d]``."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1).double() for x in (k, v))
    scores = torch.einsum("rhd,thd->rht", q.double(), k) / math.sqrt(q.shape[2])
    if causal:
        row, token = torch.arange(len(q)), torch.arange(len(k))
        hidden = token[None] > row[:, None] + len(k) - len(q)
        scores.masked_fill_(hidden[:, None], -torch.inf)
    out = torch.einsum("rht,thd->rhd", scores.softmax(-1), v)
    return out.to(q.dtype), scores.logsumexp(-1).float()


def fa3_module(name: str) -> ModuleType:
    def flash_attn_with_kvcache(
        q, k_cache, v_cache, *, cache_seqlens=None, cache_batch_idx=None, page_table=None,
        causal=False, num_splits=0, return_softmax_lse=False,
    ):  # fmt: skip
        assert return_softmax_lse and num_splits >= 0
        results = []
        for b in range(len(q)):
            if page_table is not None:
                k, v = (
                    x[page_table[b].long()].flatten(0, 1)[: cache_seqlens[b]]
                    for x in (k_cache, v_cache)
                )
            else:
                at = b if cache_batch_idx is None else cache_batch_idx[b]
                k, v = k_cache[at], v_cache[at]
            results.append(attention(q[b], k, v, causal))
        out, lse = zip(*results)
        return torch.stack(out), torch.stack(lse).transpose(1, 2).contiguous(), None

    module = ModuleType(name)
    module.flash_attn_with_kvcache = flash_attn_with_kvcache
    return module


def fa4_module() -> ModuleType:
    fa3 = fa3_module("fa3").flash_attn_with_kvcache

    def flash_attn_func(q, k, v, *, causal=False, num_splits=1, return_lse=False):
        assert return_lse and num_splits == 1 and len(q) == len(k) == len(v)
        return fa3(q, k, v, causal=causal, return_softmax_lse=True)[:2]

    def flash_attn_varlen_func(
        q, k, v, *, page_table, seqused_k, causal=False, num_splits=1, return_lse=False
    ):
        assert return_lse and num_splits == 1 and page_table.dtype == torch.int32
        paged = {"page_table": page_table, "cache_seqlens": seqused_k}
        return fa3(q, k, v, causal=causal, return_softmax_lse=True, **paged)[:2]

    module = ModuleType("flash_attn.cute")
    module.flash_attn_func, module.flash_attn_varlen_func = flash_attn_func, flash_attn_varlen_func
    return module


class Wrapper:
    """Of FlashInfer, as far as the harness uses it."""

    def __init__(self, workspace, kv_layout, use_tensor_cores=False, backend="auto"):
        assert workspace.dtype == torch.uint8 and kv_layout == "NHD"

    def _tables(self, indptr, ids, last, heads, page_size, causal, q_data_type, kv_data_type):
        assert q_data_type == kv_data_type == torch.bfloat16 and heads[2] == 128
        assert len(indptr) == len(last) + 1 and (last >= 1).all() and (last <= page_size).all()
        self._at, self._causal = (indptr, ids, last, page_size), causal

    def run(self, q, kv, return_lse=False):
        indptr, ids, last, page_size = self._at
        parts = []
        for b in range(len(last)):
            pages = ids[indptr[b] : indptr[b + 1]].long()
            tokens = (len(pages) - 1) * page_size + last[b]
            k, v = (x[pages].flatten(0, 1)[:tokens] for x in kv)
            rows = q[self._q_indptr[b] : self._q_indptr[b + 1]]
            parts.append(attention(rows, k, v, self._causal))
        out, lse = (torch.cat(x) for x in zip(*parts))
        return (out, lse) if return_lse else out


class Decode(Wrapper):
    def plan(self, indptr, ids, last, q_heads, kv_heads, d, page_size, **types):
        self._q_indptr = range(len(last) + 1)
        self._tables(indptr, ids, last, (q_heads, kv_heads, d), page_size, False, **types)


class Prefill(Wrapper):
    def plan(
        self, q_indptr, indptr, ids, last, q_heads, kv_heads, d, page_size, causal=False, **types
    ):
        self._q_indptr = q_indptr.tolist()
        self._tables(indptr, ids, last, (q_heads, kv_heads, d), page_size, causal, **types)


class Cascade:
    def __init__(self, num_levels, workspace, kv_layout):
        self._batch_prefill_wrappers = [Prefill(workspace, kv_layout) for _ in range(num_levels)]

    def plan(self, q_indptr, indptr, ids, last, *heads, causal=False, **types):
        wrappers = self._batch_prefill_wrappers
        for i, one in enumerate(wrappers):
            assert one._backend in ("fa2", "fa3")
            own = causal and i == len(wrappers) - 1
            one.plan(q_indptr[i], indptr[i], ids[i], last[i], *heads, causal=own, **types)

    def run(self, q, kv):
        from peers.merge import merge_eager

        return merge_eager(
            [one.run(q, kv, return_lse=True) for one in self._batch_prefill_wrappers]
        )


FA3_MODULES = ("fa3_fwd_interface", "flash_attn_interface", "sgl_kernel.flash_attn")


@pytest.fixture(params=FA3_MODULES)
def fa3(request, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for name in FA3_MODULES:
        monkeypatch.setitem(sys.modules, name, None)
    if "." in request.param:
        monkeypatch.setitem(sys.modules, "sgl_kernel", ModuleType("sgl_kernel"))
    monkeypatch.setitem(sys.modules, request.param, fa3_module(request.param))


@pytest.fixture
def fa4(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    monkeypatch.setitem(sys.modules, "flash_attn.cute", fa4_module())


@pytest.fixture
def flashinfer(monkeypatch):
    module = ModuleType("flashinfer")
    module.BatchDecodeWithPagedKVCacheWrapper = Decode
    module.BatchPrefillWithPagedKVCacheWrapper = Prefill
    module.MultiLevelCascadeAttentionWrapper = Cascade
    monkeypatch.setitem(sys.modules, "flashinfer", module)


def check(name: str, shape: Shape) -> None:
    problem = Problem(shape, "bf16", "cpu")
    peer = catalog.peers()[name]
    if name.endswith("-levels") and not shape.shares:
        return
    peer.check(problem)
    wanted = answer(problem)
    for config in peer.configs(problem):
        out = peer.prepare(problem, config)()
        assert out.shape == problem.q.shape and out.dtype == problem.q.dtype
        wanted.error(out, peer.rounds_levels)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
@pytest.mark.parametrize("name", ["fa3", "fa3-levels"])
def test_fa3(fa3, name, shape):
    pytest.importorskip("triton")
    check(name, shape)


@pytest.mark.parametrize("name", ["fa3", "flashinfer"])
def test_contexts_of_many_lengths(monkeypatch, flashinfer, tmp_path, name):
    monkeypatch.setitem(sys.modules, "flash_attn_interface", fa3_module("x"))
    path = tmp_path / "a_trace.jsonl"
    lengths = ((700, 40, [0, 1]), (513, 2, [0, 2]), (20, 2, [3]))
    keys = ("input_length", "output_length", "hash_ids")
    path.write_text("".join(json.dumps(dict(zip(keys, x))) + "\n" for x in lengths))
    check(name, traces.steps(str(path), 1, 3, q_heads=4, kv_heads=2)[0])


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
@pytest.mark.parametrize("name", ["fa4", "fa4-levels"])
def test_fa4(fa4, name, shape):
    pytest.importorskip("triton")
    check(name, shape)


@pytest.mark.parametrize("name", ["fa3", "fa3-levels"])
def test_a_page_size_is_the_only_one_that_is_tried(monkeypatch, name):
    for module in FA3_MODULES:
        monkeypatch.setitem(sys.modules, module, None)
    shape = dataclasses.replace(SHAPES[0], page_tokens=8)
    problem = Problem(shape, "bf16", "cpu")
    peer = catalog.peers()[name]
    monkeypatch.setitem(sys.modules, "fa3_fwd_interface", fa3_module("x"))
    with pytest.raises(Skip, match="takes no page tables"):
        peer.check(problem)
    monkeypatch.setitem(sys.modules, "flash_attn_interface", fa3_module("x"))
    peer.check(problem)
    assert {config["page_tokens"] for config in peer.configs(problem)} == {8}


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
@pytest.mark.parametrize("name", ["flashinfer", "flashinfer-levels"])
def test_flashinfer(flashinfer, name, shape):
    check(name, shape)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
def test_flex_uncompiled(monkeypatch, shape):
    monkeypatch.setattr(torch, "compile", lambda f, **options: f)
    check("torch-flex", shape)


@pytest.mark.parametrize("name", ["fa3", "fa4", "flashinfer"])
def test_what_is_missing_is_named(monkeypatch, name):
    for module in (*FA3_MODULES, "flash_attn.cute", "flashinfer"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(Skip, match=r"needs (fa3-fwd|flash-attn-4|flashinfer-python)"):
        catalog.peers()[name].check(Problem(SHAPES[0], "bf16", "cpu"))
