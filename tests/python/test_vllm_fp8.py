"""The attention backend of vLLM on a cache of fp8, called as vLLM calls it."""

import importlib.util
import types

import numpy as np
import pytest

torch = pytest.importorskip("torch")
if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed", allow_module_level=True)
pytestmark = pytest.mark.torch

from test_vllm import DEVICES, DTYPES, Step, batch  # noqa: E402
from vllm.platforms import current_platform  # noqa: E402
from vllm.v1.kv_cache_layout import KVCacheLayout  # noqa: E402

from pando_attn.vllm._backend import PandoBackend, why_not  # noqa: E402


def run(of, device, k_scale, v_scale, kv_cache_dtype="fp8", layout=KVCacheLayout.LBHNC):
    """The output, over a cache of bytes that are NaN where nothing was written."""
    step = Step(of, device, layout, padding=5)
    step.cache = torch.full_like(step.cache, 0, dtype=torch.uint8).fill_(0x7F)
    scales = (torch.tensor(s, dtype=torch.float32, device=device) for s in (k_scale, v_scale))
    layer = types.SimpleNamespace(**dict(zip(("_k_scale", "_v_scale"), scales)))
    impl = step.impl(kv_cache_dtype=kv_cache_dtype)
    old = np.concatenate(step.old)
    k, v = (
        torch.from_numpy(x.reshape(-1, *x.shape[2:])[old].astype(np.float32))
        .to(device, DTYPES[of.dtype])
        for x in (of.k, of.v)
    )  # fmt: skip
    impl.do_kv_cache_update(layer, k, v, step.cache, torch.from_numpy(old).to(device))
    impl.do_kv_cache_update(layer, step.k, step.v, step.cache, step.slots)
    out = torch.full_like(step.q, 7)
    metadata = step.builder().build(0, step.common())
    impl.forward(layer, step.q, None, None, step.cache, metadata, out)
    rows = int(of.q_indptr[-1])
    assert (out[rows:] == 7).all()
    return out[:rows].float().cpu().numpy()


def rounded(x, scale):
    per_head = np.broadcast_to(np.float32(scale), x.shape[2:3])[:, None]
    fp8 = torch.from_numpy(x.astype(np.float32) / per_head).clamp(-448, 448)
    return fp8.to(torch.float8_e4m3fn).float().numpy().astype(np.float64) * per_head


SCALES = {
    "none": (1.0, 1.0),  # as without any in the checkpoint
    "tensor": (0.02, 0.5),
    "saturates": (0.004, 0.003),
    "heads": ([0.02, 0.5], [0.25, 0.03]),
}


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("device", DEVICES)
def test_fp8_is_right(name, device):
    k_scale, v_scale = SCALES[name]
    of = batch(device)
    got = run(of, device, k_scale, v_scale)
    of.k, of.v = rounded(of.k, k_scale), rounded(of.v, v_scale)
    of.answer().check(got, dtype=of.dtype)


@pytest.mark.parametrize("layout", list(KVCacheLayout))
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_every_layout_of_a_cache_of_bytes(layout, dtype):
    of = batch(dtype=dtype)
    got = run(of, "cpu", 0.02, 0.02, "fp8_e4m3", layout)
    of.k, of.v = rounded(of.k, 0.02), rounded(of.v, 0.02)
    of.answer().check(got, dtype=dtype)


def test_vllm_is_told_what_is_supported():
    assert PandoBackend.supports_per_head_quant_scales()
    for dtype in ("fp8", "fp8_e4m3"):
        assert PandoBackend.supports_kv_cache_dtype(dtype)
        assert why_not(128, torch.bfloat16, fp8=True) is None
        assert PandoBackend.supports_combination(64, torch.bfloat16, dtype) is None
    assert not PandoBackend.supports_kv_cache_dtype("fp8_e5m2")
    if not current_platform.is_cpu():
        reason = PandoBackend.supports_combination(256, torch.bfloat16, "fp8")
        assert reason is not None and reason.startswith("head_dim: got 256 with fp8 KV")
        assert PandoBackend.supports_combination(256, torch.bfloat16, "auto") is None
