#!/usr/bin/env python3
"""Draws docs/transformers.svg from a record of bench/transformers_samples.py: the best of its runs.

usage: python bench/plot_samples.py docs/benchmarks/transformers-zen4-2026-11-28.jsonl docs/transformers.svg
"""  # noqa: E501

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

WAYS = {
    "samples: sdpa": ("Transformers, sdpa", "#999999", "s"),
    "samples: sdpa, prompt once": ("sdpa, prompt computed once", "#555555", "^"),
    "samples: pando_attn.generate": ("pando_attn.generate", "#d97a00", "o"),
}


def main(record: str, picture: str) -> None:
    cases: list[dict[str, Any]] = [json.loads(x) for x in Path(record).read_text().splitlines()]
    cases = [case for case in cases if case["case"] in WAYS]
    counts = sorted({case["samples"] for case in cases})
    plt.rcParams.update({"svg.hashsalt": "pando", "font.size": 9, "axes.grid": True})
    plt.rcParams.update({"grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False})
    figure, (speed, memory) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for way, (label, color, marker) in WAYS.items():
        best: dict[int, float] = {}
        kept: dict[int, float] = {}
        for case in sorted(cases, key=lambda c: c["samples"]):
            if case["case"] == way:
                n = case["samples"]
                best[n] = max(best.get(n, 0.0), case["tokens_per_s"])
                if "kv_bytes" in case:
                    kept[n] = case["kv_bytes"] / 1e6
        style = {"label": label, "color": color, "marker": marker}
        speed.plot(list(best), list(best.values()), **style)
        memory.plot(list(kept), list(kept.values()), **style)
    for axes, title in ((speed, "tokens/s, the prompt's time included"), (memory, "KV memory, MB")):
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xticks(counts, [str(n) for n in counts])
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        axes.minorticks_off()
        axes.set_xlabel(f"samples of one prompt of {cases[0]['prompt_tokens']} tokens")
    speed.legend(frameon=False)
    figure.savefig(picture, metadata={"Date": None})


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2])
