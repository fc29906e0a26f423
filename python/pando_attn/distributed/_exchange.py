"""Bringing the partial results of all ranks together: where they are written, sent and merged."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from .._arguments import kind_name
from .._merge import merge_parts
from .._plan import Plan
from ._agreement import collective

_ALIGNMENT = 16  # of what a kernel reads and writes
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # by their codes


class Rows(NamedTuple):
    """What one collective is about."""

    rows: int
    heads: int
    head_dim: int
    dtype: torch.dtype
    dtype_code: int
    device: torch.device

    @staticmethod
    def of(plan: Plan) -> Rows:
        """Those of a plan."""
        return Rows(
            rows=plan.q_rows,
            heads=plan.q_heads,
            head_dim=plan.head_dim,
            dtype=_DTYPES[plan.dtype_code],
            dtype_code=plan.dtype_code,
            device=torch.device(plan.device),
        )

    @property
    def out_bytes(self) -> int:
        """Of one row's out."""
        return self.heads * self.head_dim * self.dtype.itemsize

    @property
    def lse_bytes(self) -> int:
        """Of one row's LSEs."""
        return self.heads * 4

    def room(self, *shape: int) -> torch.Tensor:
        """Bytes; zeros, so that what is never written is a finite number."""
        return torch.zeros(shape, dtype=torch.uint8, device=self.device)

    def merge(self, out: torch.Tensor, lse: torch.Tensor, to: torch.Tensor, to_lse: Any) -> None:
        """Of ``[n, rows, ...]``, in the order of the ranks."""
        merge_parts(out, lse, to, to_lse, self.dtype_code, str(self.device))


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def check_tensor(name: str, x: Any) -> None:
    """Raises unless it is one of PyTorch."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name}: got {kind_name(x)}, want a torch.Tensor")


def check_result(name: str, x: torch.Tensor, shape: torch.Size, dtype: torch.dtype) -> None:
    """Before anything is sent: a rank that stopped between two collectives would leave the others
    waiting."""
    check_tensor(name, x)
    if x.dtype != dtype:
        raise TypeError(f"{name}: got dtype {x.dtype}, want {dtype}")
    if x.shape != shape:
        raise ValueError(f"{name}: got shape {tuple(x.shape)}, want {tuple(shape)}")


def part_of(x: torch.Tensor, dim: int, index: int, parts: int) -> torch.Tensor:
    """One of equal parts of a dimension."""
    if parts == 1:
        return x
    size = x.shape[dim] // parts
    return x.narrow(dim, index * size, size)


def scale_of_part(
    name: str, scale: torch.Tensor | None, part: int, parts: int, kv_heads: int
) -> torch.Tensor | None:
    """The scales of one of equal parts of the heads."""
    if scale is None or parts == 1 or tuple(scale.shape) == (1,):
        return scale
    if tuple(scale.shape) != (kv_heads,):
        raise ValueError(f"{name}: got shape {tuple(scale.shape)}, want (1,) or ({kv_heads},)")
    return part_of(scale, 0, part, parts)


class AllGather:
    """Every rank gets every rank's partial of every row, and merges them: one collective.

    With ``overlaps`` it runs beside what is enqueued next, on a stream of its own, which costs more
    than the same stream.

    A rank's out and LSEs lie one after the other in one buffer, so that they travel together, and
    in the place of what is received, so that nothing is copied.
    """

    def __init__(self, of: Rows, group: Any, overlaps: bool) -> None:
        self._of = of
        self._group = group
        self._overlaps = overlaps
        self._rank, self._ranks = dist.get_rank(group), dist.get_world_size(group)
        outs = of.rows * of.out_bytes
        self._all = of.room(self._ranks, _padded(outs + of.rows * of.lse_bytes))
        shape = (self._ranks, of.rows, of.heads)
        self._outs = self._all[:, :outs].view(of.dtype).view(*shape, of.head_dim)
        lses = self._all[:, outs : outs + of.rows * of.lse_bytes]
        self._lses = lses.view(torch.float32).view(shape)
        self._work: Any = None

    def targets(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Where this rank's out ``[rows, heads, head_dim]`` and LSEs ``[rows, heads]`` go."""
        return self._outs[self._rank], self._lses[self._rank]

    def start(self) -> None:
        """Begins the collective, once the partial is there."""
        with collective("the all-gather of partials", self._rank, self._ranks):
            self._work = dist.all_gather_into_tensor(
                self._all,
                self._all.narrow(0, self._rank, 1),
                group=self._group,
                async_op=self._overlaps,
            )

    def finish(self, out: torch.Tensor, lse: torch.Tensor | None) -> None:
        """Ends it, and merges into ``out`` and ``lse``."""
        with collective("the all-gather of partials", self._rank, self._ranks):
            if self._work is not None:
                self._work.wait()
        self._of.merge(self._outs, self._lses, out, lse)


class AllToAll:
    """Every rank merges a part of the rows, and then gets the others' results: two collectives,
    which for many ranks move less, since each partial goes to one rank only.

    Each row is a record of its out and its LSEs, so that the rows of a rank lie together.
    """

    def __init__(self, of: Rows, group: Any, overlaps: bool) -> None:
        self._of = of
        self._group = group
        self._overlaps = overlaps
        self._rank, self._ranks = dist.get_rank(group), dist.get_world_size(group)
        self._each = -(-of.rows // self._ranks)
        record = _padded(of.out_bytes + of.lse_bytes)
        self._sent = of.room(self._ranks, self._each, record)
        self._got = of.room(self._ranks, self._each, record)
        self._lse = torch.zeros((of.rows, of.heads), dtype=torch.float32, device=of.device)
        self._work: Any = None
        self._own_lse = torch.zeros((self._each, of.heads), dtype=torch.float32, device=of.device)

    def _views(self, records: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        of = self._of
        outs = records[..., : of.out_bytes].view(of.dtype)
        outs = outs.view(*records.shape[:-1], of.heads, of.head_dim)
        lses = records[..., of.out_bytes : of.out_bytes + of.lse_bytes].view(torch.float32)
        return outs, lses

    def targets(self) -> tuple[torch.Tensor, torch.Tensor]:
        """As of :class:`AllGather`."""
        return self._views(self._sent.flatten(0, 1))[0][: self._of.rows], self._lse

    def start(self) -> None:
        """As of :class:`AllGather`."""
        self._views(self._sent.flatten(0, 1))[1][: self._of.rows].copy_(self._lse)
        with collective("the all-to-all of partials", self._rank, self._ranks):
            self._work = dist.all_to_all_single(
                self._got, self._sent, group=self._group, async_op=self._overlaps
            )

    def finish(self, out: torch.Tensor, lse: torch.Tensor | None) -> None:
        """As of :class:`AllGather`."""
        with collective("the all-to-all of partials", self._rank, self._ranks):
            if self._work is not None:
                self._work.wait()
        # What was sent is not needed any more: the results take its place.
        outs, lses = self._views(self._sent)
        self._of.merge(*self._views(self._got), outs[self._rank], self._own_lse)
        lses[self._rank].copy_(self._own_lse)
        with collective("the all-gather of results", self._rank, self._ranks):
            dist.all_gather_into_tensor(
                self._sent, self._sent.narrow(0, self._rank, 1), group=self._group
            )
        rows = self._of.rows
        out.copy_(outs.flatten(0, 1)[:rows])
        if lse is not None:
            lse.copy_(lses.flatten(0, 1)[:rows])


EXCHANGES = {"all_gather": AllGather, "all_to_all": AllToAll}
