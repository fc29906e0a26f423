"""The tensors of one shape, in every form that a peer asks for; all hold the same numbers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .traces import TraceStep
from .workloads import Shape, token_indices

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class TooLarge(RuntimeError):
    """A form of the tensors that does not fit into what is free."""


@dataclass(frozen=True)
class Paged:
    """K and V in pages ``[pages, page_tokens, kv_heads, head_dim]``, with page tables."""

    page_tokens: int
    table: np.ndarray  #: ``[batch, pages of the longest sequence]``
    widths: np.ndarray  #: pages of each sequence
    k: torch.Tensor
    v: torch.Tensor

    @property
    def indptr(self) -> np.ndarray:
        return np.append(0, np.cumsum(self.widths)).astype(np.int32)

    @property
    def ids(self) -> np.ndarray:
        """The page ids of all sequences, one after another."""
        return self.table[np.arange(self.table.shape[1]) < self.widths[:, None]]


@dataclass(frozen=True)
class Level:
    """One level with tokens: K and V ``[nodes, tokens, kv_heads, head_dim]``, contiguous."""

    k: torch.Tensor
    v: torch.Tensor

    @property
    def nodes(self) -> int:
        return self.k.shape[0]

    @property
    def tokens(self) -> int:
        return self.k.shape[1]


_ALIGN = 4096


def empty(size: tuple[int, ...], dtype: torch.dtype, device: str) -> torch.Tensor:
    """Memory for K or V; on the CPU that of NumPy, which asks for huge pages as a pool should, but
    begins 16 bytes after a cache line by itself."""
    if device == "cuda":
        return torch.empty(size, dtype=dtype, device=device)
    wanted = math.prod(size) * dtype.itemsize
    memory = np.empty(wanted + _ALIGN, np.uint8)
    begin = -memory.ctypes.data % _ALIGN
    return torch.from_numpy(memory[begin : begin + wanted]).view(dtype).view(size)


class Problem:
    """Normal numbers from one seed. ``q`` is ``[batch * q_len, q_heads, head_dim]``."""

    def __init__(self, shape: Shape, dtype: str, device: str, seed: int = 1) -> None:
        self.shape, self.dtype, self.device = shape, dtype, device
        generator = torch.Generator(device).manual_seed(seed)

        def normal(*size: int) -> torch.Tensor:
            made = empty(size, DTYPES[dtype], device)
            for part in made.split(max(1, 2**26 // made[0].numel())):
                part.copy_(torch.randn(part.shape, generator=generator, device=device))
            return made

        self.q = normal(shape.batch * shape.q_len, shape.q_heads, shape.head_dim)
        size = (shape.unique_tokens, shape.kv_heads, shape.head_dim)
        self._k, self._v = normal(*size), normal(*size)

    def clone(self) -> Problem:
        """The same numbers, K and V in other memory."""
        made = object.__new__(Problem)
        made.shape, made.dtype, made.device, made.q = self.shape, self.dtype, self.device, self.q
        made._k, made._v = (self.copied(x) for x in (self._k, self._v))
        return made

    def copied(self, x: torch.Tensor) -> torch.Tensor:
        """A contiguous copy of K or V."""
        return empty(tuple(x.shape), x.dtype, self.device).copy_(x)

    @property
    def kv_bytes(self) -> int:
        """K and V, each shared token once."""
        return 2 * self._k.numel() * self._k.element_size()

    @property
    def page_sizes(self) -> tuple[int, ...]:
        """Which a peer that takes page tables tries."""
        return (self.shape.page_tokens,) if self.shape.page_tokens else (64, 16)

    def ints(self, x: Any) -> torch.Tensor:
        """Integers as peers take them: int32, on the device."""
        return torch.from_numpy(np.ascontiguousarray(x, np.int32)).to(self.device)

    def packed(self) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of all levels one after another, each shared token once, ``[tokens, kv_heads,
        head_dim]``; copies."""
        k, v = (
            torch.cat([getattr(level, name).flatten(0, 1) for level in self.levels])
            for name in "kv"
        )
        return k, v

    @functools.cached_property
    def q_indptr(self) -> np.ndarray:
        return np.arange(self.shape.batch + 1, dtype=np.int32) * np.int32(self.shape.q_len)

    @functools.cached_property
    def kv_len(self) -> np.ndarray:
        return self.shape.lengths.astype(np.int32)

    def paged(self, page_tokens: int) -> Paged:
        """As an engine holds it: shared pages once."""
        return self._made("paged", self._make_paged, page_tokens)

    def _make_paged(self, page_tokens: int) -> Paged:
        pages = self.shape.page_tables(page_tokens)
        slots = torch.from_numpy(pages.slots).to(self.device)
        widths = -(-self.shape.lengths // page_tokens)
        return Paged(page_tokens, pages.table, widths, *self._gather(slots))

    def level_pages(self, page_tokens: int) -> tuple[Paged, list[np.ndarray]]:
        """Each level in pages of its own, as FlashInfer's cascade wants it: (one pool for all,
        the page table ``[nodes, pages]`` of each level with tokens)."""
        return self._made("level pages", self._make_level_pages, page_tokens)

    def _make_level_pages(self, page_tokens: int) -> tuple[Paged, list[np.ndarray]]:
        tables, slots, used, offset = [], [], 0, 0
        for nodes, tokens in zip(self.shape.nodes, self.shape.tokens):
            if tokens == 0:
                continue
            width = -(-tokens // page_tokens)
            padded = np.full((nodes, width * page_tokens), -1, np.int64)
            padded[:, :tokens] = offset + np.arange(nodes * tokens).reshape(nodes, tokens)
            slots.append(padded.reshape(-1, page_tokens))
            tables.append(used + np.arange(nodes * width).reshape(nodes, width))
            used, offset = used + nodes * width, offset + nodes * tokens
        order = np.random.default_rng(0).permutation(used)
        shuffled = np.empty((used, page_tokens), np.int64)
        shuffled[order] = np.concatenate(slots)
        pool = self._gather(torch.from_numpy(shuffled).to(self.device))
        tables = [order[table].astype(np.int32) for table in tables]
        return Paged(page_tokens, np.empty((0, 0), np.int32), np.empty(0, np.int32), *pool), tables

    @functools.cached_property
    def levels(self) -> list[Level]:
        """The levels that have tokens, outermost first: views."""
        made, offset = [], 0
        for nodes, tokens in zip(self.shape.nodes, self.shape.tokens):
            size = (nodes, tokens, self.shape.kv_heads, self.shape.head_dim)
            rows = slice(offset, offset + nodes * tokens)
            if tokens:
                made.append(Level(self._k[rows].view(size), self._v[rows].view(size)))
            offset += nodes * tokens
        return made

    @functools.cached_property
    def whole(self) -> Level:
        """Every sequence's whole context ``[batch, tokens, kv_heads, head_dim]``: a view where one
        node holds all tokens, a copy otherwise. Raises TooLarge."""
        shape = self.shape
        if len(self.levels) == 1 and self.levels[0].nodes in (1, shape.batch):
            size = (shape.batch, *self.levels[0].k.shape[1:])
            return Level(self.levels[0].k.expand(size), self.levels[0].v.expand(size))
        needed = 2 * shape.batch * shape.sequence_tokens * shape.kv_heads * shape.head_dim
        needed *= self.q.element_size()
        if needed > 0.6 * free_bytes(self.device):
            raise TooLarge(f"copies of every context take {needed / 1e9:.1f} GB")
        tokens = torch.from_numpy(token_indices(shape)).to(self.device)
        return Level(*self._gather(tokens))

    def sequence(self, b: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of one sequence, ``[tokens, kv_heads, head_dim]``."""
        if isinstance(self.shape, TraceStep):
            tokens = torch.from_numpy(self.shape.sequences[b]).to(self.device)
            return self._k[tokens], self._v[tokens]
        parts = [(level.k, level.v, level.nodes) for level in self.levels]
        nodes = [int(self.shape.node_of(level)[b]) for level in self.shape.levels]
        k, v = zip(*[(k[node], v[node]) for (k, v, _), node in zip(parts, nodes)])
        return torch.cat(k), torch.cat(v)

    def folded(self, nodes: int) -> torch.Tensor:
        """The rows under each of ``nodes`` equal groups of neighbours: a view
        ``[nodes, rows, q_heads, head_dim]``."""
        if self.shape.batch % nodes:
            raise NotImplementedError(f"{nodes} nodes over {self.shape.batch} sequences")
        return self.q.view(nodes, -1, self.shape.q_heads, self.shape.head_dim)

    @functools.cached_property
    def _pools(self) -> dict[tuple[str, int], Any]:
        return {}

    def _made(self, name: str, make: Callable[[int], Any], page_tokens: int) -> Any:
        """Made once for each page size."""
        if (name, page_tokens) not in self._pools:
            self._pools[name, page_tokens] = make(page_tokens)
        return self._pools[name, page_tokens]

    def _gather(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of tokens; zeros where the index is -1."""
        no_token = index < 0
        index = index.clamp(min=0)
        result = []
        for x in (self._k, self._v):
            made = empty((*index.shape, *x.shape[1:]), x.dtype, self.device)
            torch.index_select(x, 0, index.flatten(), out=made.view(-1, *x.shape[1:]))
            made[no_token] = 0
            result.append(made)
        return result[0], result[1]


def free_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    with open("/proc/meminfo") as file:
        fields = dict(line.split(":") for line in file)
    return 1024 * int(fields["MemAvailable"].split()[0])
