"""The attention of a layer, as Transformers calls it."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch

from .._attend import attend
from .._levels import page_tokens
from .._step_plans import Scoring, Tables, shape_of
from ._mask_plans import MaskPlans
from ._masks import ranges_of_mask


class Paged(Protocol):
    """K and V in pages: what the keyword ``pando`` of a forward pass brings to each layer."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scoring: Scoring,
    ) -> torch.Tensor:
        """Keeps the new ``key`` and ``value`` ``[1, kv_heads, tokens, head_dim]``, and returns
        ``[1, tokens, q_heads, head_dim]`` for ``query`` ``[1, q_heads, tokens, head_dim]``."""


_mask_plans = MaskPlans()


@torch.compiler.disable  # it plans on the host; torch.compile runs it between its graphs
def attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    pando: Paged | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention for Transformers' ``AttentionInterface``, registered as "pando".

    Args:
        module: the layer's attention.
        query: ``[B, q_heads, rows, head_dim]``; head ``h`` reads kv head ``h // group``.
        key: ``[B, kv_heads, tokens, head_dim]``.
        value: the same.
        attention_mask: see :func:`pando_attn.transformers._masks.ranges_of_mask`.
        scaling: of the scores; ``1 / sqrt(head_dim)`` by default.
        pando: K and V in pages, where there are such.
        sliding_window: of paged attention; elsewhere it is part of the mask.
        softcap: of the scores, such as Gemma 2 has; None for none.
        s_aux: attention sinks ``[q_heads]``, such as gpt-oss has.

    Returns:
        ``[B, rows, q_heads, head_dim]``, and None in place of attention weights.

    Raises:
        NotImplementedError or ValueError that names what is not supported.
    """
    _refuse(module, query, key, value, dropout, others)
    scoring = Scoring(
        scale=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        soft_cap=float(softcap or getattr(module, "attn_logit_softcapping", None) or 0),
        sinks=_sinks(module, s_aux),
    )
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if pando is not None:
        if attention_mask is not None and attention_mask.numel():
            raise NotImplementedError(
                f"attention_mask: got shape {tuple(attention_mask.shape)} of the model's own, want "
                "a model with causal or sliding-window attention"
            )
        if not causal:
            raise NotImplementedError("is_causal: got False, want a model with causal attention")
        window = sliding_window or getattr(module, "sliding_window", None) or 0
        layer: Any = module.layer_idx
        return pando.attend(layer, query, key, value, scoring._replace(window=window)), None
    return under_mask(query, key, value, attention_mask, scoring, bool(causal)), None


def _sinks(module: torch.nn.Module, s_aux: torch.Tensor | None) -> torch.Tensor | None:
    """As the library takes them. It has no backward pass; q tells whether one is wanted."""
    sinks = getattr(module, "sinks", None) if s_aux is None else s_aux
    return None if sinks is None else sinks.detach().float().contiguous()


def under_mask(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scoring: Scoring,
    causal: bool,
) -> torch.Tensor:
    """Attention over contiguous K and V, where each sequence has its own.

    Each kv head of each sequence is a sequence of the plan, since that is how their tokens lie in
    memory: one after the other.
    """
    batch, q_heads, rows, head_dim = query.shape
    kv_heads, tokens = key.shape[1:3]
    count = batch * kv_heads
    if q_heads % kv_heads:
        raise ValueError(f"query: got {q_heads} heads, want a multiple of {kv_heads} as of key")
    grouped = (batch, kv_heads, q_heads // kv_heads, rows, head_dim)
    page = page_tokens(tokens)
    pages = tokens // page
    tables = Tables(
        q_indptr=np.arange(count + 1, dtype=np.int32) * np.int32(rows),
        kv_len=np.full(count, tokens, np.int32),
        page_indptr=np.arange(count + 1, dtype=np.int32) * np.int32(pages),
        page_ids=np.arange(count * pages, dtype=np.int32),
        page_tokens=page,
    )
    q = query.reshape(grouped).transpose(2, 3).reshape(count * rows, -1, head_dim)
    plan = _mask_plans.plan(
        shape_of(q.transpose(0, 1), 1, scoring, page),
        mask,
        tables,
        lambda: _of_heads(ranges_of_mask(mask, query, tokens, causal), kv_heads),
    )
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    k, v = (x.contiguous().view(count * pages, page, 1, head_dim) for x in (key, value))
    if scoring.sinks is None:
        attend(plan, q, k, v, out=out)
    else:
        _, lse = attend(plan, q, k, v, out=out, return_lse=True)
        # Heads of a plan are those of one kv head here, and each kv head has its own sinks. A sink
        # is merged as a part that has no value: o * e^lse / (e^lse + e^sink).
        sinks = scoring.sinks.view(1, kv_heads, 1, -1)
        weight = torch.sigmoid(lse.view(batch, kv_heads, rows, -1) - sinks).nan_to_num()
        out = (out.float() * weight.view(*out.shape[:2], 1)).to(out.dtype)
    out = out.view(batch, kv_heads, rows, -1, head_dim).transpose(1, 2)
    return out.reshape(batch, rows, q_heads, head_dim)


def _of_heads(ranges: np.ndarray, kv_heads: int) -> np.ndarray:
    """``[B * kv_heads * rows, 2]`` of ``[B, rows, 2]``."""
    return np.repeat(ranges[:, None], kv_heads, 1).reshape(-1, 2)


def _refuse(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout: float,
    others: dict[str, Any],
) -> None:
    """Raises for attention that Pando does not compute."""
    if dropout:
        raise NotImplementedError(f"dropout: got {dropout}, want 0.0")
    if others.get("position_bias") is not None:
        raise NotImplementedError("position_bias: got one, want a model without a bias of scores")
    if others.get("output_attentions"):
        raise NotImplementedError("output_attentions: got True, want False: no weights are kept")
    if key.shape != value.shape or key.shape[-1] != query.shape[-1]:
        raise NotImplementedError(
            f"head_dim: got {query.shape[-1]} of query, {key.shape[-1]} of key and "
            f"{value.shape[-1]} of value, want the same"
        )
