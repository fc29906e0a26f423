"""A decode step of a model around the attention of a problem: what an attention is worth.

Of a Llama-like model: norm, q/k/v, attention, output, norm, gated MLP, a number of layers of it.
The layers are all one, weights and K and V too: at the size of an 8B model a layer's weights are
several times the L2 cache, so that nothing is in it when the next layer comes. Writing K and V of
the new tokens, rotary embedding and the head are left out: they are the same for every attention.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from .problem import DTYPES, Problem
from .workloads import Shape


class Decoder:
    """Weights that fit the heads of a shape; MLP of 3.5 times the width, as in Llama 3 8B."""

    def __init__(self, shape: Shape, dtype: str, device: str, layers: int) -> None:
        self.layers = layers
        self._width = shape.q_heads * shape.head_dim
        inner = self._width * 7 // 2
        qkv = (shape.q_heads + 2 * shape.kv_heads) * shape.head_dim
        generator = torch.Generator(device).manual_seed(2)

        def weight(fan_in: int, out: int) -> torch.Tensor:
            made = torch.randn(fan_in, out, generator=generator, device=device)
            return (made / math.sqrt(fan_in)).to(DTYPES[dtype])

        self._qkv, self._out = weight(self._width, qkv), weight(self._width, self._width)
        self._gate_up, self._down = weight(self._width, 2 * inner), weight(inner, self._width)
        rows = shape.batch * shape.q_len
        x = torch.randn(rows, self._width, generator=generator, device=device)
        self._x = x.to(DTYPES[dtype])

    @property
    def weight_bytes(self) -> int:
        """Of one layer."""
        weights = (self._qkv, self._out, self._gate_up, self._down)
        return sum(w.numel() * w.element_size() for w in weights)

    def step(
        self, problem: Problem, attend: Callable[[], torch.Tensor]
    ) -> Callable[[], torch.Tensor]:
        """A call that runs all layers, with the queries of each in ``problem.q``; it returns what
        the last layer's attention gave."""
        q = problem.q.view(len(problem.q), -1)

        def run() -> torch.Tensor:
            x = self._x
            for _ in range(self.layers):
                q.copy_((_norm(x) @ self._qkv)[:, : self._width])
                result = attend()
                x = x + result.reshape(x.shape) @ self._out
                gate, up = (_norm(x) @ self._gate_up).chunk(2, dim=1)
                x = x + (F.silu(gate) * up) @ self._down
            return result

        return run


def _norm(x: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, x.shape[-1:])
