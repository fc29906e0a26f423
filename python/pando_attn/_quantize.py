"""K and V in one byte an element."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import _arrays, _native
from ._arguments import LAYOUTS, choice, flag


class QuantizeError(NamedTuple):
    """What quantising lost, over all elements but those that are no finite numbers."""

    elements: int
    saturated: int  #: beyond 448 scales, which became that
    not_finite: int  #: NaN, which stay so, and infinities, which became 448 scales
    max_abs: float  #: largest ``|scale * fp8 - x|``
    rms: float  #: root of the mean square of ``scale * fp8 - x``
    rms_element: float  #: of x itself, to hold the other against


def quantize_fp8(
    x: Any, *, scale: Any = None, by_head: bool = True, layout: str = "NHD"
) -> tuple[Any, Any, QuantizeError]:
    """Paged K or V in host memory, rounded to fp8 (E4M3): ``x ~ scale * fp8``.

    Rounds to the nearest, ties to even; what is too large saturates. Tensors on a CUDA device are
    the framework's: ``(x / scale).clamp(-448, 448).to(torch.float8_e4m3fn)``.

    Args:
        x: ``[num_pages, page_tokens, kv_heads, head_dim]``, or with layout "HND" heads before
            tokens, of fp32, bf16 or fp16; NumPy, PyTorch or JAX.
        scale: fp32 ``[1]`` or ``[kv_heads]`` in host memory; by default the smallest for which
            nothing saturates.
        by_head: make a scale for each kv head rather than one for all.
        layout: "NHD" or "HND".

    Returns:
        ``(fp8, scale, error)``: fp8 of the shape of x and scale, for :func:`pando_attn.attend`, and
        a :class:`QuantizeError`. fp8 is of the framework's ``float8_e4m3fn``, in NumPy that of
        ml_dtypes or, without it, uint8.

    Raises:
        ValueError, TypeError or NotImplementedError that names the argument.
    """
    order = choice("layout", layout, LAYOUTS)
    kind = _arrays.kind_of("x", x)
    code = _arrays.dtype_of("x", x)
    where = _arrays.device_of("x", x)
    if where != "cpu":
        raise NotImplementedError(f"x: got memory of {where}, want that of the host")
    if x.ndim != 4:
        raise ValueError(
            f"x: got {x.ndim} dimensions, want 4: num_pages, page_tokens, kv_heads, head_dim"
        )
    made = scale is None
    if made:
        heads = x.shape[1 if layout == "HND" else 2] if flag("by_head", by_head) else 1
        scale = np.empty(heads, np.float32)
    codes = np.empty(tuple(x.shape), np.uint8)
    error = _native.quantize_fp8(
        kind.read("x", x, code),
        codes,
        _arrays.kind_of("scale", scale).read("scale", scale, 0),
        not made,
        order,
        code,
        kind.bits,
    )
    return kind.fp8(codes), kind.from_host(scale) if made else scale, QuantizeError(*error)
