"""PyTorch tensors on the CPU and on a GPU."""

import numpy as np
import pytest
from batch import Batch

import pando_attn

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def tensors(batch, device="cpu"):
    """q, K and V of a batch as tensors."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[batch.dtype]
    arrays = (batch.q, *batch.caches())
    return [torch.from_numpy(x.astype(np.float32)).to(device, dtype) for x in arrays]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_attend_gives_tensors(device, dtype, layout):
    batch = Batch([133, 140, 129], [1, 2, 1], prefix=8, dtype=dtype, layout=layout)
    plan = batch.plan(device=device, dtype=getattr(torch, {"bf16": "bfloat16"}.get(dtype, "half")))
    q, k, v = tensors(batch, device)
    out, lse = pando_attn.attend(plan, q, k, v, layout=layout, return_lse=True)
    assert isinstance(out, torch.Tensor) and out.dtype == q.dtype and out.device == q.device
    batch.answer().check(out.float().cpu(), lse.cpu(), dtype=dtype)


# Memory of a cache [blocks, kv_heads, tokens, K beside V], in its order, as that of vLLM; of two
# layers between the blocks, where there are five.
ORDERS = [(0, 1, 2, 3), (0, 2, 1, 3), (1, 0, 2, 3), (0, 4, 1, 2, 3), (0, 4, 2, 1, 3)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("order", ORDERS)
def test_k_beside_v_in_one_tensor(order, head_dim, device):
    batch = Batch([133, 140, 129], [1, 2, 1], prefix=8, dtype="bf16", head_dim=head_dim)
    q, k, v = tensors(batch, device)
    both = torch.cat((k, v), -1).transpose(1, 2)
    shape = (*both.shape, 2)[: len(order)]
    memory = torch.full([shape[i] for i in order], torch.nan, dtype=q.dtype, device=device)
    cache = memory.permute(np.argsort(order).tolist())
    if cache.ndim == 5:
        cache = cache[..., 1]
    cache.copy_(both)
    out = pando_attn.attend(batch.plan(device=device), q, *cache.split(head_dim, -1), layout="HND")
    batch.answer().check(out.float().cpu(), dtype="bf16")


def test_attend_agrees_with_numpy():
    batch = Batch([133, 140], [1, 3], prefix=8)
    plan = batch.plan()
    want = pando_attn.attend(plan, batch.q, batch.k, batch.v)
    q, k, v = tensors(batch)
    out = torch.full_like(q, float("nan"))
    assert pando_attn.attend(plan, q, k, v, out=out) is out
    assert np.array_equal(out.numpy(), want)
    # Tensors and arrays may be mixed.
    assert np.array_equal(pando_attn.attend(plan, q, batch.k, v).numpy(), want)


def test_page_tables_may_be_tensors():
    batch = Batch([133, 140], [1, 3], prefix=8)
    plan = pando_attn.plan(
        torch.from_numpy(batch.q_indptr),
        torch.tensor(batch.kv_lens),
        torch.from_numpy(batch.page_indptr),
        torch.from_numpy(batch.page_ids).long(),
        16,
        q_heads=4,
        kv_heads=2,
        head_dim=64,
        dtype=torch.float32,
    )
    assert plan.json() == batch.plan().json()


def test_tensors_that_require_grad_are_refused():
    batch = Batch([33], [1])
    plan = batch.plan()
    q, k, v = tensors(batch)
    want = pando_attn.attend(plan, q, k, v)
    with pytest.raises(ValueError, match="q: got a tensor that requires grad"):
        pando_attn.attend(plan, q.requires_grad_(), k, v)
    with pytest.raises(ValueError, match="v_cache: got a tensor that requires grad"):
        pando_attn.attend(plan, q.detach(), k, v.requires_grad_())
    with torch.no_grad():
        assert torch.equal(pando_attn.attend(plan, q, k, v), want)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda x: x.double(), TypeError, "q: got dtype float64"),
        (lambda x: x.to(torch.int16), TypeError, "q: got dtype int16"),
        (lambda x: x[0], ValueError, "q: got shape"),
        (lambda x: x.expand(7, 4, 64), ValueError, "q: got shape"),
        (lambda x: x.mT.contiguous().mT, ValueError, "q: got a stride of 4 in the last dimension"),
        (lambda x: x.to("meta"), (ValueError, TypeError, NotImplementedError), "q: "),
        (lambda x: x.to_sparse(), (ValueError, TypeError, NotImplementedError), "q: "),
    ],
)
def test_wrong_tensors_are_named(change, error, text):
    batch = Batch([33], [1])
    q, k, v = tensors(batch)
    with pytest.raises(error, match=text):
        pando_attn.attend(batch.plan(), change(q), k, v)


@pytest.mark.cuda
def test_tensors_of_the_wrong_device_are_refused():
    batch = Batch([33], [1], dtype="bf16")
    q, k, v = tensors(batch, "cuda")
    with pytest.raises(TypeError, match="q: got memory of CUDA device 0, want that of the host"):
        pando_attn.attend(batch.plan(), q, k, v)
    with pytest.raises(TypeError, match="k_cache: got memory of the host"):
        pando_attn.attend(batch.plan(device="cuda"), q, k.cpu(), v)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_shared_prefix_attention_gives_tensors(device, dtype):
    q, k, own, shared = (
        torch.randn(shape).to(device, dtype)
        for shape in [(4, 2, 8, 64), (4, 16, 2, 64), (4, 16, 2, 64), (2, 1, 32, 2, 64)]
    )
    out, lse = pando_attn.shared_prefix_attention(
        q, k, own, [shared[0]], [shared[1]], return_lse=True
    )
    whole_k, whole_v = (
        torch.cat([x.expand(4, -1, -1, -1), y], 1).float().repeat_interleave(4, 2).transpose(1, 2)
        for x, y in ((shared[0], k), (shared[1], own))
    )
    mask = torch.ones(2, 48, dtype=torch.bool, device=device).tril(46)
    want = torch.nn.functional.scaled_dot_product_attention(
        q.float().transpose(1, 2), whole_k, whole_v, attn_mask=mask
    ).transpose(1, 2)
    assert out.shape == q.shape and lse.shape == (4, 2, 8) and out.dtype == dtype
    assert (out.float() - want).abs().max() < 3 * torch.finfo(dtype).eps * want.abs().max()


@pytest.mark.cuda
def test_attend_follows_the_current_stream():
    batch = Batch([4000] * 8, [1] * 8, prefix=200, dtype="bf16")
    plan = batch.plan(device="cuda")
    q, k, v = tensors(batch, "cuda")
    want = pando_attn.attend(plan, q, k, v)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        late = torch.zeros_like(q)
        torch.cuda._sleep(20_000_000)
        late.copy_(q)
        got = pando_attn.attend(plan, late, k, v)
    stream.synchronize()
    assert torch.equal(got, want)


@pytest.mark.cuda
def test_graph_is_replayed_after_an_update():
    batch = Batch([4000] * 8, [1] * 8, prefix=200, dtype="bf16")
    plan = batch.plan(device="cuda")
    q, k, v = tensors(batch, "cuda")
    out = torch.empty_like(q)
    graph = torch.cuda.CUDAGraph()
    pando_attn.attend(plan, q, k, v, out=out)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        plan.upload()
        pando_attn.attend(plan, q, k, v, out=out)
    shorter = Batch([3990] * 8, [1] * 8, prefix=200, dtype="bf16")
    plan.update(shorter.q_indptr, shorter.kv_lens, batch.page_indptr, batch.page_ids)
    out.zero_()
    graph.replay()
    torch.cuda.synchronize()
    fresh = batch.plan(device="cuda")
    fresh.update(shorter.q_indptr, shorter.kv_lens, batch.page_indptr, batch.page_ids)
    assert torch.equal(out, pando_attn.attend(fresh, q, k, v))


@pytest.mark.cuda
def test_a_graph_takes_page_ids_in_a_buffer_that_is_longer_than_the_tables():
    batch = Batch([400] * 8, [1] * 8, prefix=20, dtype="bf16")
    plan = batch.plan(device="cuda")
    q, k, v = tensors(batch, "cuda")
    want = pando_attn.attend(plan, q, k, v)
    out = torch.empty_like(q)
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        plan.upload()
        pando_attn.attend(plan, q, k, v, out=out)
    buffer = np.concatenate([batch.page_ids, np.full(1 << 24, -1, np.int32)])
    plan.update(batch.q_indptr, batch.kv_lens, batch.page_indptr, buffer)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, want)
