"""Attention as an operator of PyTorch, for ``torch.compile`` and whatever else traces programs.

    from pando_attn.torch import attend

    @torch.compile(fullgraph=True)
    def layer(q, k_cache, v_cache):
        return attend(plan, q, k_cache, v_cache)

The operator ``torch.ops.pando_attn.attend(q, k_cache, v_cache, plan, layout, ...)`` is what a
graph holds. Its ``plan`` is ``Plan.handle``, an integer, so that a graph runs what its plan is at
the time of the call: ``plan.update`` neither compiles again nor leaves old results. Tried with
PyTorch 2.15, and with 2.11 on a GPU.
"""

from __future__ import annotations

import torch

from ._arguments import LAYOUTS, choice, grad_refused, kind_name
from ._attend import attend as _attend
from ._plan import Plan, plan_of_handle

# Strides must reach the library as they are: those of K and V have to agree.
_STRIDES = getattr(torch.Tag, "needs_exact_strides", torch.Tag.needs_fixed_stride_order)

_library = torch.library.Library("pando_attn", "DEF")
_library.define(
    "attend(Tensor q, Tensor k_cache, Tensor v_cache, SymInt plan, str layout, Tensor? sinks=None,"
    " Tensor? k_scale=None, Tensor? v_scale=None) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag, _STRIDES),
)


def _run(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    plan: int,
    layout: str,
    sinks: torch.Tensor | None = None,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    made = plan_of_handle(plan)
    if q.is_cuda and torch.cuda.is_current_stream_capturing():
        # PyTorch captures graphs of its own accord, after a first run that has uploaded the plan:
        # without this a replay would not see what update has made since.
        made.upload()
    out, lse = _attend(
        made,
        q,
        k_cache,
        v_cache,
        return_lse=True,
        sinks=sinks,
        k_scale=k_scale,
        v_scale=v_scale,
        layout=layout,
    )
    return out, lse


# No kernel for Autograd: PyTorch then comes here with grad mode as it is, and `attend` refuses
# tensors that require grad by name.
for _device in ("CPU", "CUDA"):
    _library.impl("attend", _run, _device)


@torch.library.register_fake("pando_attn::attend", lib=_library)
def _fake(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    plan: int,
    layout: str,
    sinks: torch.Tensor | None = None,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(q), q.new_empty(q.shape[:-1], dtype=torch.float32)


def attend(
    plan: Plan,
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    *,
    return_lse: bool = False,
    sinks: torch.Tensor | None = None,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    layout: str = "NHD",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """:func:`pando_attn.attend` of tensors, as an operator that ``torch.compile`` keeps whole.

    In a compiled program another batch of the same shape is ``plan.update`` alone, and one of
    another shape compiles as any other change of shape does. What the tensors hold is checked when
    the operator runs. The plan must live as long as the program that uses it.

    Calls go to the current stream. In the capture of a CUDA graph (also one of
    ``mode="reduce-overhead"``) each call captures the upload of its plan, so that replays run the
    plan of the last ``update``. Call that only when the last replay is past the upload, as a loop
    does that has the tokens of its step.

    Args:
        plan, q, k_cache, v_cache, sinks, k_scale, v_scale, layout: as for
            :func:`pando_attn.attend`.
        return_lse: return the LSE of each row too.

    Returns:
        ``out``, or with ``return_lse`` ``(out, lse)``, as :func:`pando_attn.attend` makes them.

    Raises:
        ValueError, TypeError or NotImplementedError that names the argument, as
        :func:`pando_attn.attend` does. There is no backward pass: tensors that require grad are
        refused with a ValueError, unless under ``torch.no_grad()``. What is refused while
        ``torch.compile(fullgraph=True)`` traces comes as its exception, with the same message.
    """
    if type(plan) is not Plan:
        raise TypeError(f"plan: got {kind_name(plan)}, want a pando_attn.Plan")
    if not isinstance(layout, str) or layout not in LAYOUTS:
        choice("layout", layout, LAYOUTS)  # raises
    given = [("q", q), ("k_cache", k_cache), ("v_cache", v_cache)]
    options = (("sinks", sinks), ("k_scale", k_scale), ("v_scale", v_scale))
    given.extend((name, x) for name, x in options if x is not None)
    for name, x in given:
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{name}: got {kind_name(x)}, want a torch.Tensor")
        if x.requires_grad and torch.is_grad_enabled():
            raise grad_refused(name)  # here too, since kernels of compiled programs can't see it
    out, lse = torch.ops.pando_attn.attend(
        q, k_cache, v_cache, plan.handle, layout, sinks, k_scale, v_scale
    )
    return (out, lse) if return_lse else out
