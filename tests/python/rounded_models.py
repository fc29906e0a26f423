"""Models of Transformers whose attention is sdpa over other K and V: rounded to fp8 and back, or
given."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_of_other_kv"
_other: list[Any] = []


def rounded(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """``[B, kv_heads, tokens, head_dim]`` as fp8 with scales ``[kv_heads]`` stands for it."""
    per_head = scale.view(1, -1, 1, 1)
    codes = (x.float() / per_head).clamp(-448, 448).to(torch.float8_e4m3fn)
    return (codes.float() * per_head).to(x.dtype)


def _forward(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
    key, value = _other[0](module.layer_idx, key, value)
    return sdpa_attention_forward(module, query, key, value, mask, **options)


AttentionInterface.register(NAME, _forward)
AttentionMaskInterface.register(NAME, sdpa_mask)


def plain_logits(model: Any, ids: list[int], implementation: str = "sdpa") -> torch.Tensor:
    """fp32 ``[tokens, vocab_size]``."""
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        return model(torch.tensor([ids], device=model.device)).logits[0].float()


def round_kv(k_scale: torch.Tensor, v_scale: torch.Tensor) -> None:
    """Lets the attention NAME round K and V from now on; scales ``[layers, kv_heads]``."""
    _other[:] = [lambda i, k, v: (rounded(k, k_scale[i]), rounded(v, v_scale[i]))]


def rounded_logits(
    model: Any, ids: list[int], k_scale: torch.Tensor, v_scale: torch.Tensor
) -> torch.Tensor:
    """The same, with K and V rounded; scales ``[layers, kv_heads]``."""
    round_kv(k_scale, v_scale)
    return plain_logits(model, ids, NAME)


def logits_of_kv(model: Any, ids: list[int], kv: torch.Tensor) -> torch.Tensor:
    """The same, of ``[layers, 2, tokens, kv_heads, head_dim]`` in place of the model's own."""
    _other[:] = [lambda i, k, v: kv[i].to(k.dtype).transpose(1, 2)[:, None]]
    return plain_logits(model, ids, NAME)
