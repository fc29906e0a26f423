"""Context parallelism over K and V of fp8."""

import numpy as np
import pytest
from batch import Batch
from test_fp8 import quantized

import pando_attn

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from test_distributed import arguments, tables, tensors  # noqa: E402


@pytest.fixture
def two(rank_groups):
    return rank_groups(2)


def fp8_batch(by_head=True, layout="NHD"):
    """Its own K and V are what the fp8 ones stand for."""
    batch = Batch([133, 140, 9], [1, 2, 1], prefix=4, dtype="bf16", layout=layout, kv_heads=2)
    caches, scales = quantized(batch, by_head)
    return batch, [x.view(np.uint8) for x in caches], scales


def attend(rank, batch, caches, scales, collective, head_parts):
    from pando_attn.distributed import ContextParallel

    cp = ContextParallel(collective=collective, head_parts=head_parts)
    mine = cp.plan(*tables(batch), batch.page_tokens, kv_dtype="fp8", **arguments(batch))
    assert cp.rank_plan.kv_dtype == "fp8"
    q = tensors(batch, mine.pages)[0]
    k, v = (torch.from_numpy(x[mine.pages]).view(torch.float8_e4m3fn) for x in caches)
    given = {name: torch.from_numpy(x) for name, x in scales.items()}
    out, lse = cp.attend(q, k, v, return_lse=True, layout=batch.layout, **given)
    return out.float().numpy(), lse.numpy()


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("by_head", [True, False])
@pytest.mark.parametrize(
    ("collective", "head_parts"), [("all_gather", 1), ("all_gather", 2), ("all_to_all", 1)]
)
def test_fp8_kv_of_all_ranks(two, collective, head_parts, by_head, layout):
    batch, caches, scales = fp8_batch(by_head, layout)
    results = two.run(attend, batch, caches, scales, collective, head_parts)
    for out, lse in results:
        batch.answer().check(out, lse, dtype="bf16", roundings=2)
        assert np.array_equal(out, results[0][0])


def refused(rank, batch, caches, scales, change, head_parts, text):
    with pytest.raises(ValueError, match=text):
        attend(rank, batch, caches, {**scales, **change}, "all_gather", head_parts)


@pytest.mark.parametrize("head_parts", [1, 2])
def test_wrong_scales_are_refused_by_name(two, head_parts):
    batch, caches, scales = fp8_batch()
    change = {"k_scale": np.ones(3, np.float32)}
    two.run(refused, batch, caches, scales, change, head_parts, "k_scale: got .*3")
    without = {"k_scale": scales["k_scale"]}
    two.run(refused, batch, caches, without, {}, head_parts, "v_scale: got 0 scales, want 1")


def on_cuda(rank, batch, caches, scales):
    from pando_attn.distributed import ContextParallel

    cp = ContextParallel(head_parts=2)
    options = {**arguments(batch), "threads": 0, "device": "cuda", "kv_dtype": "fp8"}
    mine = cp.plan(*tables(batch), batch.page_tokens, **options)
    q = tensors(batch, mine.pages)[0].cuda()
    k, v = (torch.from_numpy(x[mine.pages]).cuda().view(torch.float8_e4m3fn) for x in caches)
    given = {name: torch.from_numpy(x).cuda() for name, x in scales.items()}
    out, lse = cp.attend(q, k, v, return_lse=True, layout=batch.layout, **given)
    return out.float().cpu().numpy(), lse.cpu().numpy()


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs 2 GPUs")
def test_fp8_kv_of_two_gpus(tmp_path):
    from ranks import Ranks

    assert not pando_attn.cuda_unavailable(0)
    batch, caches, scales = fp8_batch()
    group = Ranks(2, tmp_path, "nccl")
    try:
        for out, lse in group.run(on_cuda, batch, caches, scales):
            batch.answer().check(out, lse, dtype="bf16", roundings=2)
    finally:
        group.close()
