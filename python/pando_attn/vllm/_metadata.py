"""What the layers of a step have in common: page tables, and the plans made of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from vllm import envs
from vllm.v1.attention.backend import AttentionMetadataBuilder, CommonAttentionMetadata

from .._step_plans import Scoring, StepPlans, Tables, shape_of
from ..engines import of_block_table
from ._threads import make_threads


class PandoMetadata(NamedTuple):
    """The step of one group of layers, whose pages have the same ids."""

    tables: Tables
    plans: StepPlans  #: of all steps, each made anew by the first layer that needs it
    batch_invariant: bool

    def plan(self, query: torch.Tensor, kv_heads: int, scoring: Scoring, fp8: bool = False) -> Any:
        """The plan of a layer whose ``query`` is ``[rows, q_heads, head_dim]``."""
        size = self.tables.page_tokens
        shape = shape_of(query.transpose(0, 1), kv_heads, scoring, size, fp8)
        return self.plans.plan(shape._replace(batch_invariant=self.batch_invariant), self.tables)


class PandoMetadataBuilder(AttentionMetadataBuilder[PandoMetadata]):  # type: ignore[misc]
    """Brings vLLM's block tables to the host, where plans are made.

    That waits for the device once a step. There are no CUDA graphs of attention itself, since plans
    may outgrow what a graph knows and vLLM captures none anew; those of the layers between
    (PIECEWISE) are as ever.
    """

    def __init__(
        self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self._plans = StepPlans()
        if device.type == "cpu":
            make_threads()

    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
    ) -> PandoMetadata:
        """``common_prefix_len`` is not needed: what is shared is found from the block tables."""
        common = common_attn_metadata
        if isinstance(common.causal, torch.Tensor) or not common.causal:
            raise NotImplementedError(f"causal: got {common.causal}, want True")
        size = self.kv_cache_spec.block_size
        count = common.num_reqs
        tables = of_block_table(
            common.query_start_loc_cpu[: count + 1],
            common.seq_lens[:count],
            common.block_table_tensor,
            size,
        )
        return PandoMetadata(Tables(*tables, size), self._plans, envs.VLLM_BATCH_INVARIANT)
