"""Which rank holds which page, and what a batch looks like from one rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .. import _arguments as arguments
from .. import _native
from .._plan import tables_of
from ._batch import RankBatch, WholeBatch

_NOWHERE = -1


class Pages(NamedTuple):
    """Some pages in the order of the forest, and how many of their tokens are in use."""

    ids: np.ndarray  #: each page once
    tokens: np.ndarray
    bounds: np.ndarray  #: [segments+1]: where those of each segment begin

    @staticmethod
    def of(kv_len: np.ndarray, indptr: np.ndarray, ids: np.ndarray, page_tokens: int) -> Pages:
        """Those that sequences of such lengths use; raises what is wrong with the tables."""
        no_rows = np.zeros(kv_len.size + 1, np.int32)
        fields = np.frombuffer(
            _native.forest_segments(no_rows, kv_len, indptr, ids, page_tokens), np.int32
        ).reshape(-1, 3)
        held = [np.zeros(0, np.int32)]
        used = [np.zeros(0, np.int64)]
        for begin, end, sequence in fields.tolist():
            first = indptr[sequence] + begin // page_tokens
            count = -(-(end - begin) // page_tokens)
            held.append(ids[first : first + count])
            tokens = np.full(count, page_tokens, np.int64)
            tokens[-1] = end - begin - (count - 1) * page_tokens
            used.append(tokens)
        bounds = np.cumsum([x.size for x in held])
        pages, tokens = np.concatenate(held), np.concatenate(used)
        # A page that stands in several segments lies where it lies in the first of them.
        first_of = np.sort(np.unique(pages, return_index=True)[1])
        return Pages(pages[first_of], tokens[first_of], np.searchsorted(first_of, bounds))


@dataclass(frozen=True, eq=False)
class Placement:
    """Which rank holds each page of a batch. Made by :func:`place`."""

    ranks: int
    page_tokens: int
    owner: np.ndarray  #: int32 by page id: its rank, -1 for pages that the batch does not use
    local: np.ndarray  #: int32 by page id: its place in the K and V of its rank
    tokens: np.ndarray  #: int64 [ranks]: tokens that each rank holds

    def pages(self, rank: int) -> np.ndarray:
        """Which page each place of a rank's K and V holds; -1 where it is free."""
        ids = np.flatnonzero(self.owner == self._rank(rank))
        pages = np.full(self.local[ids].max(initial=-1) + 1, _NOWHERE, np.int32)
        pages[self.local[ids]] = ids
        return pages

    def batch(
        self,
        rank: int,
        q_indptr: Any,
        kv_len: Any,
        page_indptr: Any,
        page_ids: Any,
        *,
        causal: bool = True,
        window: int = 0,
        visible: Any = None,
    ) -> RankBatch:
        """The batch from one rank; arguments as for :func:`pando_attn.plan` of the whole batch.

        Lengths may be those of the batch that was placed, or shorter.
        """
        tables = (q_indptr, kv_len, page_indptr, page_ids)
        whole = WholeBatch.of(tables, self.page_tokens, causal, window, visible)
        return self.seen_from(rank, whole, self.owners(whole))

    def owners(self, whole: WholeBatch) -> np.ndarray:
        """The rank of each page of ``whole.used``."""
        used = whole.used
        try:
            owners = self.owner[used]
        except IndexError:
            owners = None
        if owners is None or min(used.min(initial=0), owners.min(initial=0)) < 0:
            held = np.append(self.owner, _NOWHERE)[np.clip(used, -1, self.owner.size)]
            lost = used[held == _NOWHERE][0]
            raise ValueError(
                f"page_ids: got page {lost}, which no rank holds; want a placement of it"
            )
        return owners

    def seen_from(self, rank: int, whole: WholeBatch, owners: np.ndarray) -> RankBatch:
        """What a rank holds of a batch whose pages have these owners."""
        held = np.flatnonzero(owners == self._rank(rank))
        return whole.seen(held, self.local[whole.used[held]], self.pages(rank))

    def _rank(self, rank: Any) -> int:
        number = arguments.integer("rank", rank)
        if not 0 <= number < self.ranks:
            raise ValueError(f"rank: got {number}, want 0 to {self.ranks - 1}")
        return number


