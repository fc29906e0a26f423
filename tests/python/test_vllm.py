"""The attention backend of vLLM, called as vLLM calls it."""

import importlib.util
import os
import subprocess
import sys
import types

import numpy as np
import oracle
import pytest
from batch import Batch

torch = pytest.importorskip("torch")
if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed", allow_module_level=True)
pytestmark = pytest.mark.torch

from vllm.v1.attention.backend import AttentionType, CommonAttentionMetadata  # noqa: E402
from vllm.v1.attention.backends import registry  # noqa: E402
from vllm.v1.kv_cache_interface import FullAttentionSpec  # noqa: E402
from vllm.v1.kv_cache_layout import KVCacheLayout  # noqa: E402

import pando_attn.vllm  # noqa: E402
from pando_attn.vllm._backend import PandoBackend  # noqa: E402
from pando_attn.vllm._impl import PandoImpl  # noqa: E402
from pando_attn.vllm._metadata import PandoMetadataBuilder  # noqa: E402

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LAYER = types.SimpleNamespace(_k_scale=torch.ones(()), _v_scale=torch.ones(()))
PATH = "pando_attn.vllm._backend.PandoBackend"


def tensor(x, dtype, device):
    return torch.from_numpy(x.astype(np.float32)).to(device, DTYPES[dtype])


