#!/usr/bin/env python3
"""Samples of one prompt on a GPU, with and without Pando: attention, tokens/s, KV, logits.

usage: PYTHONPATH=build/python python bench/samples_on_device.py [--shape llama-3-8b] [--dtype bf16]

A model with random weights, of the shapes of the examples. One JSON line for each way:

"sdpa": Transformers' `generate`, which computes and keeps the prompt once for each sample.
"sdpa, prompt once": the same with a cache in which the prompt's KV has been repeated.
"paged sdpa": Transformers' continuous batching, which shares pages of the prompt but reads them for
each sample; fewer tokens (--engine-tokens).
"paged pando": the same engine with attn_implementation="pando", on a GPU with its CUDA graphs; only
where --ways names it.
"pando, single launches": `pando_attn.generate(cuda_graph=False)`.
"pando": `pando_attn.generate`.

`attention_us`: of all layers in one decode step in the middle; that of "pando, single launches" is
that of "pando" too, whose replays can't be looked into. It holds the writing of the new K and V for
"pando" and "paged sdpa"; "sdpa" writes them before. The last lines compare: the logits of one
sample in the decode steps with those of the model in fp32, beside those of sdpa (root mean square
of the differences over that of the logits; Pando's may be twice that of sdpa); and the wanted
ratios. Exits with 1 when the logits are wrong.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from attention_times import AttentionTimes
from transformers import ContinuousBatchingConfig, DynamicCache, GenerationConfig

import pando_attn
import pando_attn.transformers

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples/python"))
from common import DTYPES, HEADS, SHAPES, kv_bytes, load, random_prompt

WAYS = ("sdpa", "sdpa, prompt once", "paged sdpa", "pando, single launches", "pando")
MORE_WAYS = ("paged pando",)


def record(args: argparse.Namespace, case: str, **values: Any) -> None:
    base = {
        "case": case,
        "version": pando_attn.__version__,
        "commit": args.commit,
        "device": torch.cuda.get_device_name() if args.device == "cuda" else args.device,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "model": args.shape,
        "dtype": args.dtype,
        "samples": args.samples,
        "prompt_tokens": args.prompt_tokens,
        "new_tokens": args.new_tokens,
    }
    print(json.dumps({**base, **values}), flush=True)


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


class Ways:
    """The ways to draw samples; each gives the bytes of its KV."""

    def __init__(self, model: Any, prompt: list[int], args: argparse.Namespace) -> None:
        self.model, self.prompt, self.args = model, prompt, args

    def _generate(self, new_tokens: int, **options: Any) -> None:
        self.model.generate(
            torch.tensor([self.prompt] * self.args.samples, device=self.model.device),
            max_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            **options,
        )

    def sdpa(self, new_tokens: int) -> int:
        self.model.set_attn_implementation("sdpa")
        self._generate(new_tokens)
        return kv_bytes(self.model, self.args.samples, len(self.prompt) + new_tokens - 1)

    def prompt_once(self, new_tokens: int) -> int:
        self.model.set_attn_implementation("sdpa")
        cache = DynamicCache(config=self.model.config)
        ids = torch.tensor([self.prompt[:-1]], device=self.model.device)
        with torch.no_grad():
            self.model(ids, past_key_values=cache, logits_to_keep=1)
        cache.batch_repeat_interleave(self.args.samples)
        self._generate(new_tokens, past_key_values=cache)
        return sum(x.nbytes for layer in cache.layers for x in (layer.keys, layer.values))

    def paged(self, new_tokens: int, implementation: str) -> None:
        self.model.set_attn_implementation(implementation)
        logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)
        page, length = 256, len(self.prompt) + new_tokens
        of_version = hasattr(ContinuousBatchingConfig(), "page_size")
        self.model.generate_batch(
            [self.prompt] * self.args.samples,
            generation_config=GenerationConfig(
                max_new_tokens=new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
            ),
            continuous_batching_config=ContinuousBatchingConfig(
                **{"page_size" if of_version else "block_size": page},
                num_blocks=self.args.samples * -(-length // page),
                max_batch_tokens=max(len(self.prompt), 2 * self.args.samples),
                max_requests_per_batch=self.args.samples,
                use_cuda_graph=implementation == "pando" and self.args.device == "cuda",
            ),
            progress_bar=False,
        )

    def pando(self, new_tokens: int, cuda_graph: bool = True) -> Any:
        return pando_attn.generate(
            self.model,
            self.prompt,
            num_samples=self.args.samples,
            max_new_tokens=new_tokens,
            stop_tokens=(),
            cuda_graph=cuda_graph,
        )


def measure(ways: Ways, way: str) -> dict[str, Any]:
    """Runs a way once, after a few tokens to get ready where that is cheap."""
    args = ways.args
    tokens = args.engine_tokens if way.startswith("paged") else args.new_tokens
    layers = ways.model.config.num_hidden_layers
    run: Callable[[int], Any]
    name, run = {
        "sdpa": ("sdpa", ways.sdpa),
        "sdpa, prompt once": ("sdpa", ways.prompt_once),
        "paged sdpa": ("paged|sdpa", lambda n: ways.paged(n, "sdpa")),
        "paged pando": ("paged|pando", lambda n: ways.paged(n, "pando")),
        "pando, single launches": ("pando", lambda n: ways.pando(n, cuda_graph=False)),
        "pando": ("pando", ways.pando),
    }[way]
    values: dict[str, Any] = {}
    # There are no calls to be timed in a replay.
    step = -1 if way in ("pando", "paged pando") else tokens // 2
    free()
    timer = AttentionTimes(name, args.samples, layers, step)
    if way.startswith("pando"):
        ways.pando(12, cuda_graph=way == "pando")
        free()
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    with timer:
        result = run(tokens)
        if args.device == "cuda":
            torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    values["seconds"] = round(seconds, 3)
    values["tokens_per_s"] = round(args.samples * tokens / seconds, 1)
    if tokens != args.new_tokens:
        values["engine_tokens"] = tokens
    if timer.us() is not None:
        values["attention_us"] = timer.us()
    if isinstance(result, int):
        values["kv_bytes"] = result
    elif result is not None:
        values["prefill_s"] = round(result.prefill_seconds, 3)
        values["decode_s"] = round(result.decode_seconds, 3)
        values["step_ms"] = round(1e3 * result.decode_seconds / (tokens - 1), 3)
        values["kv_bytes"] = result.kv_bytes
    if args.device == "cuda":
        values["peak_bytes"] = torch.cuda.max_memory_allocated()
    return values


def logits_of_steps(ways: Ways) -> tuple[list[int], torch.Tensor]:
    """The first sample of a run of Pando, and its logits ``[new_tokens, vocab]``."""
    from pando_attn.transformers import _sampling

    rows = []
    sample = _sampling.Sampler.__call__

    def keep(self: Any, logits: torch.Tensor) -> torch.Tensor:
        rows.append(logits[0].clone())
        return sample(self, logits)

    _sampling.Sampler.__call__ = keep  # type: ignore[method-assign]
    try:
        tokens = ways.pando(ways.args.new_tokens).tokens[0][0]
    finally:
        _sampling.Sampler.__call__ = sample  # type: ignore[method-assign]
    return tokens, torch.stack(rows)


@torch.no_grad()
def check_logits(ways: Ways) -> dict[str, float]:
    """Errors of the logits of sdpa and of Pando against fp32, as parts of the logits' size."""
    tokens, by_pando = logits_of_steps(ways)
    model = ways.model
    model.set_attn_implementation("sdpa")
    ids = torch.tensor([ways.prompt + tokens[:-1]], device=model.device)
    by_sdpa = model(ids, logits_to_keep=len(tokens), use_cache=False).logits[0].float()
    free()
    exact_model = copy.deepcopy(model).float()
    exact = exact_model(ids, logits_to_keep=len(tokens), use_cache=False).logits[0]
    del exact_model
    free()

    def error(x: torch.Tensor) -> float:
        return float((x - exact).square().mean().sqrt() / exact.square().mean().sqrt())

    return {"sdpa": error(by_sdpa), "pando": error(by_pando)}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=list(SHAPES), default="llama-3-8b")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bf16")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=4096)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--engine-tokens", type=int, default=16)
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS + MORE_WAYS)
    parser.add_argument("--commit", help="for records, where there is no git")
    args = parser.parse_args(argv)
    args.model, args.seed = None, 0
    transformers.logging.set_verbosity_error()
    model = load(args)
    record(args, "model", heads=HEADS[args.shape], parameters=model.num_parameters())
    ways = Ways(model, random_prompt(model, args.prompt_tokens, 0), args)
    got = {}
    # The quickest first, so that a run that is cut short has what matters.
    for way in sorted(args.ways, key=(WAYS + MORE_WAYS).index, reverse=True):
        try:
            got[way] = measure(ways, way)
        except torch.cuda.OutOfMemoryError as error:
            record(args, way, failed=str(error).split(". ")[0])
            free()
            continue
        record(args, way, **got[way])
    if not set(args.ways) & {"pando", "pando, single launches"}:
        return
    errors = check_logits(ways)
    exact = args.dtype == "fp32"
    right = errors["pando"] <= (1e-4 if exact else 2 * errors["sdpa"])
    record(args, "logits against fp32", error=errors, right=right)
    if "sdpa" in got and "pando" in got:
        attention = got.get("pando, single launches", {}).get("attention_us")
        ratios: dict[str, float] = {}
        for way, values in got.items():
            if way.startswith("pando"):
                continue
            if attention and "attention_us" in values:
                ratios[f"attention time: {way}"] = values["attention_us"] / attention
            if "engine_tokens" not in values:
                ratios[f"tokens/s: {way}"] = got["pando"]["tokens_per_s"] / values["tokens_per_s"]
            if "kv_bytes" in values:
                ratios[f"KV: {way}"] = values["kv_bytes"] / got["pando"]["kv_bytes"]
        record(args, "pando against", **{name: round(x, 2) for name, x in ratios.items()})
    sys.exit(0 if right else 1)


if __name__ == "__main__":
    main()
