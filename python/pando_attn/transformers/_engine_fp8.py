"""Continuous batching whose pages are fp8, for which Transformers has no option of its own."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from transformers.generation.continuous_batching import PagedAttentionCache
from transformers.generation.continuous_batching import cache as cache_module
from transformers.generation.continuous_batching.model_runner import ModelRunner

from ._continuous import layer_pages
from ._fp8 import Fp8Kv, wants_fp8


@dataclass
class ContinuousBatchingConfig(transformers.ContinuousBatchingConfig):  # type: ignore[misc]
    """That of Transformers, with K and V that may be kept in one byte an element.

    Args:
        kv_dtype: "fp8"; None: K and V of the model's dtype. Wants ``attn_implementation="pando"``.
        k_scale, v_scale: of fp8 K and V, as for :class:`KvCache`; by default the first batch fixes
            them.
    """

    kv_dtype: Any = None
    k_scale: Any = None
    v_scale: Any = None
    #: Of the model: the engine takes the dtype of its cache for that of the activations, too.
    activation_dtype: torch.dtype | None = field(default=None, init=False, repr=False)


def plug_in_fp8() -> None:
    """Lets the engine's cache be fp8 where its configuration says so."""
    paged_cache: Any = PagedAttentionCache
    sizes: Any = cache_module.PagedAttentionMemoryHandler
    runner: Any = ModelRunner
    init, init_sizes, warmup = paged_cache.__init__, sizes.__init__, runner.warmup
    signature = inspect.signature(init)

    @functools.wraps(init)
    def init_of_kv_dtype(self: Any, *args: Any, **options: Any) -> None:
        given = signature.bind(self, *args, **options)
        given.apply_defaults()
        model, config = (given.arguments[n] for n in ("config", "continuous_batching_config"))
        dtype = given.arguments["dtype"]
        if not isinstance(config, ContinuousBatchingConfig) or not wants_fp8(
            config.kv_dtype, config.k_scale, config.v_scale, dtype
        ):
            init(self, *args, **options)
            return
        if model._attn_implementation not in ("pando", "paged|pando"):
            raise NotImplementedError(
                f"kv_dtype: got {config.kv_dtype!r} with attn_implementation "
                f"{model._attn_implementation}, want pando"
            )
        config.activation_dtype = dtype
        given.arguments["dtype"] = torch.uint8  # few operations of PyTorch know fp8
        init(*given.args, **given.kwargs)
        k = layer_pages(self, 0).k
        self.pando_fp8 = Fp8Kv(
            model.num_hidden_layers, k.shape[2], k.device, config.k_scale, config.v_scale
        )

    @functools.wraps(init_sizes)
    def init_sizes_of_kv_dtype(self: Any, *args: Any, **options: Any) -> None:
        init_sizes(self, *args, **options)
        for given in (*args, *options.values()):
            if isinstance(given, ContinuousBatchingConfig) and given.activation_dtype is not None:
                self.activation_dtype = given.activation_dtype

    @functools.wraps(warmup)
    def warmup_that_fixes_nothing(self: Any, *args: Any, **options: Any) -> None:
        warmup(self, *args, **options)
        fp8 = getattr(self.cache, "pando_fp8", None)
        if fp8 is not None:
            fp8.forget()  # its tokens are those of no request

    paged_cache.__init__ = init_of_kv_dtype
    sizes.__init__ = init_sizes_of_kv_dtype
    runner.warmup = warmup_that_fixes_nothing
