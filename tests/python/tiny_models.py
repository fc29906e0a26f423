"""Small models of Transformers with random weights, one for each style of attention."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCAB = 300
WINDOW = 16
STYLES = ("llama", "qwen3", "mistral", "gemma3")

_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def tiny(style: str, seed: int = 0, layers: int = 4, **options: Any) -> Any:
    """A model in fp32 on the CPU: grouped heads, norms of q and k, windows, by its style."""
    sizes = {**_SIZES, "num_hidden_layers": layers, "num_key_value_heads": 2, **options}
    torch.manual_seed(seed)
    if style == "llama":
        model: Any = LlamaForCausalLM(LlamaConfig(**sizes))
    elif style == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(**{"head_dim": 32, **sizes}))
    elif style == "mistral":
        model = MistralForCausalLM(MistralConfig(sliding_window=WINDOW, **sizes))
    else:
        types = ["sliding_attention", "full_attention"] * (layers // 2)
        sizes = {"head_dim": 64, "sliding_window": WINDOW, "layer_types": types, **sizes}
        model = Gemma3ForCausalLM(Gemma3TextConfig(**sizes))
    for parameter in model.parameters():
        if parameter.ndim > 1:  # so large that attention decides which token comes next
            parameter.data.normal_(0, 0.2)
    return model.eval()


def prompt(tokens: int, seed: int = 0) -> list[int]:
    """Random tokens."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randint(3, VOCAB, (tokens,), generator=generator).tolist()


def greedy(model: Any, ids: list[int], tokens: int) -> list[int]:
    """What Transformers' own `generate` gives with sdpa."""
    model.set_attn_implementation("sdpa")
    out = model.generate(
        torch.tensor([ids], device=model.device), max_new_tokens=tokens, do_sample=False
    )
    return out[0, len(ids) :].tolist()


def regret(model: Any, ids: list[int], chosen: list[int], implementation: str = "sdpa") -> float:
    """How much smaller than the largest logit that of a chosen token is at the most, by another
    implementation, as a part of the largest: greedy tokens of another order of sums differ where
    logits tie."""
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        logits = model(torch.tensor([ids + chosen], device=model.device)).logits[0].float()
    rows = logits[len(ids) - 1 : -1]
    best = rows.max(-1).values
    at = rows.gather(-1, torch.tensor(chosen, device=model.device)[:, None])[:, 0]
    return float(((best - at) / rows.abs().max(-1).values).max())
