"""What the examples share: a model, its own generate, and a table of the two runs."""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from pando_attn.transformers import Generated

# Sizes of the models with random weights: what they say means nothing, what they cost does.
SHAPES = {
    "tiny": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 128,
        "vocab_size": 512,
    },
    "small": {
        "hidden_size": 512,
        "num_hidden_layers": 6,
        "intermediate_size": 1024,
        "vocab_size": 4096,
    },
    "llama-3-8b": {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "intermediate_size": 14336,
        "vocab_size": 128256,
    },
}
HEADS = {"tiny": (4, 2), "small": (8, 2), "llama-3-8b": (32, 8)}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# How far the log-probability of a token may be from that of sdpa where the model computes in fp32.
TOLERANCE = 1e-3


def parser(description: str) -> argparse.ArgumentParser:
    """Options of every example."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--model", help="a folder or name for from_pretrained; else random weights")
    made.add_argument("--shape", choices=list(SHAPES), default="small", help="of random weights")
    made.add_argument("--dtype", choices=list(DTYPES), default="fp32")
    made.add_argument("--device", default="cpu")
    made.add_argument("--seed", type=int, default=0)
    return made


def load(args: argparse.Namespace) -> Any:
    """The model that the options name."""
    torch.manual_seed(args.seed)
    dtype = DTYPES[args.dtype]
    if args.model:
        return AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype).to(args.device).eval()
    q_heads, kv_heads = HEADS[args.shape]
    config = LlamaConfig(
        num_attention_heads=q_heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=8192,
        eos_token_id=None,
        pad_token_id=0,
        **SHAPES[args.shape],
    )
    with torch.device(args.device):
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            model = LlamaForCausalLM(config)
        finally:
            torch.set_default_dtype(before)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=2 * parameter.shape[-1] ** -0.5)
    return model.eval()


def random_prompt(model: Any, tokens: int, seed: int) -> list[int]:
    """Token ids that stand for a text."""
    generator = torch.Generator().manual_seed(seed)
    vocab = model.config.get_text_config().vocab_size
    return torch.randint(3, vocab, (tokens,), generator=generator).tolist()


def kv_bytes(model: Any, sequences: int, tokens: int) -> int:
    """KV of sequences of so many tokens, as Transformers keeps it: a copy for each sequence."""
    config = model.config.get_text_config()
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    each = 2 * config.num_key_value_heads * head_dim * model.dtype.itemsize
    types = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    kept = [
        min(tokens, config.sliding_window) if kind == "sliding_attention" else tokens
        for kind in types
    ]
    return sequences * sum(kept) * each


@dataclass
class Run:
    """Tokens of each prompt's samples, and what they cost."""

    tokens: list[list[list[int]]]
    seconds: float
    kv_bytes: int
    logprobs: list[list[float]]


def timed(model: Any, work: Callable[[], Any]) -> tuple[Any, float]:
    """The result of `work` and its seconds."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    start = time.perf_counter()
    result = work()
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return result, time.perf_counter() - start


def without_pando(
    model: Any,
    prompts: list[list[int]],
    samples: int,
    new_tokens: int,
    temperature: float,
    seed: int,
) -> Run:
    """Transformers' `generate` with sdpa on a batch of all samples; padded on the left."""
    model.set_attn_implementation("sdpa")
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    torch.manual_seed(seed)
    random = {"temperature": temperature, "top_k": 0} if temperature else {}
    out, seconds = timed(
        model,
        lambda: model.generate(
            ids,
            attention_mask=mask.to(model.device),
            max_new_tokens=new_tokens,
            do_sample=temperature > 0,
            num_return_sequences=samples,
            eos_token_id=None,
            pad_token_id=0,
            **random,
        )[:, longest:].tolist(),
    )
    tokens = [out[i : i + samples] for i in range(0, len(out), samples)]
    kept = kv_bytes(model, len(out), longest + new_tokens - 1)
    return Run(tokens, seconds, kept, by_sdpa(model, prompts, tokens))