class Step:
    """A batch as vLLM's model runner has it: a cache of one of its layouts, full of NaN, and the
    new tokens of each sequence, which are not in it yet."""

    def __init__(self, batch, device="cpu", layout=KVCacheLayout.LBHNC, padding=0):
        self.batch = batch
        heads, size, dim = batch.kv_heads, batch.page_tokens, batch.head_dim
        shape = (2, batch.num_pages, heads, size, 2 * dim)  # of two layers; this is the second
        memory = torch.full([shape[i] for i in layout.stride_order], torch.nan)
        memory = memory.to(device, DTYPES[batch.dtype])
        inverse = np.argsort(layout.stride_order).tolist()
        self.cache = memory.permute(inverse)[1]
        assert self.cache.shape == shape[1:]
        q, k, v = [], [], []
        slots = []
        self.old = []
        for b, (q_len, kv_len) in enumerate(zip(batch.q_lens, batch.kv_lens)):
            of = np.array(
                [batch.tables[b][p // size] * size + p % size for p in range(kv_len)], np.int64
            )
            self.old.append(of[: kv_len - q_len])
            slots.append(of[kv_len - q_len :])
        slots, q = np.concatenate(slots), batch.q
        k, v = (x.reshape(-1, heads, dim)[slots] for x in (batch.k, batch.v))
        rows = np.arange(len(q) + padding) % len(q)  # what is padded with is not to be seen
        self.q, self.k, self.v = (tensor(x[rows], batch.dtype, device) for x in (q, k, v))
        self.slots = torch.from_numpy(slots).to(device)
        width = max(map(len, batch.tables))
        table = np.zeros((len(batch.kv_lens) + 1, width + 3), np.int32)
        for row, pages in zip(table, batch.tables):
            row[: len(pages)] = pages
        self.table = torch.from_numpy(table).to(device)
        self.device = device

    def fill(self, impl):
        """What earlier steps have written."""
        old = np.concatenate(self.old)
        k, v = (
            tensor(x.reshape(-1, *x.shape[2:])[old], self.batch.dtype, self.device)
            for x in (self.batch.k, self.batch.v)
        )
        impl.do_kv_cache_update(
            layer(self), k, v, self.cache, torch.from_numpy(old).to(self.device)
        )

    def common(self, **changes):
        lengths = torch.tensor(self.batch.kv_lens, dtype=torch.int32)
        rows = torch.from_numpy(self.batch.q_indptr)
        given = {
            "query_start_loc": rows.to(self.device),
            "query_start_loc_cpu": rows,
            "seq_lens": lengths.to(self.device),
            "num_reqs": len(lengths),
            "num_actual_tokens": int(rows[-1]),
            "max_query_len": max(self.batch.q_lens),
            "max_seq_len": int(lengths.max()),
            "block_table_tensor": self.table,
            "slot_mapping": self.slots,
        }
        return CommonAttentionMetadata(**{**given, **changes})

    def builder(self):
        spec = FullAttentionSpec(
            block_size=self.batch.page_tokens,
            num_kv_heads=self.batch.kv_heads,
            head_size=self.batch.head_dim,
            dtype=DTYPES[self.batch.dtype],
        )
        return PandoMetadataBuilder(spec, ["layer"], None, torch.device(self.device))

    def impl(self, **options):
        of = self.batch
        given = {"num_kv_heads": of.kv_heads, **options}
        return PandoImpl(of.q_heads, of.head_dim, of.head_dim**-0.5, **given)

    def run(self, metadata=None, **options):
        """The output, with rows of padding that must not be written."""
        impl = self.impl(**options)
        self.fill(impl)
        impl.do_kv_cache_update(layer(self), self.k, self.v, self.cache, self.slots)
        if metadata is None:
            metadata = self.builder().build(0, self.common())
        out = torch.full_like(self.q, 7)
        impl.forward(None, self.q, self.k, self.v, self.cache, metadata, out)
        rows = int(self.batch.q_indptr[-1])
        assert (out[rows:] == 7).all()
        return out[:rows].float().cpu().numpy()


def layer(step):
    return types.SimpleNamespace(
        _k_scale=LAYER._k_scale.to(step.device), _v_scale=LAYER._v_scale.to(step.device)
    )


def batch(device="cpu", **options):
    dtype = "bf16" if device == "cuda" else "fp32"
    given = {"kv_lens": [40, 61, 33, 16], "q_lens": [1, 3, 5, 16], "prefix": 1, "dtype": dtype}
    return Batch(**{**given, **options})


@pytest.mark.parametrize("layout", list(KVCacheLayout))
@pytest.mark.parametrize("device", DEVICES)
def test_every_layout_of_the_cache(layout, device):
    of = batch(device)
    of.answer().check(Step(of, device, layout, padding=5).run(), dtype=of.dtype)


@pytest.mark.parametrize("size", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("device", DEVICES)
def test_every_size_of_a_block(size, device):
    assert size in PandoBackend.get_supported_kernel_block_sizes()
    of = batch(device, page_tokens=size, kv_lens=[size + 1, 2 * size, size + 5, size])
    of.answer().check(Step(of, device).run(), dtype=of.dtype)


@pytest.mark.parametrize("device", DEVICES)
def test_windows_caps_and_sinks(device):
    sinks = np.array([0.5, -1, 2, 0], np.float32)
    of = batch(device, options={"window": 9, "soft_cap": 3.0}, sinks=sinks)
    options = {"sliding_window": 9, "logits_soft_cap": 3.0}
    for kind in (torch.float32, torch.bfloat16):  # as a model may have them; these are exact
        given = torch.nn.Parameter(torch.from_numpy(sinks).to(device, kind))
        of.answer().check(Step(of, device).run(sinks=given, **options), dtype=of.dtype)


def test_blocks_that_have_left_a_window_are_the_null_block():
    of = batch(kv_lens=[100, 90], q_lens=[1, 1], prefix=0, options={"window": 20})
    step = Step(of)
    want = of.answer()
    step.table[:2, :4] = 0  # as vLLM has them once they are freed
    step.cache[0] = torch.nan
    impl = step.impl(sliding_window=20)
    step.old = [slots[70:] for slots in step.old]
    assert not any((np.concatenate(step.old) // 16 == 0).tolist()), "the test's own pages"
    step.fill(impl)
    impl.do_kv_cache_update(layer(step), step.k, step.v, step.cache, step.slots)
    out = torch.empty_like(step.q)
    impl.forward(None, step.q, None, None, step.cache, step.builder().build(0, step.common()), out)
    want.check(out.numpy())


def test_slots_of_nobody_are_not_written():
    of = batch()
    step = Step(of)
    before = step.cache.clone()
    slots = torch.full((5,), -1)
    step.impl().do_kv_cache_update(LAYER, step.k, step.v, step.cache, slots)
    assert torch.equal(step.cache.nan_to_num(), before.nan_to_num())


def test_layers_of_a_step_share_a_plan_and_steps_update_it(plan_updates):
    of = batch(prefix=1, kv_lens=[40, 40, 40], q_lens=[1, 1, 1])
    step = Step(of)
    builder = step.builder()
    plans = set()
    for _ in range(3):
        metadata = builder.build(0, step.common())
        step.run(metadata)
        step.run(metadata)
        step.run(metadata, sliding_window=4)  # a plan of its own
        plan = metadata.plan(step.q, of.kv_heads, step.impl()._scoring)
        plans.add(plan.handle)
    assert len(plan_updates) == 6
    assert len(plans) == 1
    root = plan.segments()[0]
    assert (root.token_end, root.sequences) == (16, 3)


def test_while_vllm_measures_memory_the_output_is_zero():
    step = Step(batch())
    out = torch.full_like(step.q, torch.nan)
    step.impl().forward(None, step.q, step.k, step.v, step.cache, None, out)
    assert (out == 0).all()


def test_batch_invariance_of_vllm(monkeypatch):
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    of = batch(kv_lens=[700, 650], q_lens=[1, 1], prefix=2)
    together = Step(of).run()
    of.answer().check(together)
    step = Step(of)
    alone = step.common(
        query_start_loc_cpu=torch.tensor([0, 1], dtype=torch.int32),
        seq_lens=torch.tensor([700], dtype=torch.int32),
        num_reqs=1,
        num_actual_tokens=1,
    )
    metadata = step.builder().build(0, alone)
    impl = step.impl()
    step.fill(impl)
    impl.do_kv_cache_update(layer(step), step.k, step.v, step.cache, step.slots)
    out = torch.zeros_like(step.q)
    impl.forward(None, step.q, step.k, step.v, step.cache, metadata, out)
    assert np.array_equal(out[0].numpy(), together[0])
    shape = next(iter(metadata.plans._plans))
    assert shape.batch_invariant


def test_it_registers_as_custom(monkeypatch):
    custom, cpu = registry.AttentionBackendEnum.CUSTOM, registry.AttentionBackendEnum.CPU_ATTN
    monkeypatch.setattr(registry, "_ATTN_OVERRIDES", {})
    monkeypatch.delenv("PANDO_VLLM_CPU", raising=False)
    for _ in range(2):
        pando_attn.vllm.register()
        assert custom.get_class() is PandoBackend
        assert cpu.get_path() != PATH
    assert registry.AttentionBackendEnum[PandoBackend.get_name()] is custom
    monkeypatch.setenv("PANDO_VLLM_CPU", "1")
    pando_attn.vllm.register()
    assert cpu.get_path() == PATH


def test_it_leaves_another_plug_in_where_it_is(monkeypatch):
    custom = registry.AttentionBackendEnum.CUSTOM
    monkeypatch.setattr(registry, "_ATTN_OVERRIDES", {custom: "another.Backend"})
    with pytest.warns(UserWarning, match=r"CUSTOM: got another.Backend already"):
        pando_attn.vllm.register()
    assert custom.get_path() == "another.Backend"


def test_an_older_vllm_starts_without_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm.v1.attention.backends.registry", None)
    with pytest.warns(UserWarning, match=r"vllm: got a version without a registry"):
        pando_attn.vllm.register()


def reasons(**changes):
    from vllm.platforms.interface import DeviceCapability

    given = {
        "head_size": 128,
        "dtype": torch.bfloat16,
        "kv_cache_dtype": "auto",
        "block_size": 16,
        "use_mla": False,
        "has_sink": True,
        "use_sparse": False,
        "use_mm_prefix": False,
        "use_per_head_quant_scales": False,
        "device_capability": DeviceCapability(9, 0),
        "attn_type": AttentionType.DECODER,
        "has_sliding_window": True,
        "use_batch_invariant": True,
    }
    if "capability" in changes:
        changes["device_capability"] = DeviceCapability(*changes.pop("capability"))
    return PandoBackend.validate_configuration(**{**given, **changes})


def test_what_vllm_is_told_before_it_chooses():
    from vllm.platforms import current_platform

    assert reasons() == []
    for refused, words in (
        ({"head_size": 12}, "head_size not supported"),
        ({"head_size": 576}, "head_size not supported"),
        ({"kv_cache_dtype": "fp8_e5m2"}, "kv_cache_dtype not supported"),
        ({"block_size": 24}, "block_size not supported"),
        ({"use_mla": True}, "MLA not supported"),
        ({"use_sparse": True}, "sparse not supported"),
        ({"use_mm_prefix": True}, "partial multimodal token full attention not supported"),
        ({"attn_type": AttentionType.ENCODER_ONLY}, "attention type"),
        ({"use_non_causal": True}, "non-causal attention not supported"),
        ({"use_dcp": True}, "DCP not supported"),
        ({"use_pcp": True}, "PCP not supported"),
        ({"use_adaptive_verification": True}, "device-cpu query lens mismatch"),
        ({"capability": (8, 0)}, "compute capability not supported"),
        ({"capability": (10, 0)}, "compute capability not supported"),
    ):
        assert any(words in reason for reason in reasons(**refused)), refused
    if not current_platform.is_cpu():
        assert any("dtype: got 128 x fp32" in reason for reason in reasons(dtype=torch.float32))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"alibi_slopes": [1.0]}, "alibi_slopes: got some"),
        ({"attn_type": AttentionType.ENCODER}, "attn_type: got"),
        ({"kv_cache_dtype": "fp8_e5m2"}, "kv_cache_dtype: got fp8_e5m2, want one of auto"),
    ],
)
def test_layers_that_are_refused(options, message):
    with pytest.raises(NotImplementedError, match=message):
        Step(batch()).impl(**options)


def test_steps_that_are_refused():
    step = Step(batch())
    for causal in (False, torch.ones(4, dtype=torch.bool)):
        with pytest.raises(NotImplementedError, match="causal: got"):
            step.builder().build(0, step.common(causal=causal))
    metadata = step.builder().build(0, step.common())
    with pytest.raises(NotImplementedError, match="output_scale: got one"):
        step.impl().forward(
            None, step.q, step.k, step.v, step.cache, metadata, step.q, torch.ones(())
        )
    with pytest.raises(NotImplementedError, match=r"query: got torch\.float64"):
        step.impl().forward(None, step.q.double(), None, None, step.cache, metadata, step.q)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs 2 cores")
def test_threads_are_not_bound_to_the_core_of_the_one_that_makes_them():
    code = """
import os, torch
from pando_attn.vllm._threads import make_threads
torch.ones(1 << 20).sum()
bound = set(os.listdir("/proc/self/task"))
mine = os.sched_getaffinity(0)
make_threads()
new = set(os.listdir("/proc/self/task")) - bound
print([sorted(mine), *(sorted(os.sched_getaffinity(int(t))) for t in new)])
assert os.sched_getaffinity(0) == mine
"""
    first, second = sorted(os.sched_getaffinity(0))[:2]
    env = {"GOMP_CPU_AFFINITY": f"{first} {second}", "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **env}, capture_output=True, text=True
    )
    assert done.stdout.strip() == str([[first], [first, second]]), done.stderr


def test_the_oracle_of_these_tests_knows_the_types():
    assert set(DTYPES) == set(oracle.NUMPY_DTYPES)
