"""Where Transformers' continuous batching meets Pando."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable
from typing import Any

import torch
from transformers.generation.continuous_batching import (
    ContinuousBatchingManager,
    PagedAttentionCache,
)
from transformers.generation.continuous_batching.model_runner import ModelRunner

from ._attention import attention_forward
from ._continuous import ContinuousStep, TablePlans
from ._engine_fp8 import plug_in_fp8

#: Graphs that an engine keeps, those used last; with ``use_async_batching`` it has two such sets.
#: Each has plans of its own, and these memory on the device. A batch that is padded to another size
#: than all of them captures its graph anew.
MOST_GRAPHS = 64


class _Engines:
    """The step that each engine's cache is in, and the plans that its steps use."""

    def __init__(self) -> None:
        self._plans: weakref.WeakKeyDictionary[Any, dict[Any, TablePlans]] = (
            weakref.WeakKeyDictionary()
        )
        self._steps: weakref.WeakKeyDictionary[Any, tuple[Any, ContinuousStep]] = (
            weakref.WeakKeyDictionary()
        )
        # Those of each CUDA graph, which knows where they are on the device.
        self._plans_of_graph: weakref.WeakKeyDictionary[Any, dict[Any, TablePlans]] = (
            weakref.WeakKeyDictionary()
        )
        self._steps_in_graph: weakref.WeakKeyDictionary[Any, ContinuousStep] = (
            weakref.WeakKeyDictionary()
        )

    def step(self, cache: Any, kwargs: dict[str, Any]) -> ContinuousStep:
        """The step that a layer's keyword arguments belong to: all layers get the same list."""
        in_graph = self._steps_in_graph.get(cache)
        if in_graph is not None:
            return in_graph
        of, step = self._steps.get(cache, (None, None))
        if step is None or of is not kwargs["write_index"]:
            plans = self._plans.setdefault(cache, {})
            step = ContinuousStep(cache, plans, kwargs)
            self._steps[cache] = (kwargs["write_index"], step)
        return step

    def compute_in_graph(
        self, runner: Any, kwargs: dict[str, Any], compute: Callable[[], None]
    ) -> None:
        """A forward pass that is the replay of a CUDA graph, or after which there is one.

        A replay runs nothing here: its plans are made and copied to the device before it. The first
        pass of a graph runs the layers once before it captures them, which makes their plans.
        """
        ios, cache = runner.inputs_and_outputs, runner.cache
        graph = ios.get_graph()
        fp8 = getattr(cache, "pando_fp8", None)
        if graph is not None and fp8 is not None and not fp8.fixed:
            ios.set_graph(None)  # a replay fixes no scales
            graph = None
        plans = {} if graph is None else self._plans_of_graph[graph]
        with torch.cuda.stream(ios.compute_stream):
            step = ContinuousStep(cache, plans, kwargs, in_graph=True)
            try:
                step.update()
            except ValueError:  # the plans have outgrown the graph; or the next ones will tell
                if ios.compute_stream is not None:
                    ios.compute_stream.synchronize()
                ios.set_graph(None)
                plans = {}
                step = ContinuousStep(cache, plans, kwargs, in_graph=True)
        self._steps_in_graph[cache] = step
        try:
            compute()
        finally:
            del self._steps_in_graph[cache]
        graph = ios.get_graph()
        if graph is not None:
            self._plans_of_graph[graph] = plans
        _keep_those_used_last(ios)


def _keep_those_used_last(ios: Any) -> None:
    """Drops graphs of an engine beyond the limit, and with them their plans."""
    of = ios.io_pairs[ios.current_pair].device_io if hasattr(ios, "io_pairs") else ios
    graphs: dict[Any, Any] = of.graphs._storage  # from here on in the order of their use
    key = of._get_graph_key()
    if key in graphs:
        graphs[key] = graphs.pop(key)
    if len(graphs) > MOST_GRAPHS:
        if ios.compute_stream is not None:
            ios.compute_stream.synchronize()  # one of them may still run
        while len(graphs) > MOST_GRAPHS:
            del graphs[next(iter(graphs))]


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
        key, value = step.gathered(
            layer,
            key,
            value,
            lambda k, v: tuple(
                x.transpose(0, 1).unsqueeze(0)
                for x in cache.update(k, v, layer, kwargs["read_index"], kwargs["write_index"])
            ),
        )
    return attention_forward(module, query, key, value, None, pando=step, **kwargs)


def plug_in() -> None:
    """Lets continuous batching take "pando", for which Transformers has no hook of its own."""
    manager: Any = ContinuousBatchingManager
    paged_cache: Any = PagedAttentionCache
    runner: Any = ModelRunner
    compute = runner.compute_batch
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
            key_states, value_states = step.gathered(
                layer_idx,
                key_states,
                value_states,
                lambda k, v: update(self, k, v, layer_idx, kwargs),
            )
        kwargs["pando"] = step
        return key_states, value_states

    @functools.wraps(compute)
    def compute_with_pando(self: Any, model: Any, batch_data: dict[str, Any]) -> None:
        ios = self.inputs_and_outputs
        if (
            model.config._attn_implementation not in ("pando", "paged|pando")
            or not self._get_forward_fn(use_block_table=ios.use_block_table)[1]
        ):
            compute(self, model, batch_data)
            return
        _engines.compute_in_graph(self, batch_data, lambda: compute(self, model, batch_data))

    plug_in_fp8()
    runner.compute_batch = compute_with_pando
    manager.switch_to_cb_friendly_attn = switch_with_pando
    manager.switch_to_cb_friendly_attn.pando = True
    if model_updates:
        paged_cache.update = torch.compiler.disable(update_with_pando)
