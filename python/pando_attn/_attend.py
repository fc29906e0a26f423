"""Attention of a plan on arrays of any framework."""

from __future__ import annotations

from typing import Any

from . import _arrays, _native
from ._arguments import LAYOUTS, choice, kind_name
from ._plan import Plan


def attend(
    plan: Plan,
    q: Any,
    k_cache: Any,
    v_cache: Any,
    *,
    out: Any = None,
    lse: Any = None,
    return_lse: bool = False,
    sinks: Any = None,
    k_scale: Any = None,
    v_scale: Any = None,
    layout: str = "NHD",
    stream: Any = None,
) -> Any:
    """Attention of ``plan``:  ``o_i = sum_j softmax_j(scale * q_i . k_j) v_j`` over visible ``j``.

    Takes anything with ``__dlpack__`` on the plan's device: NumPy, PyTorch, JAX, CuPy. bf16 and fp8
    in NumPy are ``bfloat16`` and ``float8_e4m3fn`` of ``ml_dtypes``; fp8 may also come as uint8.
    Tensors may be strided, as long as head_dim is contiguous; K and V must have the same strides.
    Nothing that no row sees is used: it may hold NaN.

    Args:
        plan: of :func:`pando_attn.plan`.
        q: ``[q_rows, q_heads, head_dim]``.
        k_cache: ``[num_pages, page_tokens, kv_heads, head_dim]``, or with layout "HND"
            ``[num_pages, kv_heads, page_tokens, head_dim]``.
        v_cache: the same.
        out: where the result goes, of the shape of q; made by q's framework when absent.
        lse: where the natural logarithm of each row's sum of exponentials goes, fp32 and contiguous
            ``[q_rows, q_heads]``; -inf for rows that see nothing.
        return_lse: make ``lse`` when it is absent.
        sinks: fp32 and contiguous ``[q_heads]``: a logit for each query head that takes part in the
            softmax of each of its rows and has no value; -inf for none. It is neither scaled nor
            capped. ``lse`` includes it: that of rows that see nothing is the sink. Of parts of the
            kv that are merged, only one must get the sinks.
        k_scale: of a plan with ``kv_dtype="fp8"``, which needs it: fp32 and contiguous ``[1]``, or
            ``[kv_heads]`` with one for each head. An element of K stands for ``k_scale * element``.
        v_scale: the same of V.
        layout: "NHD" or "HND", of K and V.
        stream: of a CUDA device, as for :meth:`Plan.upload`; by default the current stream of q's
            framework.

    Returns:
        ``out``, or ``(out, lse)`` with ``return_lse`` or a given ``lse``. On the CPU the result is
        complete; on CUDA it is enqueued.

    Raises:
        ValueError, TypeError or NotImplementedError that names the argument; nothing is written
        then.
    """
    if type(plan) is not Plan:
        raise TypeError(f"plan: got {kind_name(plan)}, want a pando_attn.Plan")
    order = LAYOUTS.get(layout) if isinstance(layout, str) else None
    if order is None:
        choice("layout", layout, LAYOUTS)  # raises
    code = plan.dtype_code
    kind = _arrays.kind_of("q", q)
    k_kind = _arrays.kind_of("k_cache", k_cache)
    v_kind = _arrays.kind_of("v_cache", v_cache)
    read_q = kind.read("q", q, code)
    read_k = k_kind.read("k_cache", k_cache, plan.kv_dtype_code)
    read_v = v_kind.read("v_cache", v_cache, plan.kv_dtype_code)
    bits = kind.bits or k_kind.bits or v_kind.bits
    if out is None:
        result = kind.like(q)
        write_out = kind.target(result, code)
    else:
        result = out
        write_out = _arrays.kind_of("out", out).write("out", out, code)
    result_lse = write_lse = None
    if lse is not None:
        result_lse = lse
        write_lse = _arrays.kind_of("lse", lse).write("lse", lse, 0)
    elif return_lse:
        result_lse = kind.lse_like(q)
        write_lse = kind.target(result_lse, 0)
    read_sinks, read_k_scale, read_v_scale = (
        None if x is None else _arrays.kind_of(name, x).read(name, x, 0)
        for name, x in (("sinks", sinks), ("k_scale", k_scale), ("v_scale", v_scale))
    )
    if plan._cuda_index is None:
        on = _arrays.FRAMEWORKS_STREAM
    elif stream is not None:
        on = _arrays.current_stream(plan._cuda_index, stream)
    else:
        on = kind.stream(q)
    try:
        _native.attend(
            plan._handle,
            plan._cpu,
            read_q,
            read_k,
            read_v,
            write_out,
            write_lse,
            read_sinks,
            read_k_scale,
            read_v_scale,
            order,
            "k_cache",
            "v_cache",
            bits,
            on,
            kind.wait,
        )
    except (BufferError, RuntimeError):
        _arrays.check_exports(
            {
                "q": read_q,
                "k_cache": read_k,
                "v_cache": read_v,
                "out": write_out,
                "lse": write_lse,
                "sinks": read_sinks,
                "k_scale": read_k_scale,
                "v_scale": read_v_scale,
            }
        )
        raise
    if out is None:
        result = kind.give(result, q)
    if result_lse is None:
        return result
    return result, result_lse if lse is not None else kind.give(result_lse, q)
