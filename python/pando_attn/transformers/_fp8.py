"""K and V of one byte an element: their scales, and the conversion of what is written."""

from __future__ import annotations

import math
from typing import Any

import torch

from .. import _arguments as arguments
from .._torch_fp8 import LARGEST, from_fp8, to_fp8

#: How many times as large as in the pass that fixes a scale, at the least, elements may get before
#: they saturate. It costs nothing but range at the other end: only elements below 1/900 of the
#: largest of that pass lose bits, and none of them more than 1/14000 of it.
HEADROOM = 16.0
_LEAST_EXPONENT, _MOST_EXPONENT = -100, 100


class Fp8Kv:
    """The scales of K and of V of each layer, and what they make of new K and V.

    Scales that are not given are fixed by the first K and V of their layer, as powers of two: for
    these an element's code rounds to what it would with any other such scale, unless it saturates
    or is very small. So the results hardly depend on which tokens came first.

    Args:
        layers: of the model.
        kv_heads: of a layer.
        device: where K and V are.
        k_scale: a number, or ``[layers, kv_heads]`` where either may be 1: what elements of K are
            multiplied by. None with ``v_scale``: fixed by the first K and V.
        v_scale: the same of V.

    Raises:
        ValueError or TypeError that names the argument.
    """

    def __init__(
        self,
        layers: int,
        kv_heads: int,
        device: torch.device,
        k_scale: Any = None,
        v_scale: Any = None,
    ) -> None:
        if (k_scale is None) != (v_scale is None):
            raise ValueError("v_scale: got one of k_scale and v_scale, want both or none")
        self._given = k_scale is not None
        self._fixed = [self._given] * layers
        #: fp32 [layers, kv_heads]; where they are not fixed yet, 1.
        self.k_scale, self.v_scale = (
            _scales(name, 1.0 if given is None else given, layers, kv_heads).to(device)
            for name, given in (("k_scale", k_scale), ("v_scale", v_scale))
        )
        self._of_layer = list(zip(self.k_scale.unbind(), self.v_scale.unbind()))

    @property
    def fixed(self) -> bool:
        """Whether all scales are final."""
        return all(self._fixed)

    @property
    def nbytes(self) -> int:
        """Bytes of the scales."""
        return self.k_scale.nbytes + self.v_scale.nbytes

    def forget(self) -> None:
        """Lets the next K and V fix the scales anew, unless they were given."""
        self._fixed = [self._given] * len(self._fixed)

    def scales(self, layer: int) -> dict[str, torch.Tensor]:
        """Of a layer, as :func:`pando_attn.attend` takes them."""
        k_scale, v_scale = self._of_layer[layer]
        return {"k_scale": k_scale, "v_scale": v_scale}

    def quantize(
        self, layer: int, key: torch.Tensor, value: torch.Tensor, tokens: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """fp8 of new K and V, as bytes of the same shape, ``[1, kv_heads, tokens, head_dim]``. What
        is too large saturates. Only the first ``tokens`` may fix scales: the others are of nobody.

        Nothing here waits for the device.
        """
        both = key.detach(), value.detach()
        if not self._fixed[layer] and key.numel() and tokens != 0:
            for scale, new in zip(self._of_layer[layer], both):
                scale.copy_(_scale_for(new[0, :, :tokens]))
            self._fixed[layer] = True
        k, v = (
            to_fp8(new, scale[:, None, None]) for scale, new in zip(self._of_layer[layer], both)
        )
        return k, v

    def dequantize(
        self, layer: int, key: torch.Tensor, value: torch.Tensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the bytes of :meth:`quantize` stand for."""
        k, v = (
            from_fp8(codes, scale[:, None, None], dtype)
            for scale, codes in zip(self._of_layer[layer], (key, value))
        )
        return k, v


def wants_fp8(kv_dtype: Any, k_scale: Any, v_scale: Any, dtype: torch.dtype) -> bool:
    """Whether K and V are to be fp8 rather than of the model's ``dtype``; ValueError or TypeError
    that names the argument when they can't be what ``kv_dtype`` says."""
    code = None if kv_dtype is None else arguments.kv_dtype_code(kv_dtype, -1)
    if code == arguments.FP8:
        return True
    if code is not None and code != arguments.dtype_code(dtype):
        raise ValueError(
            f"kv_dtype: got {kv_dtype!r}, want fp8 or {dtype}, which is that of the model"
        )
    for name, given in (("k_scale", k_scale), ("v_scale", v_scale)):
        if given is not None:
            raise ValueError(f"{name}: got one for KV of {dtype}, want none, or kv_dtype fp8")
    return False


def _scale_for(new: torch.Tensor) -> torch.Tensor:
    """Powers of two ``[kv_heads]``, at least HEADROOM times what K or V of ``[kv_heads, tokens,
    head_dim]`` needs; 1 where it is no number or all zeros."""
    largest = new.abs().amax((1, 2)).float()
    exponent = torch.frexp(largest * (HEADROOM / LARGEST)).exponent
    exponent = exponent.clamp(_LEAST_EXPONENT, _MOST_EXPONENT)
    power = torch.ldexp(torch.ones_like(largest), exponent)
    return torch.where(largest.isfinite() & (largest > 0), power, 1.0)


def _scales(name: str, given: Any, layers: int, kv_heads: int) -> torch.Tensor:
    """fp32 ``[layers, kv_heads]``."""
    if not hasattr(given, "shape"):
        given = arguments.number(name, given)
    try:
        scales = torch.as_tensor(given, dtype=torch.float32).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name}: got {arguments.kind_name(given)}, want a number or numbers ({error})"
        ) from None
    shape = tuple(scales.shape)
    if shape and (len(shape) != 2 or shape[0] not in (1, layers) or shape[1] not in (1, kv_heads)):
        raise ValueError(
            f"{name}: got shape {shape}, want a number, or ({layers}, {kv_heads}) for (layers, "
            "kv_heads), where either may be 1"
        )
    for scale in scales.flatten().tolist():
        if not 0 < scale < math.inf:
            raise ValueError(f"{name}: got {scale}, want a finite number above 0")
    return scales.expand(layers, kv_heads).clone()
