"""Transformers' continuous batching: its pages, read where they are."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers.generation.continuous_batching import (
    ContinuousBatchingManager,
    PagedAttentionCache,
)

from .._attend import attend
from ._attention import attention_forward
from ._plans import StepPlans, Tables, shape_of


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


class ContinuousStep:
    """One forward pass of continuous batching: the page tables of each group, and their plans.

    They are read from the engine's indices of single tokens, once a step for each group; on CUDA
    that waits for the copy of these indices.
    """

    def __init__(self, cache: Any, plans: dict[Any, StepPlans], kwargs: dict[str, Any]) -> None:
        self._cache = weakref.ref(cache)  # what keeps a step is kept as long as its cache
        self._plans = plans
        self._cu_seq_lens_k = kwargs["cu_seq_lens_k"]
        self._read_index = kwargs["read_index"]
        self._write_index = kwargs["write_index"]
        rows = _host(kwargs["cu_seq_lens_q"])
        self._q_indptr = rows.astype(np.int32)
        self._decode = bool((np.diff(rows) <= 1).all())
        self._tables: dict[Any, Tables] = {}

    def gathers(self, layer: int) -> bool:
        """Whether a layer's K and V are to be gathered by the engine: of a ring, several new tokens
        overwrite those that the first of them sees."""
        return self._pages(layer).slides and not self._decode

    def _pages(self, layer: int) -> LayerPages:
        return layer_pages(self._cache(), layer)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        window: int,
    ) -> torch.Tensor:
        """See :class:`pando_attn.transformers._attention.Paged`."""
        pages = self._pages(layer)
        if pages.slides and not self._decode:
            return self._attend_gathered(pages, query, key, value, scale, window)
        slots = self._write_index[pages.group]
        for target, new in ((pages.k, key), (pages.v, value)):
            target.view(-1, *target.shape[2:]).index_copy_(0, slots, new[0].transpose(0, 1))
        # In decode a ring holds just what the window lets its row see.
        return self._run(
            (pages.group, "pages"),
            lambda: self._page_tables(pages),
            query,
            pages.k,
            pages.v,
            scale,
            0 if pages.slides else window,
        )

    def _attend_gathered(
        self,
        pages: LayerPages,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        window: int,
    ) -> torch.Tensor:
        """``key`` and ``value`` are what each sequence sees, one sequence after the other."""
        k, v = (x[0].transpose(0, 1).unsqueeze(1) for x in (key, value))  # pages of one token
        if k.stride() != v.stride():
            k, v = k.contiguous(), v.contiguous()
        return self._run(
            (pages.group, "gathered"),
            lambda: self._gathered_tables(pages),
            query,
            k,
            v,
            scale,
            window,
        )

    def _run(
        self,
        kind: Any,
        make: Callable[[], Tables],
        query: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scale: float,
        window: int,
    ) -> torch.Tensor:
        tables = self._tables.get(kind)
        if tables is None:
            tables = self._tables[kind] = make()
        shape = shape_of(query, k.shape[2], scale, window, tables.page_tokens)
        plan = self._plans.setdefault(kind, StepPlans()).plan(shape, tables)
        q = query[0].transpose(0, 1)
        out = query.new_empty(q.shape)
        rows = plan.q_rows  # the engine may have padded those of the batch
        out[rows:] = 0
        attend(plan, q[:rows], k, v, out=out[:rows])
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


class _Engines:
    """The step that each engine's cache is in, and the plans that its steps use."""

    def __init__(self) -> None:
        self._plans: weakref.WeakKeyDictionary[Any, dict[Any, StepPlans]] = (
            weakref.WeakKeyDictionary()
        )
        self._steps: weakref.WeakKeyDictionary[Any, tuple[Any, ContinuousStep]] = (
            weakref.WeakKeyDictionary()
        )

    def step(self, cache: Any, kwargs: dict[str, Any]) -> ContinuousStep:
        """The step that a layer's keyword arguments belong to: all layers get the same list."""
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise NotImplementedError(
                "use_cuda_graph: got a capture of a CUDA graph; with Pando, continuous batching "
                "plans on the host in each step: want use_cuda_graph=False"
            )
        of, step = self._steps.get(cache, (None, None))
        if step is None or of is not kwargs["write_index"]:
            plans = self._plans.setdefault(cache, {})
            step = ContinuousStep(cache, plans, kwargs)
            self._steps[cache] = (kwargs["write_index"], step)
        return step


_engines = _Engines()


def paged_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    cache: Any = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Registered as "paged|pando", for versions of Transformers in which the attention keeps K and
    V of continuous batching; in others that is "pando"."""
    if not isinstance(cache, PagedAttentionCache):
        raise ValueError(
            "attn_implementation: got paged|pando without continuous batching, want pando"
        )
    step = _engines.step(cache, kwargs)
    layer: Any = module.layer_idx
    if step.gathers(layer):
        gathered = cache.update(key, value, layer, kwargs["read_index"], kwargs["write_index"])
        key, value = (x.transpose(0, 1).unsqueeze(0) for x in gathered)
    return attention_forward(module, query, key, value, None, pando=step, **kwargs)


def plug_in() -> None:
    """Lets continuous batching take "pando", for which Transformers has no hook of its own."""
    manager: Any = ContinuousBatchingManager
    paged_cache: Any = PagedAttentionCache
    switch = manager.switch_to_cb_friendly_attn
    update = paged_cache.update
    if hasattr(switch, "pando"):
        return
    model_updates = "kwargs" in inspect.signature(update).parameters  # or the attention does

    @functools.wraps(switch)
    def switch_with_pando(self: Any, model: Any, *args: Any, **options: Any) -> None:
        name = model.config._attn_implementation
        if name not in ("pando", "paged|pando"):
            switch(self, model, *args, **options)
        elif name == "pando" and not model_updates:
            model.set_attn_implementation("paged|pando")
            self._original_attn_impl = name

    @functools.wraps(update)
    def update_with_pando(
        self: Any,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        kwargs: dict[str, Any],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.config._attn_implementation != "pando":
            return update(self, key_states, value_states, layer_idx, kwargs)
        step = _engines.step(self, kwargs)
        if step.gathers(layer_idx):
            key_states, value_states = update(self, key_states, value_states, layer_idx, kwargs)
        kwargs["pando"] = step
        return key_states, value_states

    manager.switch_to_cb_friendly_attn = switch_with_pando
    manager.switch_to_cb_friendly_attn.pando = True
    if model_updates:
        paged_cache.update = torch.compiler.disable(update_with_pando)
