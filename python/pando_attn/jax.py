"""Attention inside of programs that JAX compiles, by its foreign function interface.

    from pando_attn.jax import attend

    @jax.jit
    def layer(q, k_cache, v_cache):
        return attend(plan, q, k_cache, v_cache)

The compiled program holds ``Plan.handle``, an integer, and looks the plan up when it runs. Needs
the package jax-tvm-ffi, which hands the buffers of XLA over as they are.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import tvm_ffi

from . import _native
from ._arguments import DTYPES, LAYOUTS, choice, kind_name
from ._arrays import FRAMEWORKS_STREAM, dtype_of
from ._plan import Plan, plan_of_handle

try:
    import jax_tvm_ffi
except ImportError:
    raise ImportError(
        "pando_attn.jax: needs the package jax-tvm-ffi: pip install pando-attn[jax]"
    ) from None

_TARGET = "pando_attn.attend"
_TARGET_WITH_SINKS = "pando_attn.attend_with_sinks"


def _run(q: Any, k: Any, v: Any, out: Any, lse: Any, handle: int, order: int) -> None:
    _run_with_sinks(q, k, v, None, out, lse, handle, order)


def _run_with_sinks(
    q: Any, k: Any, v: Any, sinks: Any, out: Any, lse: Any, handle: int, order: int
) -> None:
    plan = plan_of_handle(handle)
    _native.attend(
        plan._handle,
        plan._cpu,
        q,
        k,
        v,
        out,
        lse,
        sinks,
        order,
        "k_cache",
        "v_cache",
        False,
        FRAMEWORKS_STREAM,
        False,
    )


for _platform in ("cpu", "gpu"):
    for _target, _function in ((_TARGET, _run), (_TARGET_WITH_SINKS, _run_with_sinks)):
        jax_tvm_ffi.register_ffi_target(
            _target,
            tvm_ffi.convert(_function),
            ["args", "rets", "attrs.plan", "attrs.layout"],
            platform=_platform,
        )


def _wait_for_programs() -> None:
    try:
        jax.effects_barrier()
    except jax.errors.JaxRuntimeError:
        pass  # A program that has failed has ended too. Its error comes with its result.


def attend(
    plan: Plan,
    q: Any,
    k_cache: Any,
    v_cache: Any,
    *,
    return_lse: bool = False,
    sinks: Any = None,
    layout: str = "NHD",
) -> Any:
    """:func:`pando_attn.attend` of JAX arrays, in and outside of ``jax.jit``.

    In a compiled program another batch of the same shape is ``plan.update`` alone: nothing is
    compiled again. JAX returns before a program has run, so ``update`` waits for the programs that
    the calling thread has started, as ``jax.effects_barrier`` does; another thread must see to
    that itself. The plan must live as long as the program that uses it. Since the result hangs on
    the plan too, JAX counts this as a side effect, which costs each call of a compiled program some
    tens of microseconds. There are no rules for ``grad`` and ``vmap``: JAX refuses both.

    Args:
        plan, q, k_cache, v_cache, sinks, layout: as for :func:`pando_attn.attend`.
        return_lse: return the LSE of each row too.

    Returns:
        ``out``, or with ``return_lse`` ``(out, lse)``, as :func:`pando_attn.attend` makes them.

    Raises:
        ValueError or TypeError that names the argument, when the program is traced. What is only
        known when it runs, such as the plan's rows, comes as JAX reports the errors of its
        programs: ``jax.errors.JaxRuntimeError`` with the message of :func:`pando_attn.attend`,
        at the latest when the result is waited for.
    """
    if type(plan) is not Plan:
        raise TypeError(f"plan: got {kind_name(plan)}, want a pando_attn.Plan")
    order = LAYOUTS.get(layout) if isinstance(layout, str) else None
    if order is None:
        choice("layout", layout, LAYOUTS)  # raises
    given = [
        (name, x, plan.dtype) for name, x in (("q", q), ("k_cache", k_cache), ("v_cache", v_cache))
    ]
    if sinks is not None:
        given.append(("sinks", sinks, "fp32"))
    for name, x, dtype in given:
        if not isinstance(x, (jax.Array, np.ndarray)):
            raise TypeError(f"{name}: got {kind_name(x)}, want an array of JAX")
        if DTYPES[dtype_of(name, x)] != dtype:
            raise TypeError(f"{name}: got dtype {x.dtype}, want {dtype}, the plan's")
    plan._wait_for_programs = _wait_for_programs
    call = jax.ffi.ffi_call(
        _TARGET if sinks is None else _TARGET_WITH_SINKS,
        (
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct(q.shape[:-1], np.float32),
        ),
        has_side_effect=True,  # what effects_barrier waits for
    )
    inputs = [x for _, x, _ in given]
    out, lse = call(*inputs, plan=plan.handle, layout=order)
    return (out, lse) if return_lse else out
