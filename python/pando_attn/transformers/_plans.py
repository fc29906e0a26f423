"""Plans for the layers of a model: made once a step for all layers that see the same."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from .._arguments import dtype_code
from .._plan import Plan


class Tables(NamedTuple):
    """The page tables of one step, as :func:`pando_attn.plan` takes them."""

    q_indptr: np.ndarray  #: [B+1]
    kv_len: np.ndarray  #: [B]
    page_indptr: np.ndarray  #: [B+1]
    page_ids: np.ndarray
    page_tokens: int


class Scoring(NamedTuple):
    """What a layer does to its scores, and which of them it sees beside the mask."""

    scale: float
    window: int = 0
    soft_cap: float = 0.0
    sinks: torch.Tensor | None = None  #: fp32 [q_heads]


class Shape(NamedTuple):
    """What a plan depends on beside the page tables; layers of one shape share it."""

    q_heads: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device
    scale: float
    window: int
    soft_cap: float
    page_tokens: int

    def plan(self) -> Plan:
        """A plan that has yet to be made for a batch."""
        on_cpu = self.device.type == "cpu"
        return Plan(
            page_tokens=self.page_tokens,
            q_heads=self.q_heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            dtype=self.dtype,
            scale=self.scale,
            soft_cap=self.soft_cap,
            causal=True,
            window=self.window,
            share="auto",
            batch_invariant=False,
            cut_tokens=512,
            device=str(self.device),
            threads=torch.get_num_threads() if on_cpu else 0,
        )


def shape_of(query: torch.Tensor, kv_heads: int, scoring: Scoring, page_tokens: int) -> Shape:
    """Of a layer whose ``query`` is ``[..., q_heads, rows, head_dim]``."""
    try:
        dtype_code(query.dtype)
    except ValueError:
        raise NotImplementedError(
            f"query: got {query.dtype}, want one of float32, bfloat16, float16"
        ) from None
    return Shape(
        q_heads=query.shape[-3],
        kv_heads=kv_heads,
        head_dim=query.shape[-1],
        dtype=query.dtype,
        device=query.device,
        scale=scoring.scale,
        window=scoring.window,
        soft_cap=scoring.soft_cap,
        page_tokens=page_tokens,
    )


class StepPlans:
    """The plans of a loop of steps; each is updated by the first layer that needs it in a step."""

    def __init__(self) -> None:
        self._plans: dict[Shape, Plan] = {}
        self._of_step: dict[Shape, Tables] = {}

    def plan(self, shape: Shape, tables: Tables) -> Plan:
        """The plan of a layer in the step that ``tables`` belongs to."""
        plan = self._plans.get(shape)
        if plan is None:
            plan = self._plans[shape] = shape.plan()
        if self._of_step.get(shape) is not tables:
            self._of_step.pop(shape, None)  # an update that fails leaves the plan of another step
            plan.update(*tables[:4])
            self._of_step[shape] = tables
        return plan

    def update(self, tables: Tables) -> None:
        """Makes all plans for a step whose layers do not come here, and copies them to the device:
        those of a captured CUDA graph."""
        for shape, plan in self._plans.items():
            self._of_step.pop(shape, None)
            plan.update(*tables[:4])
            if shape.device.type == "cuda":
                plan.upload()
            self._of_step[shape] = tables


class _MadeFor:
    """The mask and the lengths that a plan was made for."""

    def __init__(self, mask: torch.Tensor, tables: Tables) -> None:
        self._mask = weakref.ref(mask)
        self._written = _writes(mask)
        self._kv_len = tables.kv_len

    def holds(self, mask: torch.Tensor, tables: Tables) -> bool:
        """Whether it is the same mask, unchanged."""
        return (
            self._mask() is mask
            and self._written == _writes(mask)
            and np.array_equal(self._kv_len, tables.kv_len)
        )


def _writes(x: torch.Tensor) -> int:
    return 0 if x.is_inference() else x._version  # nobody counts those to inference tensors


class MaskPlans(threading.local):
    """The plans of attention under masks, of one thread; one for each mask that is in use."""

    _MOST_MASKS = 4  # of a model: full, sliding window, ...

    def __init__(self) -> None:
        self._plans: dict[Shape, list[tuple[_MadeFor | None, Plan]]] = {}

    def plan(
        self,
        shape: Shape,
        mask: torch.Tensor | None,
        tables: Tables,
        visible: Callable[[], np.ndarray],
    ) -> Plan:
        """The plan under a mask; ``visible`` says which ranges the rows see, ``[q_rows, 2]``."""
        known = self._plans.setdefault(shape, [])
        for i, (made_for, plan) in enumerate(known):
            if mask is not None and made_for is not None and made_for.holds(mask, tables):
                known.append(known.pop(i))
                return plan
        plan = known.pop(0)[1] if len(known) == self._MOST_MASKS else shape.plan()
        plan.update(*tables[:4], visible=visible())
        known.append((None if mask is None else _MadeFor(mask, tables), plan))
        return plan
