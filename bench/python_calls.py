"""What a call from Python costs on top of C++, by itself and in compiled programs; levels in plain
tensors against pages.

One JSON line for each case. The C++ side of the first ones is `attend/one-call` of
cpu_attend_bench; with --device cuda, which times the host's part of calls that find the device
idle, it is cuda_call_bench.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any, Callable

import numpy as np

import pando_attn


def measure(call: Callable[[], Any], calls: int, repeats: int = 25) -> dict[str, float]:
    """Microseconds of one call: the best and the median of some repeats of so many calls."""
    times = []
    call()
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        times.append(1e6 * (time.perf_counter() - start) / calls)
    return {"min_us": round(min(times), 3), "median_us": round(float(np.median(times)), 3)}


def record(case: str, **fields: Any) -> None:
    fields = {
        "case": case,
        "version": pando_attn.__version__,
        "cpu": pando_attn.simd_name(),
        **fields,
    }
    print(json.dumps(fields), flush=True)


def arrays(framework: str, *shapes: tuple[int, ...]) -> list[Any]:
    made = [np.zeros(shape, np.float32) for shape in shapes]
    if framework == "torch":
        import torch

        made = [torch.from_numpy(x) for x in made]
    elif framework == "jax":
        import jax

        made = [jax.numpy.asarray(x) for x in made]
    return made


def one_row() -> tuple[list[Any], pando_attn.Plan]:
    """One row, one head of 128, 16 tokens, one thread: the page tables and their plan."""
    tables = [np.array(x, np.int32) for x in ([0, 1], [16], [0, 1], [0])]
    heads = {"q_heads": 1, "kv_heads": 1, "head_dim": 128, "dtype": "fp32"}
    return tables, pando_attn.plan(*tables, 64, **heads, threads=1)


def one_call(framework: str) -> None:
    """One row, one head, 16 tokens, one thread: the call itself is what takes the time."""
    tables, plan = one_row()
    q, k, v, out = arrays(framework, (1, 1, 128), (1, 64, 1, 128), (1, 64, 1, 128), (1, 1, 128))
    calls = {
        "attend": lambda: pando_attn.attend(plan, q, k, v),
        "attend, out given": lambda: pando_attn.attend(plan, q, k, v, out=out),
        "attend, with LSE": lambda: pando_attn.attend(plan, q, k, v, return_lse=True),
        "update and attend": lambda: (
            plan.update(*tables, changed=()),
            pando_attn.attend(plan, q, k, v),
        ),
    }
    if framework == "jax":
        del calls["attend, out given"]
    for name, call in calls.items():
        record(f"one-call: {name}", framework=framework, **measure(call, 2000))


def in_programs(framework: str) -> None:
    """The same row as an operator and in compiled programs, beside a program that adds 1 to q."""
    tables, plan = one_row()
    q, k, v = arrays(framework, (1, 1, 128), (1, 64, 1, 128), (1, 64, 1, 128))
    if framework == "torch":
        import torch

        from pando_attn.torch import attend

        compiled, finish = torch.compile(fullgraph=True), lambda x: x
    else:
        import jax

        from pando_attn.jax import attend

        compiled, finish = jax.jit, jax.block_until_ready
    program, adding = compiled(lambda q: attend(plan, q, k, v)), compiled(lambda q: q + 1)
    calls = {
        "attend, outside of programs": lambda: finish(attend(plan, q, k, v)),
        "attend": lambda: finish(program(q)),
        "update and attend": lambda: (plan.update(*tables, changed=()), finish(program(q))),
        "q + 1": lambda: finish(adding(q)),
    }
    for name, call in calls.items():
        record(f"program: {name}", framework=framework, **measure(call, 500))


def decode_step() -> None:
    """Planning the next step of 64 sequences of 4096 shared and 256 own tokens."""
    pages, own = 4096 // 16, 256 // 16
    ids = np.concatenate(
        [[*range(pages), *range(pages + b * own, pages + (b + 1) * own)] for b in range(64)]
    ).astype(np.int32)
    rows, lens = np.arange(65, dtype=np.int32), np.full(64, 4096 + 250, np.int32)
    indptr = rows * np.int32(pages + own)
    plan = pando_attn.plan(rows, lens, indptr, ids, 16, q_heads=32, kv_heads=8, head_dim=128)
    for name, changed in (("update with changed=()", ()), ("update, found anew", None)):
        call = lambda: plan.update(rows, lens, indptr, ids, changed=changed)  # noqa: E731, B023
        record(f"64 sequences, 17408 page ids: {name}", **measure(call, 50))


def levels(dtype: str, sequences: int, prefix: int, own: int) -> None:
    """A prefix in a tensor of its own against the same tokens in pages of one pool."""
    import ml_dtypes

    rng = np.random.default_rng(0)
    element = np.dtype(ml_dtypes.bfloat16 if dtype == "bf16" else np.float32)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32).astype(element)

    page = 64
    pages = (prefix + sequences * own) // page
    k, v = normal(pages, page, 8, 128), normal(pages, page, 8, 128)
    q = normal(sequences, 32, 128)
    table = np.concatenate(
        [
            np.tile(np.arange(prefix // page), (sequences, 1)),
            prefix // page + np.arange(sequences * own // page).reshape(sequences, -1),
        ],
        axis=1,
    )
    rows = np.arange(sequences + 1)
    batch = (rows, [prefix + own] * sequences, None, table, page)
    heads = {"q_heads": 32, "kv_heads": 8, "head_dim": 128, "dtype": dtype}
    plans = {share: pando_attn.plan(*batch, **heads, share=share) for share in ("auto", "none")}
    flat_k, flat_v = (x.reshape(-1, 8, 128) for x in (k, v))
    shared = [[x[:prefix][None].copy()] for x in (flat_k, flat_v)]
    own_kv = [x[prefix:].reshape(sequences, own, 8, 128).copy() for x in (flat_k, flat_v)]
    calls = {
        "pages, shared": lambda: pando_attn.attend(plans["auto"], q, k, v),
        "levels": lambda: pando_attn.shared_prefix_attention(q, *own_kv, *shared),
        "pages, not shared": lambda: pando_attn.attend(plans["none"], q, k, v),
    }
    results = {name: call().astype(np.float32) for name, call in calls.items()}
    for name, call in calls.items():
        error = float(np.abs(results[name] - results["pages, not shared"]).max())
        shape = f"{sequences} x 32/8 x 128, {prefix} + {own} tokens, {dtype}"
        record(f"{shape}: {name}", difference=error, **measure(call, 1))


def measure_host(call: Callable[[], Any], wait: Callable[[], Any]) -> dict[str, float]:
    """Microseconds until a call returns, whose work the device has yet to do."""
    times = []
    for _ in range(300):
        wait()
        start = time.perf_counter()
        call()
        times.append(1e6 * (time.perf_counter() - start))
    wait()
    return {"min_us": round(min(times), 3), "median_us": round(float(np.median(times)), 3)}


def on_cuda(framework: str) -> None:
    """The host's part of calls on a GPU, of PyTorch or CuPy; the batches of cuda_call_bench."""
    import importlib

    module = importlib.import_module(framework)
    operator = None
    if framework == "torch":
        from pando_attn.torch import attend as operator

        wait, options = module.cuda.synchronize, {"dtype": module.bfloat16, "device": "cuda"}
    else:  # CuPy, which has no bf16
        wait, options = module.cuda.runtime.deviceSynchronize, {"dtype": np.float16}

    def zeros(*shape: int) -> Any:
        return module.zeros(shape, **options)

    pages, own = 4096 // 16, 256 // 16
    ids = np.concatenate(
        [[*range(pages), *range(pages + b * own, pages + (b + 1) * own)] for b in range(64)]
    ).astype(np.int32)
    rows = np.arange(65, dtype=np.int32)
    batches = {
        "one row": ([np.array(x, np.int32) for x in ([0, 1], [16], [0, 1], [0])], 1, 1, 1),
        "64 sequences, 17408 page ids": (
            [rows, np.full(64, 4346, np.int32), rows * np.int32(pages + own), ids],
            pages + 64 * own,
            32,
            8,
        ),
    }
    for name, (tables, num_pages, q_heads, kv_heads) in batches.items():
        q = zeros(len(tables[0]) - 1, q_heads, 128)
        k, v = (zeros(num_pages, 16, kv_heads, 128) for _ in range(2))
        heads = {"q_heads": q_heads, "kv_heads": kv_heads, "head_dim": 128}
        plan = pando_attn.plan(*tables, 16, **heads, dtype=q.dtype, device="cuda")
        out = zeros(*q.shape)

        def run(
            plan: pando_attn.Plan = plan, q: Any = q, k: Any = k, v: Any = v, out: Any = out
        ) -> Any:
            return pando_attn.attend(plan, q, k, v, out=out)

        calls = {
            "attend": run,
            "attend, out made": lambda: pando_attn.attend(plan, q, k, v),  # noqa: B023
            "update": lambda: plan.update(*tables, changed=()),  # noqa: B023
            "update and attend": lambda: (
                plan.update(*tables, changed=()),  # noqa: B023
                run(),
            ),
            "update, found anew, and attend": lambda: (plan.update(*tables), run()),  # noqa: B023
        }
        if operator:
            calls["attend, as an operator"] = lambda: operator(plan, q, k, v)  # noqa: B023
        for case, call in calls.items():
            call()
            record(f"{name}: {case}", framework=framework, **measure_host(call, wait))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frameworks", nargs="*", default=["numpy", "torch", "jax"])
    parser.add_argument(
        "--part",
        choices=["calls", "programs", "levels"],
        nargs="*",
        default=["calls", "programs", "levels"],
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    if options.device == "cuda":
        for framework in options.frameworks:
            if framework in ("torch", "cupy"):
                on_cuda(framework)
        return
    if "calls" in options.part:
        for framework in options.frameworks:
            one_call(framework)
        decode_step()
    if "programs" in options.part:
        for framework in ("torch", "jax"):
            if framework in options.frameworks:
                in_programs(framework)
    if "levels" in options.part:
        for dtype in ("bf16", "fp32"):
            levels(dtype, 32, 2048, 256)
        levels("bf16", 64, 4096, 256)


if __name__ == "__main__":
    main()
