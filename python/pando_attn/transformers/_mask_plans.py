"""Plans for attention under a model's own masks."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

import numpy as np
import torch

from .._plan import Plan
from .._step_plans import Shape, Tables


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
