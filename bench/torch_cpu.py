#!/usr/bin/env python3
"""PyTorch's CPU attention on the shapes of `pando bench`, over whole contexts, one JSON line a case.

Each sequence holds its whole context contiguously, the shared prefix included, as PyTorch wants it. Decoding sees every
token, so there are three ways to say the same, and the fastest one counts:
  gqa    one call for the batch, q [batch, q_heads, 1, head_dim], enable_gqa
  rows   the same with the q heads of a group as query rows, q [batch, kv_heads, group, head_dim]
  loop   `rows`, one call a sequence
With --pando PROGRAM, `pando bench` runs the same case before and after, and the line tells both times and their ratio.
Without PyTorch there is nothing to measure, and the script says so.
"""
import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import time

# name: batch, q_heads, kv_heads, prefix, suffix; as in cli/cases/shapes_table.cc
SHAPES = {
    "l3-8": (8, 32, 8, 1024, 128),
    "l3-32": (32, 32, 8, 2048, 256),
    "mha32-a": (32, 32, 32, 1024, 128),
    "tp8": (8, 8, 1, 4000, 128),
    "noshare-64": (64, 32, 8, 0, 2048),
}
HEAD_DIM = 128
COLD_BYTES = 640 << 20  # as `pando bench`: more than any cache in sight
TOLERANCE = {"fp32": 1e-5, "bf16": 1e-2}


def tensor(np, torch, shape, dtype):
    """Normal numbers, in memory of NumPy, which asks for huge pages as `pando bench` does."""
    if dtype == "fp32":
        out = torch.from_numpy(np.empty(shape, np.float32))
    else:
        out = torch.from_numpy(np.empty(shape, np.int16)).view(torch.bfloat16)
    for part in out:
        part.copy_(torch.randn(part.shape))
    return out


def ways(torch, shape, q, k, v):
    batch, q_heads, kv_heads, _, _ = shape
    sdpa = torch.nn.functional.scaled_dot_product_attention
    rows = q.view(batch, kv_heads, q_heads // kv_heads, HEAD_DIM)

    def loop():
        parts = [sdpa(rows[i : i + 1], k[i : i + 1], v[i : i + 1]) for i in range(batch)]
        return torch.cat(parts)

    return {
        "gqa": lambda: sdpa(q, k, v, enable_gqa=q_heads != kv_heads),
        "rows": lambda: sdpa(rows, k, v),
        "loop": loop,
    }


def largest_error(np, shape, q, k, v, out):
    """Of the first and last sequence, against attention in fp64."""
    batch, q_heads, kv_heads, _, _ = shape
    worst = 0.0
    for i in {0, batch - 1}:
        rows, keys, values = (x[i].double().numpy() for x in (q, k, v))
        rows = rows.reshape(kv_heads, q_heads // kv_heads, HEAD_DIM)
        scores = rows @ keys.transpose(0, 2, 1) / np.sqrt(HEAD_DIM)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        wanted = weights @ values / weights.sum(-1, keepdims=True)
        got = out[i].double().numpy().reshape(wanted.shape)
        worst = max(worst, float(np.abs(got - wanted).max()))
    return worst


def summary(us):
    return {"median": statistics.median(us), "min": min(us), "count": len(us)}


def measure(np, torch, name, dtype, reps):
    shape = SHAPES[name]
    batch, q_heads, kv_heads, prefix, suffix = shape
    size = (batch, kv_heads, prefix + suffix, HEAD_DIM)
    bytes_of_one = 2 * batch * kv_heads * (prefix + suffix) * HEAD_DIM * (4 if dtype == "fp32" else 2)
    copies = max(1, -(-COLD_BYTES // bytes_of_one))
    q = tensor(np, torch, (batch, q_heads, 1, HEAD_DIM), dtype)
    kv = [(tensor(np, torch, size, dtype), tensor(np, torch, size, dtype)) for _ in range(copies)]
    calls = [ways(torch, shape, q, k, v) for k, v in kv]
    us = {way: [] for way in calls[0]}
    turn = 0
    for rep in range(reps + 1):
        for way, times in us.items():
            call = calls[turn % copies][way]
            begin = time.perf_counter()
            out = call()
            spent = (time.perf_counter() - begin) * 1e6
            if rep > 0:  # the first runs warm up
                times.append(spent)
            else:
                k, v = kv[turn % copies]
                error = largest_error(np, shape, q, k, v, out)
                if error > TOLERANCE[dtype]:
                    sys.exit(f"{name} {dtype} {way}: error {error} is above {TOLERANCE[dtype]}")
            turn += 1
    best = min(us, key=lambda way: statistics.median(us[way]))
    return {
        "shape": name,
        "dtype": dtype,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "way": best,
        "run_us": summary(us[best]),
        "median_us_by_way": {way: statistics.median(times) for way, times in us.items()},
        "max_err": error,
    }


def pando_bench(program, name, dtype, reps):
    command = [program, "bench", "--backend", "cpu", "--json", "--shapes", name, "--dtype", dtype]
    command += ["--scale", "1", "--reps", str(reps)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="l3-8,l3-32,mha32-a,noshare-64", help="with commas")
    parser.add_argument("--dtypes", default="bf16,fp32", help="with commas")
    parser.add_argument("--reps", type=int, default=11)
    parser.add_argument("--pando", metavar="PROGRAM", help="compare with this program")
    options = parser.parse_args()
    try:
        import numpy as np
        import torch
    except ImportError as error:
        print(f"torch_cpu: SKIPPED: {error}; install torch and numpy to measure", file=sys.stderr)
        return
    torch.set_grad_enabled(False)
    torch.manual_seed(1)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    for name in options.shapes.split(","):
        if name not in SHAPES:
            sys.exit(f"shapes: got \"{name}\", want some of {', '.join(SHAPES)}")
        for dtype in options.dtypes.split(","):
            if dtype not in TOLERANCE:
                sys.exit(f"dtypes: got \"{dtype}\", want some of {', '.join(TOLERANCE)}")
            half = (options.reps + 1) // 2
            before = options.pando and pando_bench(options.pando, name, dtype, half)
            row = measure(np, torch, name, dtype, options.reps)
            if options.pando:
                after = pando_bench(options.pando, name, dtype, half)
                runs = [before["run_us"]["median"], after["run_us"]["median"]]
                for key in ("device", "simd", "version", "commit"):
                    row[key] = after[key]
                # The slower of the two.
                row["pando_us"] = {"median": max(runs), "before": runs[0], "after": runs[1], "count": 2 * half}
                row["ratio"] = row["run_us"]["median"] / max(runs)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
