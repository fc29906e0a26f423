"""A step of Transformers' continuous batching: its pages, read where they are."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from .._attend import attend
from .._step_plans import Scoring, StepPlans, Tables, shape_of
from ._fp8 import Fp8Kv


class LayerPages(NamedTuple):
    """Where the engine keeps K and V of a layer."""

    group: int  #: the layers of a group have the same page tables
    k: torch.Tensor  #: [pages, page_tokens, kv_heads, head_dim]
    v: torch.Tensor
    page_tokens: int
    slides: bool  #: a ring of pages that holds the last tokens only


def layer_pages(cache: Any, layer: int) -> LayerPages:
    """The pages of a layer, as Transformers 5.24 and as 5.17 keep them."""
    if hasattr(cache, "layer_to_allocator"):
        allocator = cache.layer_to_allocator[layer]
        k, v = allocator._kv_page_views[layer]
        slides = allocator.layer_type == "sliding_attention"
        return LayerPages(allocator.index, k, v, allocator.tokens_per_page, slides)
    if hasattr(cache, "layer_index_to_group_indices"):
        group, index = cache.layer_index_to_group_indices[layer]
        shape = (-1, cache.block_size, cache.num_key_value_heads, cache.head_dim)
        k, v = cache.key_cache[index].view(shape), cache.value_cache[index].view(shape)
        return LayerPages(group, k, v, cache.block_size, cache.sliding_windows[layer] != 1)
    raise NotImplementedError(
        "cache: got the PagedAttentionCache of an unknown version of Transformers, want that of "
        "5.17 to 5.24"
    )


class TablePlans(NamedTuple):
    """Plans of the layers that see the same page tables."""

    layer: int  #: one of these
    plans: StepPlans


class ContinuousStep:
    """One forward pass of continuous batching: the page tables of each group, and their plans.

    They are read from the engine's indices of single tokens, once a step for each group; on CUDA
    that waits for the copy of these indices. With ``in_graph`` the layers may be captured after
    they have run once: what they launch holds for any step of a batch that is padded to the same
    size, once :meth:`update` has brought its plans to that step.
    """

    def __init__(
        self,
        cache: Any,
        plans: dict[Any, TablePlans],
        kwargs: dict[str, Any],
        in_graph: bool = False,
    ) -> None:
        self._cache = weakref.ref(cache)  # what keeps a step is kept as long as its cache
        self._plans = plans
        self._in_graph = in_graph
        self._cu_seq_lens_k = kwargs["cu_seq_lens_k"]
        self._read_index = kwargs["read_index"]
        self._write_index = kwargs["write_index"]
        rows = _host(kwargs["cu_seq_lens_q"])
        self._q_indptr = rows.astype(np.int32)
        self._decode = bool((np.diff(rows) <= 1).all())
        self._tables: dict[Any, Tables] = {}

    def update(self) -> None:
        """Plans for the layers of a graph, which will not come here. ValueError when the plans have
        outgrown what the graph knows."""
        for kind, (layer, plans) in self._plans.items():
            self._tables[kind] = self._page_tables(self._pages(layer))
            plans.update(self._tables[kind])

    def gathers(self, layer: int) -> bool:
        """Whether a layer's K and V are to be gathered by the engine: of a ring, several new tokens
        overwrite those that the first of them sees."""
        return self._pages(layer).slides and not self._decode

    def gathered(
        self,
        layer: int,
        key: torch.Tensor,
        value: torch.Tensor,
        update: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the engine's ``update`` of its cache returns for new K and V, of their dtype."""
        fp8 = self._fp8()
        if fp8 is None:
            return update(key, value)
        codes = update(*self._quantized(fp8, layer, key, value))
        return fp8.dequantize(layer, *codes, key.dtype)

    def _fp8(self) -> Fp8Kv | None:
        return getattr(self._cache(), "pando_fp8", None)

    def _quantized(
        self, fp8: Fp8Kv, layer: int, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """New K and V as the pages keep them; what pads the step fixes no scale."""
        return fp8.quantize(layer, key, value, int(self._q_indptr[-1]))

    def _pages(self, layer: int) -> LayerPages:
        return layer_pages(self._cache(), layer)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scoring: Scoring,
    ) -> torch.Tensor:
        """See :class:`pando_attn.transformers._attention.Paged`."""
        pages = self._pages(layer)
        if pages.slides and self._in_graph:
            raise NotImplementedError(
                "use_cuda_graph: got a model with sliding windows, whose prompts are computed in "
                "another way than its decode steps: want use_cuda_graph=False"
            )
        if pages.slides and not self._decode:
            return self._attend_gathered(layer, pages, query, key, value, scoring)
        slots = self._write_index[pages.group]
        fp8 = self._fp8()
        if fp8 is not None:
            key, value = self._quantized(fp8, layer, key, value)
        for target, new in ((pages.k, key), (pages.v, value)):
            target.view(-1, *target.shape[2:]).index_copy_(0, slots, new[0].transpose(0, 1))
        # In decode a ring holds just what the window lets its row see.
        return self._run(
            layer,
            (pages.group, "pages"),
            lambda: self._page_tables(pages),
            query,
            pages.k,
            pages.v,
            scoring._replace(window=0) if pages.slides else scoring,
            fp8,
        )

    def _attend_gathered(
        self,
        layer: int,
        pages: LayerPages,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scoring: Scoring,
    ) -> torch.Tensor:
        """``key`` and ``value`` are what each sequence sees, one sequence after the other."""
        k, v = (x[0].transpose(0, 1).unsqueeze(1) for x in (key, value))  # pages of one token
        if k.stride() != v.stride():
            k, v = k.contiguous(), v.contiguous()
        return self._run(
            layer,
            (pages.group, "gathered"),
            lambda: self._gathered_tables(pages),
            query,
            k,
            v,
            scoring,
        )

    def _run(
        self,
        layer: int,
        kind: Any,
        make: Callable[[], Tables],
        query: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scoring: Scoring,
        fp8: Fp8Kv | None = None,
    ) -> torch.Tensor:
        tables = self._tables.get(kind)
        if tables is None:
            tables = self._tables[kind] = make()
        shape = shape_of(query, k.shape[2], scoring, tables.page_tokens, fp8=fp8 is not None)
        plans = self._plans.setdefault(kind, TablePlans(layer, StepPlans())).plans
        plan = plans.plan(shape, tables)
        q = query[0].transpose(0, 1)
        rows = plan.q_rows  # the engine may have padded those of the batch
        if self._in_graph:
            out = query.new_zeros(q.shape)  # of another step other rows may be padding
        else:
            out = query.new_empty(q.shape)
            out[rows:] = 0
        scales = {} if fp8 is None else fp8.scales(layer)
        attend(plan, q[:rows], k, v, out=out[:rows], sinks=scoring.sinks, **scales)
        return out.unsqueeze(0)

    def _seen(self, pages: LayerPages) -> list[np.ndarray]:
        """The slots of each sequence's visible tokens, of its new ones too."""
        new = _host(self._write_index[pages.group])
        old = _host(self._read_index[pages.group])
        if old.size == 0:  # nothing was there before
            return [new[a:b] for a, b in _pairs(self._q_indptr)]
        return [old[a:b] for a, b in _pairs(self._kv_indptr(pages))]

    def _kv_indptr(self, pages: LayerPages) -> np.ndarray:
        of_type = self._cu_seq_lens_k
        if isinstance(of_type, dict):
            of_type = of_type["sliding_attention" if pages.slides else "full_attention"]
        return _host(of_type)

    def _page_tables(self, pages: LayerPages) -> Tables:
        size = pages.page_tokens
        slots = self._seen(pages)
        if pages.slides:
            new = _host(self._write_index[pages.group])
            of_rows = [new[a:b] for a, b in _pairs(self._q_indptr)]
            # The last of those to read stands for the new token.
            slots = [np.append(s[: s.size - n.size], n) for s, n in zip(slots, of_rows)]
            tables = [_ring_pages(s, size) for s in slots]
        else:
            tables = [s[::size] // size for s in slots]
        return Tables(
            self._q_indptr,
            np.array([s.size for s in slots], np.int32),
            _indptr([t.size for t in tables]),
            np.concatenate([*tables, np.zeros(0, np.int64)]).astype(np.int32),
            size,
        )

    def _gathered_tables(self, pages: LayerPages) -> Tables:
        indptr = self._kv_indptr(pages)
        return Tables(
            self._q_indptr,
            np.diff(indptr).astype(np.int32),
            indptr.astype(np.int32),
            np.arange(indptr[-1], dtype=np.int32),
            1,
        )


def _ring_pages(slots: np.ndarray, page_tokens: int) -> np.ndarray:
    """The pages that hold just these slots of a ring, the one that is not full last.

    Which token is where in a ring does not matter to a row that sees all of them.
    """
    pages, counts = np.unique(slots // page_tokens, return_counts=True)
    return pages[np.argsort(counts < page_tokens, kind="stable")]


def _host(x: torch.Tensor) -> np.ndarray:
    return x.cpu().numpy()


def _pairs(indptr: np.ndarray) -> zip[tuple[Any, Any]]:
    return zip(indptr[:-1], indptr[1:])


def _indptr(sizes: list[int]) -> np.ndarray:
    return np.cumsum([0, *sizes]).astype(np.int32)