def place(
    kv_len: Any,
    page_indptr: Any,
    page_ids: Any,
    page_tokens: int,
    ranks: int,
    *,
    previous: Placement | None = None,
    slack: float = 0.05,
) -> Placement:
    """Assigns the segments of a batch to ranks, so that each holds about as many bytes of KV.

    Long segments come first. A segment goes to the rank that holds least, or, when it goes on from
    pages that are placed already, to the rank of the last of these. It stays whole where the rank
    then holds at most ``1 + slack`` times the mean; otherwise it is cut at pages that fill one rank
    after the other up to the mean. Equal inputs give equal placements, on every rank.

    Args:
        kv_len: ``[B]`` tokens, as for :func:`pando_attn.plan`, and so are the next three. Sequences
            without query rows hold their pages too.
        page_indptr: ``[B+1]``; or None when ``page_ids`` is a block table ``[B, width]``.
        page_ids: the whole batch's pages, each a name for the same tokens on all ranks.
        page_tokens: tokens of a page.
        ranks: how many there are.
        previous: the placement of the step before. Its pages stay where they are, and their places
            in a rank's K and V too. Pages that the batch no longer uses are forgotten, and their
            places are free for others.
        slack: how far from the mean a rank may be before a segment is cut.

    Raises:
        ValueError or TypeError that names the argument.
    """
    ranks = arguments.integer("ranks", ranks)
    if ranks < 1:
        raise ValueError(f"ranks: got {ranks}, want 1 or more")
    slack = arguments.number("slack", slack)
    if not slack >= 0:
        raise ValueError(f"slack: got {slack}, want 0 or more")
    page_tokens = arguments.integer("page_tokens", page_tokens)
    lengths = arguments.host_ints("kv_len", kv_len)
    indptr, ids = tables_of(page_indptr, page_ids)
    pages = Pages.of(lengths, indptr, ids, page_tokens)
    if previous is not None and (previous.ranks, previous.page_tokens) != (ranks, page_tokens):
        raise ValueError(
            f"previous: got a placement of pages of {previous.page_tokens} tokens on "
            f"{previous.ranks} ranks, want {page_tokens} and {ranks}"
        )
    known = int(pages.ids.max(initial=-1)) + 1
    owner = np.full(known, _NOWHERE, np.int32)
    local = np.full(known, _NOWHERE, np.int32)
    if previous is not None:
        kept = pages.ids[pages.ids < previous.owner.size]
        owner[kept] = previous.owner[kept]
        local[kept] = previous.local[kept]
    tokens = _assign(pages, owner, ranks, slack)
    _number(pages.ids, owner, local)
    return Placement(ranks, page_tokens, owner, local, tokens)


def _assign(pages: Pages, owner: np.ndarray, ranks: int, slack: float) -> np.ndarray:
    """Gives each page of no rank one; returns the tokens of each rank."""
    loads = np.zeros(ranks, np.int64)
    of = owner[pages.ids]
    np.add.at(loads, of[of != _NOWHERE], pages.tokens[of != _NOWHERE])
    mean = pages.tokens.sum() / ranks
    most = mean * (1 + slack)
    for begin, end, after in _runs(pages, of):
        ids, tokens = pages.ids[begin:end], pages.tokens[begin:end]
        rank = int(of[after]) if after is not None else _NOWHERE
        while ids.size:
            size = tokens.sum()
            if rank == _NOWHERE or loads[rank] + size > most:
                rank = int(np.argmin(loads))
            count = ids.size
            if loads[rank] + size > most:  # as many pages as fit below the mean
                room = mean - loads[rank]
                count = max(int(np.searchsorted(np.cumsum(tokens), room, side="right")), 1)
            owner[ids[:count]] = rank
            loads[rank] += tokens[:count].sum()
            ids, tokens, rank = ids[count:], tokens[count:], _NOWHERE
    return loads


def _runs(pages: Pages, of: np.ndarray) -> list[tuple[int, int, int | None]]:
    """Runs ``[begin, end)`` of unplaced pages within one segment, the longest first, each with the
    index of the placed page of its segment that it goes on from."""
    runs: list[tuple[int, int, int | None]] = []
    for begin, end in zip(pages.bounds[:-1].tolist(), pages.bounds[1:].tolist()):
        free = begin + np.flatnonzero(of[begin:end] == _NOWHERE)
        if free.size:
            for run in np.split(free, np.flatnonzero(np.diff(free) > 1) + 1):
                first, last = int(run[0]), int(run[-1]) + 1
                runs.append((first, last, first - 1 if first > begin else None))
    total = np.concatenate([[0], np.cumsum(pages.tokens)])
    return sorted(runs, key=lambda run: (total[run[0]] - total[run[1]], run[0]))


def _number(ids: np.ndarray, owner: np.ndarray, local: np.ndarray) -> None:
    """Gives each page without a place the first free one in the K and V of its rank."""
    new = ids[local[ids] == _NOWHERE]
    old = ids[local[ids] != _NOWHERE]
    for rank in np.unique(owner[new]).tolist():
        mine = new[owner[new] == rank]
        taken = local[old[owner[old] == rank]]
        free = np.setdiff1d(np.arange(taken.size + mine.size, dtype=np.int32), taken)
        local[mine] = free[: mine.size]
