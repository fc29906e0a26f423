"""A batch as a whole, and as one rank sees it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .. import _arguments as arguments
from .. import _native
from .._plan import tables_of


class RankBatch(NamedTuple):
    """A batch as one rank sees it: of each sequence, the tokens that the rank holds, in order.

    The first five and ``visible`` are what :func:`pando_attn.plan` takes. Positions of a sequence
    are counted over what the rank holds: a row that sees ``[begin, end)`` of the whole sequence
    sees a range of what is held of it, since both are in order.
    """

    q_indptr: np.ndarray  #: [B+1], that of the whole batch
    kv_len: np.ndarray  #: [B] tokens that this rank holds
    page_indptr: np.ndarray  #: [B+1]
    page_ids: np.ndarray  #: pages of this rank's own K and V
    page_tokens: int
    visible: np.ndarray  #: [q_rows, 2]
    pages: np.ndarray  #: [own pages]: which page of the whole batch each is; -1: free

    @property
    def num_pages(self) -> int:
        """Pages that the rank's K and V must have."""
        return len(self.pages)


class WholeBatch(NamedTuple):
    """A batch with all that does not depend on which rank looks at it."""

    q_indptr: np.ndarray
    kv_len: np.ndarray
    page_tokens: int
    used: np.ndarray  #: the pages of all sequences, one sequence after the other
    first: np.ndarray  #: [B+1]: where those of each sequence begin
    ranges: np.ndarray  #: [q_rows, 2]: what each row sees of its whole sequence
    sequences: np.ndarray  #: [q_rows]: that of each row

    @staticmethod
    def of(
        batch: tuple[Any, Any, Any, Any], page_tokens: int, causal: bool, window: int, visible: Any
    ) -> WholeBatch:
        """From what :func:`pando_attn.plan` takes; raises what is wrong with it."""
        q_indptr = arguments.host_ints("q_indptr", batch[0])
        lengths = arguments.host_ints("kv_len", batch[1])
        indptr, ids = tables_of(batch[2], batch[3])
        ranges = _ranges(q_indptr, lengths, causal, window, visible)
        counts = -(-lengths // page_tokens)
        _check_tables(lengths, counts, indptr, ids)
        first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        if np.array_equal(first, indptr):  # no page is left over
            used = ids[: first[-1]]
        else:
            within = np.arange(first[-1]) - np.repeat(first[:-1], counts)
            used = ids[np.repeat(indptr[:-1].astype(np.int64), counts) + within]
        rows = np.repeat(np.arange(lengths.size), np.diff(q_indptr))
        return WholeBatch(q_indptr, lengths, page_tokens, used, first, ranges, rows)

    def seen(self, held: np.ndarray, ids: np.ndarray, pages: np.ndarray) -> RankBatch:
        """What a rank sees that holds the pages ``used[held]``, under its own ``ids``; ``held`` are
        indices, in order."""
        size, first = self.page_tokens, self.first
        of_first = np.searchsorted(held, first)
        beyond = np.append(held, -1)

        def tokens(sequences: np.ndarray, ends: np.ndarray) -> np.ndarray:
            """How many of the tokens before a position of a sequence are held."""
            at = first[sequences] + ends // size
            before = np.searchsorted(held, at)
            last = np.where(beyond[before] == at, ends % size, 0)
            return ((before - of_first[sequences]) * size + last).astype(np.int32)

        ends = [tokens(self.sequences, self.ranges[:, i]) for i in (0, 1)]
        return RankBatch(
            self.q_indptr,
            tokens(np.arange(self.kv_len.size), self.kv_len),
            of_first.astype(np.int32),
            ids,
            size,
            np.stack(ends, 1),
            pages,
        )


def _check_tables(
    lengths: np.ndarray, counts: np.ndarray, indptr: np.ndarray, ids: np.ndarray
) -> None:
    if indptr.size != lengths.size + 1:
        raise ValueError(f"page_indptr: got {indptr.size} numbers, want {lengths.size + 1}")
    if lengths.min(initial=0) < 0:
        raise ValueError(f"kv_len: got {lengths.min()}, want 0 or more")
    begins, ends = indptr[:-1], indptr[1:]
    wrong = (begins < 0) | (ends - begins < counts) | (begins + counts.astype(np.int64) > ids.size)
    if wrong.any():
        b = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"page_indptr: got [{begins[b]}, {ends[b]}) of {ids.size} page ids for sequence {b} of "
            f"{lengths[b]} tokens, want {counts[b]} pages"
        )


def _ranges(
    q_indptr: np.ndarray, kv_len: np.ndarray, causal: bool, window: int, visible: Any
) -> np.ndarray:
    """``[q_rows, 2]``: what each row sees of its whole sequence, by the one mask rule."""
    if visible is not None:
        visible = arguments.host_ranges("visible", visible)
    ranges = np.zeros((max(int(q_indptr[-1]), 0) if q_indptr.size else 0, 2), np.int32)
    _native.visible_ranges(
        q_indptr,
        kv_len,
        arguments.flag("causal", causal),
        arguments.integer("window", window),
        visible,
        ranges,
    )
    return ranges
