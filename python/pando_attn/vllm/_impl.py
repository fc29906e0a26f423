"""The attention of a layer of vLLM."""

from __future__ import annotations

from typing import Any

import torch
from vllm import _custom_ops
from vllm.v1.attention.backend import AttentionImpl, AttentionType

from .._attend import attend
from .._step_plans import Scoring
from .._torch_fp8 import to_fp8
from ._metadata import PandoMetadata

#: E4M3, with the scales of the layer.
FP8_DTYPES = ("fp8", "fp8_e4m3")
#: The others: K and V are kept in the type of the model.
KV_CACHE_DTYPES = ("auto", "float16", "bfloat16", *FP8_DTYPES)


class PandoImpl(AttentionImpl[PandoMetadata]):  # type: ignore[misc]
    """Attention of one layer, over K and V in vLLM's pages.

    Raises NotImplementedError that names what Pando does not compute: ALiBi, attention of encoders,
    quantized KV but for E4M3, heads of K and V of different sizes.
    """

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
        sinks: torch.Tensor | None = None,
    ) -> None:
        if alibi_slopes is not None:
            raise NotImplementedError("alibi_slopes: got some, want a model without ALiBi")
        if attn_type != AttentionType.DECODER:
            raise NotImplementedError(f"attn_type: got {attn_type}, want decoder")
        if kv_cache_dtype not in KV_CACHE_DTYPES:
            wanted = ", ".join(KV_CACHE_DTYPES)
            raise NotImplementedError(f"kv_cache_dtype: got {kv_cache_dtype}, want one of {wanted}")
        self.num_heads = num_heads
        self.head_size = head_size
        self.scale = float(scale)
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.kv_cache_dtype = kv_cache_dtype
        self._fp8 = kv_cache_dtype in FP8_DTYPES
        self.kv_sharing_target_layer_name = kv_sharing_target_layer_name
        self.sinks = sinks
        self._scoring = Scoring(self.scale, sliding_window or 0, float(logits_soft_cap or 0))

    def process_weights_after_loading(self, act_dtype: torch.dtype) -> None:
        if self.sinks is not None:
            self._scoring = self._scoring._replace(sinks=self.sinks.detach().float().contiguous())

    def forward(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: PandoMetadata | None,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attention of the rows of a step, the new tokens of all requests.

        Args:
            layer: the layer, whose ``_k_scale`` and ``_v_scale`` are those of fp8 K and V: one
                number, or one for each kv head.
            query: ``[rows, q_heads, head_size]``, with rows of padding behind those of the step.
            key, value: not needed: they are in the cache already.
            kv_cache: ``[blocks, kv_heads, block_size, 2 * head_size]``, K first.
            attn_metadata: of the step; None while vLLM measures memory.
            output: as query; where the result goes.
            output_scale, output_block_scale: of quantized output, which is refused.
        """
        if output_scale is not None or output_block_scale is not None:
            raise NotImplementedError("output_scale: got one, want output that is not quantized")
        if attn_metadata is None:
            return output.fill_(0)
        if self.sinks is not None and self._scoring.sinks is None:
            self.process_weights_after_loading(query.dtype)
        k, v = kv_cache.split(self.head_size, dim=-1)
        plan = attn_metadata.plan(query, self.num_kv_heads, self._scoring, self._fp8)
        scales = {}
        if self._fp8:
            scales = {"k_scale": layer._k_scale.view(-1), "v_scale": layer._v_scale.view(-1)}
        rows = plan.q_rows
        attend(
            plan,
            query[:rows],
            k,
            v,
            out=output[:rows],
            sinks=self._scoring.sinks,
            layout="HND",
            **scales,
        )
        return output

    def do_kv_cache_update(
        self,
        layer: Any,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
    ) -> None:
        """Puts K and V of new tokens, ``[tokens, kv_heads, head_size]``, into their slots; there
        may be more of them than slots, and slots below 0 are nobody's."""
        k_cache, v_cache = kv_cache.transpose(1, 2).split(self.head_size, dim=-1)
        if kv_cache.is_cuda:
            _custom_ops.reshape_and_cache_flash(
                key,
                value,
                k_cache,
                v_cache,
                slot_mapping,
                self.kv_cache_dtype,
                layer._k_scale,
                layer._v_scale,
            )
            return
        of_some = slot_mapping >= 0
        slots = slot_mapping[of_some]
        at = slots // k_cache.shape[1], slots % k_cache.shape[1]
        for cache, new, scale in (
            (k_cache, key, layer._k_scale),
            (v_cache, value, layer._v_scale),
        ):
            kept = new[: len(of_some)][of_some]
            cache[at] = to_fp8(kept, scale.view(-1, 1)) if self._fp8 else kept