def of_generated(result: Generated, seconds: float) -> Run:
    """What `pando_attn.generate` returned, with return_logprobs."""
    assert result.logprobs is not None
    return Run(result.tokens, seconds, result.kv_bytes, result.logprobs)


@torch.no_grad()
def by_sdpa(
    model: Any, prompts: list[list[int]], tokens: list[list[list[int]]]
) -> list[list[float]]:
    """The log-probability of each sample, from a pass of sdpa over all of it."""
    model.set_attn_implementation("sdpa")
    sums: list[list[float]] = []
    for prompt, samples in zip(prompts, tokens):
        sums.append([])
        for sample in samples:
            ids = torch.tensor([prompt + sample], device=model.device)
            logits = model(ids, logits_to_keep=len(sample) + 1).logits[0, :-1].float()
            rows = torch.arange(len(sample), device=model.device)
            sums[-1].append(float(logits.log_softmax(-1)[rows, ids[0, len(prompt) :]].sum()))
    return sums


def report(
    title: str,
    model: Any,
    args: argparse.Namespace,
    prompts: list[list[int]],
    sdpa: Run,
    pando: Run,
) -> None:
    """Prints both runs; exits with 1 when they disagree."""
    name = args.model or f"random weights, {args.shape}"
    print(f"\n  {title}\n  {type(model).__name__} ({name}), {args.dtype} on {model.device}\n")
    print("                    tokens/s    seconds    KV memory")
    for label, run in (("without Pando", sdpa), ("with Pando", pando)):
        count = sum(len(sample) for samples in run.tokens for sample in samples)
        print(
            f"  {label:14}  {count / run.seconds:10.1f} {run.seconds:10.2f} "
            f"{run.kv_bytes / 1e6:9.1f} MB"
        )
    faster, smaller = sdpa.seconds / pando.seconds, sdpa.kv_bytes / pando.kv_bytes
    print(f"\n  {faster:.1f}× as fast, KV {smaller:.1f}× as small")
    same = sdpa.tokens == pando.tokens
    exact = args.dtype == "fp32"
    said, right = agrees_in_fp32(model, prompts, pando) if exact else as_good(model, prompts, pando)
    right = right and (same or not exact or model.device.type != "cpu")
    print(f"  tokens {'identical' if same else 'not all identical'}; {said}: ", end="")
    print("agree\n" if right else "WRONG\n")
    if not right:
        sys.exit(1)


def token_errors(pando: list[list[float]], other: list[list[float]], run: Run) -> torch.Tensor:
    """Of each sample, how far two log-probabilities are from each other, for each of its tokens."""
    rows = zip(pando, other, run.tokens)
    return torch.tensor([abs(a - b) / len(t) for row in rows for a, b, t in zip(*row)])


def agrees_in_fp32(model: Any, prompts: list[list[int]], pando: Run) -> tuple[str, bool]:
    """Whether sdpa gives Pando's samples the log-probabilities that Pando gave them."""
    off = token_errors(pando.logprobs, by_sdpa(model, prompts, pando.tokens), pando).max().item()
    said = f"log-probabilities of a token off by {off:.1e} at the most, {TOLERANCE:.0e} allowed"
    return said, off <= TOLERANCE


def as_good(model: Any, prompts: list[list[int]], pando: Run) -> tuple[str, bool]:
    """Whether Pando in half precision is as near to the same model in fp32 as sdpa is.

    Rounding grows from layer to layer, by how much depends on the weights. So sdpa says how far
    off is right: Pando may be twice as far, and one rounding.
    """
    sdpa = by_sdpa(model, prompts, pando.tokens)
    exact = by_sdpa(copy.deepcopy(model).float(), prompts, pando.tokens)
    theirs, ours = (
        token_errors(logprobs, exact, pando).square().mean().sqrt().item()
        for logprobs in (sdpa, pando.logprobs)
    )
    said = f"log-probabilities of a token off from fp32 by {ours:.1e}, those of sdpa by {theirs:.1e}"
    return said, ours <= 2 * theirs + torch.finfo(model.dtype).eps
