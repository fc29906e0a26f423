"""Plans: what is shared, how it is split, and why."""

from __future__ import annotations

import itertools
import os
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import _arguments as arguments
from . import _arrays, _native
from ._spec import Spec


class Segment(NamedTuple):
    """A maximal run of tokens that the same sequences hold at the same positions."""

    parent: int  #: index of the segment before it, -1 at the start of a sequence
    depth: int  #: number of segments before it
    token_begin: int  #: position of its first token
    token_end: int  #: one past its last token, of the longest sequence that reaches it
    sequences: int  #: how many sequences hold it
    shared: bool  #: whether the plan reads it once for all of them


class Plan:
    """The work list of one :func:`attend` call, and what it takes to make the next one.

    Made by :func:`plan`. In a decode loop keep it and call :meth:`update` once a step. Any number
    of threads may use a plan, one call at a time.
    """

    __slots__ = (
        "__weakref__",
        "_cpu",
        "_cuda_index",
        "_handle",
        "_numbers",
        "_wait_for_programs",
        "device",
        "dtype_code",
        "handle",
        "kv_dtype_code",
        "spec",
    )

    def __init__(
        self,
        spec: Spec,
        *,
        share: str = "auto",
        batch_invariant: bool = False,
        cut_tokens: int = 512,
        device: Any = "cpu",
        threads: int = 0,
        profile: str | os.PathLike[str] | None = None,
    ) -> None:
        name, index = arguments.device_of(device)
        threads = arguments.integer("threads", threads)
        if threads and name != "cpu":
            raise ValueError(f"threads: got {threads}, which only the device cpu takes; want 0")
        self.spec = spec
        self.dtype_code = spec.dtype_code  # `attend` asks often
        self.kv_dtype_code = spec.kv_dtype_code
        self.device = f"cuda:{index}" if name == "cuda" else name
        self._cuda_index = index if name == "cuda" else None
        self._handle = _native.plan_new(
            name,
            index,
            threads,
            spec.q_heads,
            spec.kv_heads,
            spec.head_dim,
            spec.dtype_code,
            spec.kv_dtype_code,
            spec.scale,
            spec.soft_cap,
            spec.causal,
            spec.window,
            arguments.choice("share", share, arguments.SHARING),
            arguments.flag("batch_invariant", batch_invariant),
            arguments.integer("cut_tokens", cut_tokens),
            "" if profile is None else arguments.text_of_file("profile", profile),
        )
        self._numbers: tuple[Any, ...] | None = None
        self._cpu = _native.cpu(threads) if name == "cpu" else None
        #: What graphs of PyTorch and JAX hold in place of the plan; no two plans have the same.
        self.handle = next(_handles)
        _plans[self.handle] = self
        # Set by those who look the plan up after a call has returned.
        self._wait_for_programs: Callable[[], None] | None = None

    def update(
        self,
        q_indptr: Any,
        kv_len: Any,
        page_indptr: Any,
        page_ids: Any,
        *,
        visible: Any = None,
        tree_mask: Any = None,
        changed: Sequence[int] | None = None,
    ) -> None:
        """Plans again for another batch, or for the next step of the same one.

        The batch is described as for :func:`plan`, and so are ``visible`` and ``tree_mask``.
        Without ``changed`` the shared runs are found anew. With it, the cost is that of what
        changed since the step before: a sequence that is not listed must hold the pages that it
        held, possibly followed by more, and be at least as long; listed ones may hold anything;
        sequences past the old batch size are new. An empty list is a decode step. That unlisted
        sequences hold the same pages is not checked, but ids beyond all pages of the batch are
        refused.

        When it raises, the plan is what it was before. On a CUDA device the new plan is copied by
        the next :func:`attend` or :meth:`upload`.
        """
        if self._wait_for_programs is not None:
            self._wait_for_programs()
        indptr, ids = tables_of(page_indptr, page_ids)
        ranges = listed = None
        if visible is not None:
            ranges = arguments.host_ranges("visible", visible)
        if changed is not None:
            listed = arguments.host_ints("changed", changed)
        _native.plan_make(
            self._handle,
            arguments.host_ints("q_indptr", q_indptr),
            arguments.host_ints("kv_len", kv_len),
            indptr,
            ids,
            self.spec.page_tokens,
            ranges,
            None if tree_mask is None else arguments.host_masks("tree_mask", tree_mask),
            listed,
        )
        self._numbers = None

    def upload(self, stream: Any = None) -> None:
        """Enqueues the copies of the plan to its CUDA device.

        Only needed in the capture of a CUDA graph, where it belongs before the first
        :func:`attend`: replays then run the plan of the last :meth:`update`, which is to be called
        when the last replay is past the copies. ``stream`` is a stream of PyTorch or CuPy or the
        address of a ``cudaStream_t``; by default the current stream of the one that is loaded.
        """
        if self._cuda_index is None:
            raise ValueError(f"plan: got one for {self.device}, want one for a CUDA device")
        _native.upload(self._handle, _arrays.current_stream(self._cuda_index, stream))

    def explain(self) -> str:
        """What is shared, what is not and why, bytes and FLOPs saved, the predicted time."""
        return _native.plan_explain(self._handle)

    def json(self, work_items: bool = False) -> str:
        """The same and more for programs, as one line of JSON."""
        return _native.plan_json(self._handle, arguments.flag("work_items", work_items))

    def segments(self) -> list[Segment]:
        """The forest of the batch, parents before children; a shared segment is read once."""
        fields = np.frombuffer(_native.plan_segments(self._handle), np.int32).reshape(-1, 6)
        return [
            Segment(parent, depth, begin, end, sequences, bool(shared))
            for parent, depth, begin, end, sequences, shared in fields.tolist()
        ]

    def _number(self, index: int) -> Any:
        if self._numbers is None:
            self._numbers = tuple(_native.plan_numbers(self._handle))
        return self._numbers[index]

    @property
    def page_tokens(self) -> int:
        """Tokens of a page."""
        return self.spec.page_tokens

    @property
    def q_heads(self) -> int:
        """Query heads."""
        return self.spec.q_heads

    @property
    def kv_heads(self) -> int:
        """Heads of K and V."""
        return self.spec.kv_heads

    @property
    def head_dim(self) -> int:
        """Elements of a head."""
        return self.spec.head_dim

    @property
    def dtype(self) -> str:
        """Of q and the output: "fp32", "bf16" or "fp16"."""
        return self.spec.dtype

    @property
    def kv_dtype(self) -> str:
        """Of K and V: as dtype, or "fp8"."""
        return self.spec.kv_dtype

    @property
    def q_rows(self) -> int:
        """Query rows of the batch: the first dimension of q."""
        return self._number(0)

    @property
    def sequences(self) -> int:
        """Sequences of the batch."""
        return self._number(1)

    @property
    def plan_bytes(self) -> int:
        """Size of the plan itself."""
        return self._number(2)

    @property
    def workspace_bytes(self) -> int:
        """Memory that the plan keeps for partial results and scratch."""
        return self._number(3)

    @property
    def predicted_us(self) -> float:
        """Predicted time of one :func:`attend` in microseconds."""
        return self._number(4)

    @property
    def predicted_unshared_us(self) -> float:
        """The same without sharing."""
        return self._number(5)

    @property
    def roof_us(self) -> float:
        """The time below which no implementation can be on this device, in microseconds."""
        return self._number(6)

    @property
    def kv_bytes(self) -> int:
        """Bytes of K and V that the plan reads."""
        return self._number(7)

    @property
    def unshared_kv_bytes(self) -> int:
        """The same without sharing."""
        return self._number(8)

    def __repr__(self) -> str:
        return (
            f"<pando_attn.Plan for {self.device}: {self.sequences} sequences, {self.q_rows} query "
            f"rows, heads {self.q_heads}/{self.kv_heads}, {self.head_dim} x {self.dtype}"
            f"{' on fp8 KV' if self.kv_dtype == 'fp8' else ''}, "
            f"{self.predicted_us:.1f} us ({self.predicted_unshared_us:.1f} us without sharing)>"
        )


_handles = itertools.count(1)
_plans: weakref.WeakValueDictionary[int, Plan] = weakref.WeakValueDictionary()


def plan_of_handle(handle: int) -> Plan:
    """The plan whose ``handle`` this is; ValueError when there is none, or none any more."""
    plan = _plans.get(handle)
    if plan is None:
        raise ValueError(f"plan: got handle {handle}, want that of a plan that is still alive")
    return plan


def tables_of(page_indptr: Any, page_ids: Any) -> tuple[np.ndarray, np.ndarray]:
    """Page tables in the one form that the library knows."""
    if page_indptr is not None:
        return (
            arguments.host_ints("page_indptr", page_indptr),
            arguments.host_ints("page_ids", page_ids),
        )
    ids = arguments.host_ints("page_ids", page_ids, ndim=2)
    rows, width = ids.shape
    if rows * width > np.iinfo(np.int32).max:
        raise ValueError(f"page_ids: got {rows} x {width} ids, want fewer than 2^31")
    return np.arange(rows + 1, dtype=np.int32) * np.int32(width), ids.reshape(-1)
