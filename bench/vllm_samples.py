#!/usr/bin/env python3
"""Samples of one prompt by an engine of vLLM, with its own attention and with Pando's.

usage: PYTHONPATH=build/python python bench/vllm_samples.py [--samples 32] [--layers 8] ...

A Llama-style model whose weights are vLLM's dummies. Each engine is a process that computes the
prompt once, which its prefix caching keeps, and then times --runs times that all samples get
--new-tokens tokens. One JSON line for each engine, in turns; then how they compare. Tokens are not
compared, since those of such weights say nothing: tests/python/test_vllm_engine.py does that.

Where there is no GPU it takes a build of vLLM for the CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def config(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": args.hidden,
        "intermediate_size": 3 * args.hidden,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.q_heads,
        "num_key_value_heads": args.kv_heads,
        "head_dim": args.head_dim,
        "vocab_size": 32000,
        "max_position_embeddings": 1 << 17,
        "torch_dtype": "bfloat16",
    }


def engine(args: argparse.Namespace) -> None:
    """One engine, in this process; prints its record."""
    import torch
    import vllm
    from vllm import LLM, SamplingParams

    import pando_attn

    cuda = torch.cuda.is_available()
    options: dict[str, Any] = {}
    if cuda and args.engine == "pando":
        options["attention_config"] = {"backend": "CUSTOM"}
    if not cuda:
        options.update(enforce_eager=True, kv_cache_memory_bytes=args.kv_mb << 20)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config(args)))
        llm = LLM(
            folder,
            load_format="dummy",
            skip_tokenizer_init=True,
            dtype="bfloat16",
            enable_prefix_caching=True,
            max_model_len=args.prompt_tokens + args.new_tokens + 1,
            max_num_seqs=args.samples,
            block_size=args.block_size,
            **options,
        )
    prompt: Any = {"prompt_token_ids": [3 + i % 31000 for i in range(args.prompt_tokens)]}

    def generate(count: int, tokens: int) -> float:
        sampling = SamplingParams(
            temperature=1.0, max_tokens=tokens, ignore_eos=True, detokenize=False
        )
        start = time.perf_counter()
        llm.generate([prompt] * count, sampling, use_tqdm=False)
        return time.perf_counter() - start

    prefill = generate(1, 1)
    generate(args.samples, 2)
    seconds = [generate(args.samples, args.new_tokens) for _ in range(args.runs)]
    record = {
        "case": args.engine,
        "pando_attn": pando_attn.__version__,
        "commit": args.commit,
        "vllm": vllm.__version__,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if cuda else pando_attn.simd_name(),
        "threads": None if cuda else torch.get_num_threads(),
        "model": config(args),
        "samples": args.samples,
        "prompt_tokens": args.prompt_tokens,
        "new_tokens": args.new_tokens,
        "block_size": args.block_size,
        "prefill_seconds": prefill,
        "seconds": seconds,
        "tokens_per_second": args.samples * args.new_tokens / statistics.median(seconds),
    }
    print("RECORD " + json.dumps(record), flush=True)


def run(name: str, argv: list[str], site: str) -> dict[str, Any]:
    """The record of an engine in a process of its own."""
    path = os.pathsep.join([site, os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    if not os.path.exists("/dev/nvidia0"):
        env.update(VLLM_TARGET_DEVICE="cpu", PANDO_VLLM_CPU=str(int(name == "pando")))
    done = subprocess.run(
        [sys.executable, __file__, *argv, "--engine", name], env=env, capture_output=True, text=True
    )
    for line in done.stdout.splitlines():
        if line.startswith("RECORD "):
            return json.loads(line.removeprefix("RECORD "))
    raise SystemExit(f"{name}: {done.stdout[-3000:]}{done.stderr[-3000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--samples", type=int, default=32)
    add("--prompt-tokens", type=int, default=4096)
    add("--new-tokens", type=int, default=16)
    add("--hidden", type=int, default=1024)
    add("--layers", type=int, default=8)
    add("--q-heads", type=int, default=16)
    add("--kv-heads", type=int, default=4)
    add("--head-dim", type=int, default=64)
    add("--block-size", type=int, default=128)
    add("--kv-mb", type=int, default=1024, help="memory for KV, on the CPU")
    add("--runs", type=int, default=3)
    add("--commit", default="", help="of the library, for the record")
    add("--engine", choices=("vllm", "pando"), help="only this one, in this process")
    args = parser.parse_args()
    if args.engine:
        engine(args)
        return
    rates: dict[str, list[float]] = {"vllm": [], "pando": []}
    with tempfile.TemporaryDirectory() as site:  # the entry point, as an installation has it
        info = Path(site) / "pando_attn-0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pando-attn\nVersion: 0\n")
        (info / "entry_points.txt").write_text(
            "[vllm.general_plugins]\npando_attn = pando_attn.vllm:register\n"
        )
        for name in ("vllm", "pando", "pando", "vllm"):
            record = run(name, sys.argv[1:], site)
            rates[name].append(record["tokens_per_second"])
            print(json.dumps(record), flush=True)
    vllm_rate, pando_rate = (statistics.median(rates[name]) for name in ("vllm", "pando"))
    print(json.dumps({"case": "comparison", "tokens_per_second": pando_rate / vllm_rate}))


if __name__ == "__main__":
    main()
