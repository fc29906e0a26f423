"""The operator of PyTorch: compiled programs, fake tensors, CUDA graphs."""

import numpy as np
import pytest
from batch import Batch

import pando_attn

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from test_torch import DEVICES, tensors  # noqa: E402

from pando_attn.torch import attend  # noqa: E402

counters = pytest.importorskip("torch._dynamo.testing")

DTYPES = ["fp32", "bf16"]


def gqa_batch(dtype="fp32", rows=(1, 2, 1), **options):
    """Sequences of more than 8 shared pages; two query heads for each kv head."""
    return Batch([129 + 4 * b for b in range(len(rows))], list(rows), 8, dtype=dtype, **options)


def compiled(function, backend="inductor"):
    """The compiled function, and what counts its compilations."""
    torch._dynamo.reset()
    counter = counters.CompileCounterWithBackend(backend)
    return torch.compile(function, fullgraph=True, backend=counter), counter


def update(plan, batch, kv_lens):
    plan.update(batch.q_indptr, kv_lens, batch.page_indptr, batch.page_ids)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_operator_passes_opcheck(dtype, layout):
    batch = gqa_batch(dtype, layout=layout)
    plan = batch.plan()
    torch.library.opcheck(
        torch.ops.pando_attn.attend.default, (*tensors(batch), plan.handle, layout)
    )


