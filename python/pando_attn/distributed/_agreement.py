"""Whether all ranks of a group are about to do the same thing."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

_REFUSED = 0  # no digest is this


def digest_of(*arrays_and_values: Any) -> int:
    """63 bits, equal on all ranks that have equal arrays and values."""
    sha = hashlib.sha256()
    for x in arrays_and_values:
        if isinstance(x, np.ndarray):
            sha.update(f"{x.dtype}{x.shape}".encode())
            sha.update(np.ascontiguousarray(x).data)
        else:
            sha.update(f"{x!r};".encode())
    return (int.from_bytes(sha.digest()[:8], "little") >> 1) | 1


@contextlib.contextmanager
def collective(what: str, rank: int, ranks: int) -> Iterator[None]:
    """Says which collective failed, on which rank; what failed is the cause."""
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            f"group: {what} failed on rank {rank} of {ranks}; another rank may have ended ({error})"
        ) from error


def agree(digest: int | None, group: Any) -> None:
    """Raises unless all ranks of a group call this with the same digest; one small all-gather.

    None says that this rank has refused its arguments: the others then raise too, at once, since
    what comes next on them would wait for it.
    """
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    device = "cuda" if "nccl" in dist.get_backend(group) else "cpu"
    mine = torch.tensor([_REFUSED if digest is None else digest], dtype=torch.int64, device=device)
    theirs = torch.empty(ranks, dtype=torch.int64, device=device)
    with collective("comparing the plans", rank, ranks):
        dist.all_gather_into_tensor(theirs, mine, group=group)
        digests = theirs.tolist()
    if digest is None:
        return
    for other, its in enumerate(digests):
        if its == _REFUSED:
            raise ValueError(f"plan: rank {other} refused its arguments, rank {rank} did not")
    for other, its in enumerate(digests):
        if its != digests[0]:
            raise ValueError(
                f"plan: rank {other} has placement, lengths and shapes of hash {its:#018x}, rank 0 "
                f"of {digests[0]:#018x}; want the same arguments on all ranks"
            )
