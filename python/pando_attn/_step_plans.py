"""Plans for the layers of a model: made once a step for all layers that see the same."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from ._arguments import FP8, dtype_code
from ._plan import Plan
from ._spec import Spec


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

    spec: Spec
    device: torch.device
    batch_invariant: bool = False

    def plan(self) -> Plan:
        """A plan that has yet to be made for a batch."""
        return Plan(
            self.spec,
            batch_invariant=self.batch_invariant,
            device=str(self.device),
            threads=torch.get_num_threads() if self.device.type == "cpu" else 0,
        )


def shape_of(
    query: torch.Tensor, kv_heads: int, scoring: Scoring, page_tokens: int, fp8: bool = False
) -> Shape:
    """Of a layer with ``query`` ``[..., q_heads, rows, head_dim]``; K and V are fp8, or as that."""
    try:
        code = dtype_code(query.dtype)
    except ValueError:
        raise NotImplementedError(
            f"query: got {query.dtype}, want one of float32, bfloat16, float16"
        ) from None
    spec = Spec(
        page_tokens,
        query.shape[-3],
        kv_heads,
        query.shape[-1],
        code,
        scoring.scale,
        scoring.soft_cap,
        window=scoring.window,
        kv_code=FP8 if fp8 else None,
    )
    return Shape(spec, query.device)


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