@pytest.mark.cuda
def test_operator_passes_opcheck_on_cuda():
    batch = gqa_batch("bf16")
    plan = batch.plan(device="cuda")
    torch.library.opcheck(
        torch.ops.pando_attn.attend.default, (*tensors(batch, "cuda"), plan.handle, "NHD")
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_sinks_and_a_soft_cap_are_followed(dtype):
    sinks = torch.tensor([0.5, -np.inf, 3.0, -2.0])
    batch = gqa_batch(dtype, options={"soft_cap": 2.0}, sinks=sinks.numpy())
    plan = batch.plan()
    torch.library.opcheck(
        torch.ops.pando_attn.attend.default, (*tensors(batch), plan.handle, "NHD", sinks)
    )
    run, counter = compiled(lambda q, k, v, s: attend(plan, q, k, v, sinks=s, return_lse=True))
    out, lse = run(*tensors(batch), sinks)
    assert counter.frame_count == 1
    batch.answer().check(out.float(), lse, dtype=dtype)
    with pytest.raises(ValueError, match="sinks: got a tensor that requires grad"):
        attend(plan, *tensors(batch), sinks=torch.nn.Parameter(sinks))


@pytest.mark.cuda
def test_variants_are_right_on_cuda():
    sinks = np.array([0.5, -np.inf, 3.0, -2.0], np.float32)
    tree = [0b00001, 0b00011, 0b00101, 0b01011, 0b10101]
    batch = Batch(
        [133, 90],
        [5, 5],
        prefix=4,
        head_dim=64,
        dtype="bf16",
        options={"tree_mask": tree * 2, "soft_cap": 3.0},
        sinks=sinks,
    )
    plan = batch.plan(device="cuda")
    on_cuda = torch.from_numpy(sinks).cuda()
    out, lse = attend(plan, *tensors(batch, "cuda"), sinks=on_cuda, return_lse=True)
    batch.answer().check(out.float().cpu(), lse.cpu(), dtype="bf16")
    with pytest.raises(TypeError, match="sinks: got"):
        attend(plan, *tensors(batch, "cuda"), sinks=torch.from_numpy(sinks))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_compiled_attention_is_right(device, dtype, layout):
    if device == "cuda" and dtype == "fp32":
        pytest.skip("there is no fp32 on CUDA")
    batch = gqa_batch(dtype, layout=layout)
    plan = batch.plan(device=device)
    q, k, v = tensors(batch, device)

    def layer(q, k, v):
        out, lse = attend(plan, q * 1, k, v, return_lse=True, layout=layout)
        return out * 2, lse

    run, counter = compiled(layer)
    out, lse = run(q, k, v)
    assert counter.frame_count == 1 and out.dtype == q.dtype and lse.dtype == torch.float32
    batch.answer().check(out.float().cpu() / 2, lse.cpu(), dtype=dtype)
    want = pando_attn.attend(plan, q, k, v, layout=layout)
    assert torch.equal(out, want * 2)
    assert torch.equal(attend(plan, q, k, v, layout=layout), want)


@pytest.mark.parametrize("device", DEVICES)
def test_update_compiles_nothing_and_is_seen(device):
    batch = gqa_batch("bf16")
    plan, same = batch.plan(device=device), batch.plan(device=device)
    q, k, v = tensors(batch, device)
    run, counter = compiled(lambda plan, q: attend(plan, q, k, v) + 1)
    before = None
    for kv_lens in ([129, 133, 137], [130, 134, 138], [3, 2, 100]):
        update(plan, batch, kv_lens)
        update(same, batch, kv_lens)
        got = run(plan, q)
        assert torch.equal(got, pando_attn.attend(same, q, k, v) + 1)
        assert before is None or not torch.equal(got, before)
        before = got
    assert counter.frame_count == 1


def test_many_plans_and_shapes_compile_a_few_times():
    run, counter = compiled(lambda plan, q, k, v: attend(plan, q, k, v) + 1)
    batch = gqa_batch()
    plans = [batch.plan(window=32 * i) for i in range(6)]
    for plan in plans:
        assert torch.equal(run(plan, *tensors(batch)), pando_attn.attend(plan, *tensors(batch)) + 1)
    assert counter.frame_count == 2  # for one handle, then for any
    for rows in range(4, 9):
        batch = gqa_batch(rows=[1] * rows)
        plan = batch.plan()
        assert torch.equal(run(plan, *tensors(batch)), pando_attn.attend(plan, *tensors(batch)) + 1)
    assert counter.frame_count <= 4


def test_strides_reach_the_operator():
    batch = gqa_batch()
    plan = batch.plan()
    q, k, v = tensors(batch)
    both = torch.stack([k, v], 1)  # each cache is a view with holes
    wide = torch.cat([q, q], 2)
    run, _ = compiled(lambda wide, both: attend(plan, wide[..., 64:], both[:, 0], both[:, 1]))
    assert torch.equal(run(wide, both), pando_attn.attend(plan, q, k, v))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda q: q.double(), TypeError, "q: got dtype float64, want float32, the plan's"),
        (lambda q: q[:2], ValueError, r"q: got shape \(2, 4, 64\), want \(4, 4, 64\)"),
        (lambda q: q.mT.contiguous().mT, ValueError, "q: got a stride of 4 in the last dimension"),
    ],
)
@pytest.mark.parametrize("how", [lambda f: f, lambda f: compiled(f)[0]], ids=["eager", "compiled"])
def test_errors_are_those_of_attend(how, change, error, text):
    batch = gqa_batch()
    plan = batch.plan()
    q, k, v = tensors(batch)
    with pytest.raises(error, match=text):
        pando_attn.attend(plan, change(q), k, v)
    with pytest.raises(error, match=text):
        how(lambda q: attend(plan, q, k, v))(change(q))


def test_wrong_arguments_are_named():
    batch = gqa_batch()
    plan = batch.plan()
    q, k, v = tensors(batch)
    with pytest.raises(TypeError, match=r"plan: got int, want a pando_attn\.Plan"):
        attend(plan.handle, q, k, v)
    with pytest.raises(ValueError, match="layout: got 'NDH'"):
        attend(plan, q, k, v, layout="NDH")
    with pytest.raises(TypeError, match=r"k_cache: got numpy\.ndarray, want a torch\.Tensor"):
        attend(plan, q, batch.k, v)
    for handle in (0, 2**40):
        with pytest.raises(ValueError, match=f"plan: got handle {handle}, want that of a plan"):
            torch.ops.pando_attn.attend(q, k, v, handle, "NHD")


def test_handle_of_a_plan_that_is_gone_is_refused():
    batch = gqa_batch()
    plan = batch.plan()
    handle = plan.handle
    assert batch.plan().handle != handle
    del plan
    with pytest.raises(ValueError, match=f"plan: got handle {handle}, want that of a plan that is"):
        torch.ops.pando_attn.attend(*tensors(batch), handle, "NHD")


