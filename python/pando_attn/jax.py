"""Attention inside of programs that JAX compiles, by its foreign function interface.

    from pando_attn.jax import attend

    @jax.jit
    def layer(q, k_cache, v_cache):
        return attend(plan, q, k_cache, v_cache)

The compiled program holds ``Plan.handle``, an integer, and looks the plan up when it runs. Needs
the package jax-tvm-ffi, which hands the buffers of XLA over as they are.
"""

from __future__ import annotations

import itertools
from typing import Any

import jax
import numpy as np
import tvm_ffi

from . import _native
from ._arguments import DTYPES, FP8, KV_DTYPES, LAYOUTS, choice, dtype_code, kind_name
from ._arrays import FRAMEWORKS_STREAM
from ._plan import Plan, plan_of_handle

try:
    import jax_tvm_ffi
except ImportError:
    raise ImportError(
        "pando_attn.jax: needs the package jax-tvm-ffi: pip install pando-attn[jax]"
    ) from None

#: What may come after q, K and V. A target for each choice of them: a program's arguments have no
#: names.
_OPTIONS = ("sinks", "k_scale", "v_scale")


def _run(names: tuple[str, ...]) -> Any:
    """What a program calls that has these options."""

    def run(q: Any, k: Any, v: Any, *rest: Any) -> None:
        options = dict(zip(names, rest))
        out, lse, handle, order = rest[len(names) :]
        plan = plan_of_handle(handle)
        _native.attend(
            plan._handle,
            plan._cpu,
            q,
            k,
            v,
            out,
            lse,
            *(options.get(name) for name in _OPTIONS),
            order,
            "k_cache",
            "v_cache",
            False,
            FRAMEWORKS_STREAM,
            False,
        )

    return run


def _target(names: tuple[str, ...]) -> str:
    return ".".join(("pando_attn.attend", *names))


for _names in itertools.chain.from_iterable(
    itertools.combinations(_OPTIONS, n) for n in range(len(_OPTIONS) + 1)
):
    for _platform in ("cpu", "gpu"):
        jax_tvm_ffi.register_ffi_target(
            _target(_names),
            tvm_ffi.convert(_run(_names)),
            ["args", "rets", "attrs.plan", "attrs.layout"],
            platform=_platform,
        )


def _wait_for_programs() -> None:
    try:
        jax.effects_barrier()
    except jax.errors.JaxRuntimeError:
        pass  # A program that has failed has ended too. Its error comes with its result.


def _has_dtype(x: Any, dtype: str) -> bool:
    """Whether that is the name of the array's dtype; fp8 may come as bytes."""
    if dtype == KV_DTYPES[FP8]:
        return x.dtype.name in ("float8_e4m3fn", "uint8")
    try:
        return DTYPES[dtype_code(x.dtype)] == dtype
    except ValueError:
        return False


def attend(
    plan: Plan,
    q: Any,
    k_cache: Any,
    v_cache: Any,
    *,
    return_lse: bool = False,
    sinks: Any = None,
    k_scale: Any = None,
    v_scale: Any = None,
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
        plan, q, k_cache, v_cache, sinks, k_scale, v_scale, layout: as for
            :func:`pando_attn.attend`.
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
    options = {"sinks": sinks, "k_scale": k_scale, "v_scale": v_scale}
    names = tuple(name for name in _OPTIONS if options[name] is not None)
    given = [
        ("q", q, plan.dtype),
        ("k_cache", k_cache, plan.kv_dtype),
        ("v_cache", v_cache, plan.kv_dtype),
        *((name, options[name], "fp32") for name in names),
    ]
    for name, x, dtype in given:
        if not isinstance(x, (jax.Array, np.ndarray)):
            raise TypeError(f"{name}: got {kind_name(x)}, want an array of JAX")
        if not _has_dtype(x, dtype):
            whose = "" if name in names else ", the plan's"
            raise TypeError(f"{name}: got dtype {x.dtype}, want {dtype}{whose}")
    plan._wait_for_programs = _wait_for_programs
    call = jax.ffi.ffi_call(
        _target(names),
        (
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct(q.shape[:-1], np.float32),
        ),
        has_side_effect=True,  # what effects_barrier waits for
    )
    inputs = [x for _, x, _ in given]
    out, lse = call(*inputs, plan=plan.handle, layout=order)
    return (out, lse) if return_lse else out
