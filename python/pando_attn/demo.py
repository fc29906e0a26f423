"""``python -m pando_attn.demo``: a forest, what is shared in it, and what that gains."""

from __future__ import annotations

import time

import numpy as np

import pando_attn

PAGE_TOKENS, Q_HEADS, KV_HEADS, HEAD_DIM = 16, 32, 8, 128
RUNS = 15


def decode_batch() -> tuple[list[list[int]], list[int], int]:
    """Page tables, lengths and number of pages: a prompt, two longer ones of it, own tokens."""
    rng = np.random.default_rng(7)
    pages = 0

    def fresh(tokens: int) -> list[int]:
        nonlocal pages
        first, pages = pages, pages + -(-tokens // PAGE_TOKENS)
        return list(range(first, pages))

    root = fresh(1536)
    branches = [fresh(512), fresh(1024)]
    tables, lens = [], []
    for prefix, count in [(root, 12), (root + branches[0], 12), (root + branches[1], 12), ([], 1)]:
        for _ in range(count):
            own = int(rng.integers(16, 92)) if prefix else 700
            tables.append(prefix + fresh(own))
            lens.append(len(prefix) * PAGE_TOKENS + own)
    return tables, lens, pages


def oracle(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, float]:
    """One sequence in fp64: q [q_heads, d], k and v [tokens, kv_heads, d]; and its largest LSE."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    grouped = q.reshape(KV_HEADS, -1, HEAD_DIM)
    scores = np.einsum("hgd,thd->hgt", grouped, k) / np.sqrt(HEAD_DIM)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    sums = weights.sum(-1, keepdims=True)
    out = np.einsum("hgt,thd->hgd", weights, v) / sums
    lse = scores.max(-1, keepdims=True) + np.log(sums)
    return out.reshape(Q_HEADS, HEAD_DIM), float(np.abs(lse).max())


def picture(plan: pando_attn.Plan) -> list[str]:
    """One line for each segment that several sequences hold, one for the own tokens below it."""
    segments = plan.segments()
    lines = []
    for i, s in enumerate(segments):
        if s.sequences > 1:
            verdict = "read once" if s.shared else "not shared: see plan.explain()"
            bar = "█" * max(1, s.token_end - s.token_begin >> 6)
            tokens = s.token_end - s.token_begin
            lines.append(
                f"{'   ' * s.depth}{bar} {tokens} tokens of {s.sequences} sequences  {verdict}"
            )
        own = [c.token_end - c.token_begin for c in segments if c.parent == i and c.sequences == 1]
        if own:
            lines.append(f"{'   ' * (s.depth + 1)}░ {len(own)} × {min(own)}–{max(own)} own tokens")
    own = [s.token_end for s in segments if s.parent < 0 and s.sequences == 1]
    return lines + [f"░ {tokens} own tokens" for tokens in own]


def main() -> None:
    """Prints the demo; exits with 1 when the result is wrong."""
    try:
        import ml_dtypes

        name, dtype, epsilon = "bf16", np.dtype(ml_dtypes.bfloat16), 2.0**-7
    except ImportError:
        name, dtype, epsilon = "fp32", np.dtype(np.float32), 2.0**-23
    tables, lens, num_pages = decode_batch()
    rng = np.random.default_rng(0)
    shape = (num_pages, PAGE_TOKENS, KV_HEADS, HEAD_DIM)
    k, v = (rng.standard_normal(shape, np.float32).astype(dtype) for _ in range(2))
    q = rng.standard_normal((len(lens), Q_HEADS, HEAD_DIM), np.float32).astype(dtype)

    indptr = np.cumsum([0, *map(len, tables)])
    plans = {
        share: pando_attn.plan(
            np.arange(len(lens) + 1),
            lens,
            indptr,
            np.concatenate(tables),
            PAGE_TOKENS,
            q_heads=Q_HEADS,
            kv_heads=KV_HEADS,
            head_dim=HEAD_DIM,
            dtype=name,
            share=share,
        )
        for share in ("none", "auto")
    }
    plan = plans["auto"]
    print(
        f"\n  pando_attn {pando_attn.__version__}  one decode step of {len(lens)} sequences: "
        f"{Q_HEADS} query heads on {KV_HEADS} kv heads of {HEAD_DIM}, {name}, "
        f"{pando_attn.simd_name()}\n"
    )
    for line in picture(plan):
        print("  " + line)
    print(
        f"\n  {sum(lens):,} tokens of context: {plan.kv_bytes / 1e6:.1f} MB of KV to read instead "
        f"of {plan.unshared_kv_bytes / 1e6:.1f} MB\n"
    )

    times: dict[str, list[float]] = {share: [] for share in plans}
    outs = {}
    for _ in range(RUNS):
        for share, one in plans.items():
            start = time.perf_counter()
            outs[share] = pando_attn.attend(one, q, k, v)
            times[share].append(1e3 * (time.perf_counter() - start))
    unshared, shared = (float(np.median(times[share])) for share in ("none", "auto"))
    print(f"  without sharing  {unshared:8.2f} ms")
    print(f"  shared           {shared:8.2f} ms   {unshared / shared:.1f}× faster")

    answers = [
        oracle(q[b], *(x[tables[b]].reshape(-1, KV_HEADS, HEAD_DIM)[: lens[b]] for x in (k, v)))
        for b in range(len(lens))
    ]
    want = np.stack([out for out, _ in answers])
    error = float(np.abs(outs["auto"].astype(np.float64) - want).max())
    # Two roundings of the largest result, and what one of the largest score does to a weight.
    largest_lse = max(lse for _, lse in answers)
    allowed = float(np.abs(want).max()) * (epsilon + 2.0**-23 * (8 + largest_lse))
    verdict = "correct" if error <= allowed else "WRONG"
    print(f"  largest error    {error:.2e}, allowed {allowed:.2e}: {verdict} (fp64 in NumPy)\n")
    if error > allowed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
