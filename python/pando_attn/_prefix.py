"""Pages and page tables, for those who have no engine of their own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from . import _arguments as arguments
from . import _native


class PageCopy(NamedTuple):
    """The caller must copy the first ``tokens`` slots of page ``source`` to page ``target``."""

    source: int
    target: int
    tokens: int


class Appended(NamedTuple):
    """Where the K and V of an appended token go, after ``copy`` when it is set."""

    page: int
    slot: int
    copy: PageCopy | None


class Added(NamedTuple):
    """A new sequence; the K and V of its first ``cached_tokens`` tokens are there already."""

    sequence: int
    cached_tokens: int


class PageTables(NamedTuple):
    """A batch as :func:`pando_attn.plan` takes it."""

    q_indptr: np.ndarray  #: [B+1]
    kv_len: np.ndarray  #: [B]
    page_indptr: np.ndarray  #: [B+1]
    page_ids: np.ndarray


class KvPool:
    """Page ids in ``[0, num_pages)`` with reference counts; the memory is the caller's.

    A page is free again when its last reference goes. ``page_tokens`` is a power of two up to 256.
    """

    def __init__(self, num_pages: int, page_tokens: int) -> None:
        self.num_pages = arguments.integer("num_pages", num_pages)
        self.page_tokens = arguments.integer("page_tokens", page_tokens)
        self._handle = _native.pool_new(self.num_pages, self.page_tokens)

    def allocate(self) -> int:
        """A page with one reference; raises :class:`OutOfPages` when none is free."""
        return _native.pool_allocate(self._handle)

    def retain(self, page: int) -> None:
        """Adds a reference to a page in use."""
        _native.pool_retain(self._handle, arguments.integer("page", page))

    def release(self, page: int) -> None:
        """Drops a reference of a page in use; those of prefix trees are theirs to drop."""
        _native.pool_release(self._handle, arguments.integer("page", page))

    def references(self, page: int) -> int:
        """References to a page, 0 when it is free."""
        return _native.pool_references(self._handle, arguments.integer("page", page))

    @property
    def free_pages(self) -> int:
        """Pages without references."""
        return _native.pool_free_pages(self._handle)


class PrefixTree:
    """A prefix cache over token ids: which sequences share which pages.

    Whole pages stay cached after their sequences are released, and are evicted least recently used
    first when the pool runs dry; pages of live sequences never are. A half-full page is shared only
    by :meth:`fork`, and copied when one side appends. When a method raises, nothing has changed.
    """

    def __init__(self, pool: KvPool) -> None:
        if not isinstance(pool, KvPool):
            raise TypeError(f"pool: got {arguments.kind_name(pool)}, want a pando_attn.KvPool")
        self.pool = pool
        self._handle = _native.tree_new(pool._handle)

    def match(self, tokens: Any) -> int:
        """How many leading tokens have their pages cached, a multiple of ``page_tokens``."""
        return _native.tree_match(self._handle, arguments.host_ints("tokens", tokens))

    def add(self, tokens: Any) -> Added:
        """Starts a sequence; the caller fills K and V from ``cached_tokens`` on.

        Raises :class:`OutOfPages` when it does not fit even after evicting all that can be.
        """
        return Added(*_native.tree_add(self._handle, arguments.host_ints("tokens", tokens)))

    def append(self, sequence: int, token: int) -> Appended:
        """Appends one token; raises :class:`OutOfPages` when no page can be had."""
        page, slot, *copy = _native.tree_append(
            self._handle,
            arguments.handle("sequence", sequence),
            arguments.integer("token", token),
        )
        return Appended(page, slot, PageCopy(*copy) if copy else None)

    def fork(self, sequence: int) -> int:
        """A second sequence with the same tokens, on the same pages."""
        return _native.tree_fork(self._handle, arguments.handle("sequence", sequence))

    def release(self, sequence: int) -> None:
        """Ends a sequence; its whole pages stay cached until they are evicted."""
        _native.tree_release(self._handle, arguments.handle("sequence", sequence))

    def evict(self, pages: int) -> int:
        """Evicts up to so many cached pages that no live sequence holds; returns how many."""
        return _native.tree_evict(self._handle, arguments.integer("pages", pages))

    def length(self, sequence: int) -> int:
        """Tokens of a sequence."""
        return _native.tree_length(self._handle, arguments.handle("sequence", sequence))

    def pages(self, sequence: int) -> np.ndarray:
        """Page ids of a sequence, in order."""
        return self.tables([sequence]).page_ids

    def tables(self, sequences: Iterable[int], q_lens: Any = None) -> PageTables:
        """Page tables of a batch of sequences, each with ``q_lens`` query rows (1 by default)."""
        if not isinstance(sequences, Iterable):
            got = arguments.kind_name(sequences)
            raise TypeError(f"sequences: got {got}, want a list of sequences")
        names = [arguments.handle("sequences", sequence) for sequence in sequences]
        ints = np.frombuffer(_native.tree_tables(self._handle, names), np.int32).copy()
        kv_len, page_indptr, page_ids = np.split(ints, [len(names), 2 * len(names) + 1])
        rows = np.ones(len(names), np.int32)
        if q_lens is not None:
            rows = arguments.host_ints("q_lens", q_lens)
            if rows.shape != kv_len.shape or (rows.size and rows.min() < 0):
                raise ValueError(f"q_lens: got {q_lens!r}, want {len(names)} numbers from 0 on")
        q_rows = int(rows.sum(dtype=np.int64))
        if q_rows > np.iinfo(np.int32).max:
            raise ValueError(f"q_lens: got {q_rows} query rows together, want fewer than 2^31")
        q_indptr = np.zeros(len(names) + 1, np.int32)
        np.cumsum(rows, out=q_indptr[1:])
        return PageTables(q_indptr, kv_len, page_indptr, page_ids)

    @property
    def live_sequences(self) -> int:
        """Sequences that were added or forked and not released."""
        return _native.tree_numbers(self._handle)[0]

    @property
    def cached_pages(self) -> int:
        """Pages that the tree itself holds."""
        return _native.tree_numbers(self._handle)[1]

    @property
    def evicted_pages(self) -> int:
        """Pages evicted so far."""
        return _native.tree_numbers(self._handle)[2]
