"""KV of prompts and samples in pages, where a prefix is kept once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from .. import _arguments as arguments
from .._attend import attend
from .._prefix import KvPool, PageCopy, PrefixTree
from .._step_plans import Scoring, StepPlans, Tables, shape_of
from ._fp8 import Fp8Kv, wants_fp8
from ._model import model_shape


class Layout(NamedTuple):
    """Where the tokens of a forward pass are, in their sequences and in memory."""

    tables: Tables
    positions: np.ndarray  #: int64, of each token in its sequence
    slots: np.ndarray  #: int64, of its KV: page * page_tokens + place in the page


class KvCache:
    """KV of one model's sequences, in pages; what several of them begin with is kept once.

    Whole pages stay after their sequences have ended, until room is needed, and are found again by
    their tokens: a cache that is given to several calls of :func:`generate` computes nothing twice.
    One call at a time may use it. Layers with a sliding window keep all of their tokens.

    Args:
        model: whose KV it holds; see :func:`generate` for what is supported.
        num_tokens: room for so many; memory for all of them is taken now.
        page_tokens: tokens of a page, a power of two up to 256; sequences share whole pages.
        kv_dtype: "fp8" keeps one byte an element; None: K and V of the model's dtype.
        k_scale: what elements of fp8 K are multiplied by: a number, or ``[layers, kv_heads]`` where
            either may be 1. By default the first pass of a layer fixes its scales, one for each
            kv head.
        v_scale: the same of V.

    Raises:
        ValueError, TypeError or NotImplementedError that names the argument.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        num_tokens: int,
        *,
        page_tokens: int = 16,
        kv_dtype: Any = None,
        k_scale: Any = None,
        v_scale: Any = None,
    ) -> None:
        self.shape = model_shape(model)
        if arguments.integer("num_tokens", num_tokens) < 1:
            raise ValueError(f"num_tokens: got {num_tokens}, want 1 or more")
        if arguments.integer("page_tokens", page_tokens) < 1:
            raise ValueError(f"page_tokens: got {page_tokens}, want a power of two up to 256")
        layers, kv_heads, _, _, dtype, device = self.shape
        self.fp8: Fp8Kv | None = None
        if wants_fp8(kv_dtype, k_scale, v_scale, dtype):
            self.fp8 = Fp8Kv(layers, kv_heads, device, k_scale, v_scale)
        self.pool = KvPool(-(-num_tokens // page_tokens) + 1, page_tokens)
        self.tree = PrefixTree(self.pool)
        # KV of tokens that are there already goes here when they are computed again.
        self._scratch = self.pool.allocate()
        self._kv = torch.empty(
            (
                layers,
                2,
                self.pool.num_pages,
                page_tokens,
                kv_heads,
                self.shape.head_dim,
            ),
            dtype=dtype if self.fp8 is None else torch.uint8,
            device=device,
        )
        self.plans = StepPlans()

    @property
    def page_tokens(self) -> int:
        """Tokens of a page."""
        return self.pool.page_tokens

    @property
    def kv_dtype(self) -> str:
        """Of K and V: "fp32", "bf16", "fp16" or "fp8"."""
        if self.fp8 is not None:
            return arguments.KV_DTYPES[arguments.FP8]
        return arguments.DTYPES[arguments.dtype_code(self.shape.dtype)]

    @property
    def k_scale(self) -> torch.Tensor | None:
        """fp32 ``[layers, kv_heads]``; None unless K is fp8 and its scales are fixed. What an
        earlier cache has found may be given to another one."""
        return self.fp8.k_scale if self.fp8 is not None and self.fp8.fixed else None

    @property
    def v_scale(self) -> torch.Tensor | None:
        """The same of V."""
        return self.fp8.v_scale if self.fp8 is not None and self.fp8.fixed else None

    @property
    def nbytes(self) -> int:
        """Bytes of the memory that was taken."""
        return self._kv.nbytes + (0 if self.fp8 is None else self.fp8.nbytes)

    @property
    def used_bytes(self) -> int:
        """Bytes of the pages that sequences hold, and of those that are kept for later ones."""
        used = self.pool.num_pages - self.pool.free_pages - 1
        return used * (self._kv.nbytes // self.pool.num_pages)

    def check_kv(self, kv_dtype: Any, k_scale: Any, v_scale: Any) -> None:
        """ValueError when what is asked of K and V is not what the cache holds."""
        if kv_dtype is not None:
            own = arguments.KV_DTYPES.index(self.kv_dtype)
            if arguments.kv_dtype_code(kv_dtype, own) != own:
                raise ValueError(
                    f"kv_dtype: got {kv_dtype!r} with a cache of {self.kv_dtype}, want that or none"
                )
        for name, given in (("k_scale", k_scale), ("v_scale", v_scale)):
            if given is not None:
                raise ValueError(f"{name}: got one with a cache, which has its own; want none")

    def clear(self) -> None:
        """Forgets what no sequence holds."""
        self.tree.evict(self.pool.num_pages)

    def copy(self, copies: Sequence[PageCopy]) -> None:
        """Copies pages in all layers; each is some sequence's own copy of a half-full page."""
        if copies:
            sources, targets = (
                torch.tensor(ids, dtype=torch.int64, device=self._kv.device)
                for ids in ([c.source for c in copies], [c.target for c in copies])
            )
            self._kv[:, :, targets] = self._kv[:, :, sources]

    @property
    def scratch_slot(self) -> int:
        """Where KV goes that nobody reads."""
        return self._scratch * self.page_tokens

    def layout(
        self,
        sequences: Iterable[int],
        ends: Sequence[int],
        rows: Sequence[int],
        kept: Sequence[int] | None = None,
    ) -> Layout:
        """Of a forward pass over the ``rows[b]`` tokens before position ``ends[b]`` of each
        sequence, whose first ``kept[b]`` tokens have their KV already."""
        tables = self.tree.tables(sequences, rows)
        size = self.page_tokens
        end, count = np.asarray(ends, np.int64), np.asarray(rows, np.int64)
        row_end = np.cumsum(count)
        # Row i of the batch is row i - (row_end - count) of its sequence.
        positions = np.arange(row_end[-1]) + np.repeat(end - row_end, count)
        first = np.repeat(np.asarray(tables.page_indptr[:-1], np.int64), count)
        pages = np.asarray(tables.page_ids)[first + positions // size].astype(np.int64)
        if kept is not None:
            pages[positions < np.repeat(np.asarray(kept), count)] = self._scratch
        return Layout(
            Tables(tables.q_indptr, end.astype(np.int32), *tables[2:], size),
            positions,
            pages * size + positions % size,
        )


class KvStep:
    """What the layers of one forward pass need; see ``Paged`` of ``_attention.py``.

    With ``in_graph`` the layers may be captured after they have run once: what they launch holds
    for any step with as many tokens, of which those after the plan's rows are of no sequence.
    """

    def __init__(
        self,
        cache: KvCache,
        plans: StepPlans,
        tables: Tables,
        slots: torch.Tensor,
        in_graph: bool = False,
    ) -> None:
        self._cache = cache
        self._plans = plans
        self._tables = tables
        self._slots = slots
        self._in_graph = in_graph
        self._layers: set[int] = set()

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scoring: Scoring,
    ) -> torch.Tensor:
        """Keeps the new K and V, and returns the attention of the new tokens' rows."""
        kv = self._cache._kv
        shape = self._cache.shape
        got = (key.shape[1], key.shape[3], key.dtype, key.device)
        wanted = (shape.kv_heads, shape.head_dim, shape.dtype, kv.device)
        if got != wanted:
            raise NotImplementedError(
                f"model: got layer {layer} with (kv_heads, head_dim, dtype, device) of {got}, want "
                f"{wanted} as its configuration says"
            )
        fp8 = self._cache.fp8
        scales = {}
        if fp8 is not None:
            key, value = fp8.quantize(layer, key, value)
            scales = fp8.scales(layer)
        for target, new in zip(kv[layer], (key, value)):
            target.flatten(0, 1).index_copy_(0, self._slots, new[0].transpose(0, 1))
        k, v = kv[layer]
        plan = self._plans.plan(
            shape_of(query, shape.kv_heads, scoring, self._tables.page_tokens, fp8=fp8 is not None),
            self._tables,
        )
        q = query[0].transpose(0, 1)
        rows = plan.q_rows
        # Zeros, so that rows of no sequence are numbers: a layer that quantizes all rows by their
        # greatest would spread what else is there.
        out = query.new_zeros(q.shape) if self._in_graph else query.new_empty(q.shape)
        attend(plan, q[:rows], k, v, out=out[:rows], sinks=scoring.sinks, **scales)
        self._layers.add(layer)
        return out.unsqueeze(0)

    def check(self) -> None:
        """Raises when a layer did not come here."""
        if len(self._layers) != self._cache.shape.layers:
            raise NotImplementedError(
                f"model: got {len(self._layers)} layers that take their attention from "
                f"Transformers' AttentionInterface, want all {self._cache.shape.layers}"
            )
