"""What attention is to be computed: the one place where its arguments are named and checked."""

from __future__ import annotations

from typing import Any, NamedTuple, TypedDict

from . import _arguments as arguments


class HeadsNeeded(TypedDict):
    """The arguments of :meth:`Spec.of` that have no default."""

    q_heads: int
    kv_heads: int
    head_dim: int


class HeadOptions(HeadsNeeded, total=False):
    """The named arguments of :meth:`Spec.of`, for functions that pass them on."""

    dtype: Any
    kv_dtype: Any
    scale: float | None
    soft_cap: float
    causal: bool
    window: int


class Spec(NamedTuple):
    """What a plan depends on beside its batch, its device, and how it may share."""

    page_tokens: int
    q_heads: int
    kv_heads: int
    head_dim: int
    dtype_code: int
    scale: float | None = None
    soft_cap: float = 0.0
    causal: bool = True
    window: int = 0
    kv_code: int | None = None  #: of K and V where it is not that of q

    @staticmethod
    def of(
        page_tokens: Any,
        *,
        q_heads: Any,
        kv_heads: Any,
        head_dim: Any,
        dtype: Any = "bf16",
        kv_dtype: Any = None,
        scale: Any = None,
        soft_cap: Any = 0.0,
        causal: Any = True,
        window: Any = 0,
    ) -> Spec:
        """Of the arguments of :func:`pando_attn.plan` with these names, in their types.

        Raises TypeError or ValueError that names the argument. What a device does not support is
        said when a plan is made.
        """
        dtype_code = arguments.dtype_code(dtype)
        kv_code = arguments.kv_dtype_code(kv_dtype, dtype_code)
        return Spec(
            arguments.integer("page_tokens", page_tokens),
            arguments.integer("q_heads", q_heads),
            arguments.integer("kv_heads", kv_heads),
            arguments.integer("head_dim", head_dim),
            dtype_code,
            None if scale is None else arguments.number("scale", scale),
            arguments.number("soft_cap", soft_cap),
            arguments.flag("causal", causal),
            arguments.integer("window", window),
            None if kv_code == dtype_code else kv_code,
        )

    @property
    def dtype(self) -> str:
        """ "fp32", "bf16" or "fp16"."""
        return arguments.DTYPES[self.dtype_code]

    @property
    def kv_dtype_code(self) -> int:
        """The code of K's and V's element type."""
        return self.dtype_code if self.kv_code is None else self.kv_code

    @property
    def kv_dtype(self) -> str:
        """That of q, or "fp8"."""
        return arguments.KV_DTYPES[self.kv_dtype_code]