def test_tensors_that_require_grad_are_refused():
    batch = gqa_batch()
    plan = batch.plan()
    q, k, v = tensors(batch)
    want = attend(plan, q, k, v)
    q.requires_grad_()
    text = "q: got a tensor that requires grad"
    with pytest.raises(ValueError, match=text):
        attend(plan, q, k, v)
    with pytest.raises(ValueError, match=text):
        torch.ops.pando_attn.attend(q, k, v, plan.handle, "NHD")
    torch._dynamo.reset()
    with pytest.raises(ValueError, match=text):
        torch.compile(lambda q: attend(plan, q, k, v), backend="aot_eager")(q)
    run, _ = compiled(lambda q: attend(plan, q, k, v))
    with pytest.raises(torch._dynamo.exc.Unsupported, match=text):
        run(q)
    with torch.no_grad():
        assert torch.equal(run(q), want)


def test_fake_tensors_tell_shapes():
    from torch._subclasses.fake_tensor import FakeTensorMode

    batch = gqa_batch("bf16")
    plan = batch.plan()
    with FakeTensorMode() as mode:
        out, lse = attend(plan, *map(mode.from_tensor, tensors(batch)), return_lse=True)
    assert out.shape == (4, 4, 64) and out.dtype == torch.bfloat16
    assert lse.shape == (4, 4) and lse.dtype == torch.float32


@pytest.mark.cuda
def test_compiled_graph_is_replayed_after_an_update():
    batch = Batch([4000] * 8, [1] * 8, prefix=200, dtype="bf16")
    plan, fresh = batch.plan(device="cuda"), batch.plan(device="cuda")
    q, k, v = tensors(batch, "cuda")
    run = torch.compile(lambda q: attend(plan, q, k, v) + 1, fullgraph=True, mode="reduce-overhead")
    for kv_len in (4000, 4000, 4000, 3990, 3980):  # the first ones warm up and capture
        torch.cuda.synchronize()
        update(plan, batch, [kv_len] * 8)
        update(fresh, batch, [kv_len] * 8)
        got = run(q).clone()
        assert torch.equal(got, pando_attn.attend(fresh, q, k, v) + 1)


@pytest.mark.cuda
def test_operator_follows_the_current_stream():
    batch = Batch([4000] * 8, [1] * 8, prefix=200, dtype="bf16")
    plan = batch.plan(device="cuda")
    q, k, v = tensors(batch, "cuda")
    want = attend(plan, q, k, v)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        late = torch.zeros_like(q)
        torch.cuda._sleep(20_000_000)
        late.copy_(q)
        got = attend(plan, late, k, v)
    stream.synchronize()
    assert torch.equal(got, want)


def test_numpy_and_the_operator_agree():
    batch = gqa_batch()
    plan = batch.plan()
    want = pando_attn.attend(plan, batch.q, batch.k, batch.v)
    assert np.array_equal(attend(plan, *tensors(batch)).numpy(), want)


def test_fp8_in_the_operator_and_outside():
    batch = Batch([133, 140], [1, 2], prefix=8, dtype="bf16")
    plan = batch.plan(kv_dtype=torch.float8_e4m3fn)
    q = torch.from_numpy(batch.q.view(np.uint16)).view(torch.bfloat16)
    k, v = (torch.from_numpy(x.astype(np.float32)) for x in (batch.k, batch.v))
    (k, k_scale, _), (v, v_scale, _) = pando_attn.quantize_fp8(k), pando_attn.quantize_fp8(v)
    assert k.dtype == v.dtype == torch.float8_e4m3fn
    scales = {"k_scale": k_scale, "v_scale": v_scale}
    want = pando_attn.attend(plan, q, k, v, **scales)
    assert torch.equal(attend(plan, q, k, v, **scales), want)
    assert torch.equal(attend(plan, q, k.view(torch.uint8), v, **scales), want)
    program, _ = compiled(lambda q, k, v: attend(plan, q, k, v, **scales))
    assert torch.equal(program(q, k, v), want)
    with pytest.raises(ValueError, match="v_scale: got 0 scales"):
        attend(plan, q, k, v, k_scale=k_scale)
