"""Where Transformers' continuous batching meets Pando."""

from __future__ import annotations

import functools
import inspect
import weakref
from typing import Any

import torch
from transformers.generation.continuous_batching import (
    ContinuousBatchingManager,
    PagedAttentionCache,
)

from ._attention import attention_forward
from ._continuous import ContinuousStep
from ._plans import StepPlans


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
