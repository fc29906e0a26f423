"""Masks of Transformers as what Pando knows: the range of kv positions that each row sees."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers.masking_utils import sdpa_mask

_ROWS_AT_ONCE = 256  # so that a long prompt needs no mask of rows x columns


def visible_ranges(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    **options: Any,
) -> torch.Tensor:
    """What Transformers' mask interface asks for; the mask that :func:`attention_forward` gets.

    Returns:
        int32 in host memory, ``[batch_size, 1, q_length, 2]``: row ``i`` of a sequence sees the
        columns ``[begin, end)`` of its K and V. Of four dimensions, so that Transformers takes it
        for a mask that is ready.

    Raises:
        NotImplementedError: what a row sees is no range.
    """
    options.update(allow_is_causal_skip=False, allow_is_bidirectional_skip=False)
    parts = [torch.zeros((batch_size, 0, 2), dtype=torch.int32)]
    for begin in range(0, q_length, _ROWS_AT_ONCE):
        rows = min(_ROWS_AT_ONCE, q_length - begin)
        mask: Any = sdpa_mask(
            batch_size=batch_size,
            q_length=rows,
            kv_length=kv_length,
            q_offset=q_offset + begin,
            **options,
        )
        parts.append(_ranges(mask[:, 0]))
    return torch.cat(parts, dim=1)[:, None]


def _ranges(mask: torch.Tensor) -> torch.Tensor:
    """``[B, rows, 2]`` of a mask ``[B, rows, columns]`` that is true where a row sees a column."""
    counts = mask.sum(-1, dtype=torch.int32)
    if mask.shape[-1] == 0:
        return torch.stack((counts, counts), -1).cpu()
    flags = mask.to(torch.uint8)
    begin = flags.argmax(-1).to(torch.int32)  # the first of equals; 0 where there is none
    last = mask.shape[-1] - 1 - flags.flip(-1).argmax(-1).to(torch.int32)
    if not torch.equal(torch.where(counts > 0, last + 1 - begin, 0), counts):
        raise NotImplementedError(
            "attention_mask: got a mask in which a row sees columns with gaps between them; want "
            "one range of columns for each row, such as causal, sliding window or padding gives"
        )
    return torch.stack((begin, begin + counts), -1).cpu()


def ranges_of_mask(
    mask: torch.Tensor | None, query: torch.Tensor, columns: int, causal: bool
) -> np.ndarray:
    """``[B, rows, 2]`` of whatever the attention of a layer was given.

    Args:
        mask: of :func:`visible_ranges`; or ``[B or 1, 1, rows, columns]`` that is true, or 0.0,
            where a row sees a column; or None.
        query: ``[B, q_heads, rows, head_dim]``.
        columns: tokens of K and V.
        causal: without a mask, rows are the last tokens and see what is before them.
    """
    batch, _, rows, _ = query.shape
    if mask is None:
        ends = np.full(rows, columns, np.int32)
        if causal:
            ends = np.maximum(np.arange(1 + columns - rows, 1 + columns, dtype=np.int32), 0)
        one = np.stack((np.zeros_like(ends), ends), -1)
        return np.tile(one, (batch, 1, 1))
    if mask.dtype == torch.int32 and mask.shape[1:] == (1, rows, 2):
        ranges = mask[:, 0]
    elif mask.ndim == 4 and mask.shape[1] == 1 and mask.shape[2:] == (rows, columns):
        ranges = _ranges(_seen(mask)[:, 0])
    else:
        ranges = None
    if ranges is None or ranges.shape[0] not in (1, batch):
        raise NotImplementedError(
            f"attention_mask: got shape {tuple(mask.shape)} of {mask.dtype}, want "
            f"({batch}, 1, {rows}, {columns}), the same for all heads"
        )
    return ranges.expand(batch, rows, 2).cpu().numpy()


def _seen(mask: torch.Tensor) -> torch.Tensor:
    """Where a mask lets a row see a column."""
    if mask.dtype == torch.bool:
        return mask
    seen = mask == 0
    if not torch.equal(seen, mask > torch.finfo(mask.dtype).min / 2):
        raise NotImplementedError(
            "attention_mask: got numbers that are added to the scores; want 0 and the dtype's "
            "minimum, or booleans"
        )
    return seen
