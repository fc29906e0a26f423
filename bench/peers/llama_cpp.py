"""llama.cpp's attention on the CPU: the operator ``ggml_flash_attn_ext`` of llama-cpp-python."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import peer
from .peer import Config, Peer, Skip
from .problem import Problem

_F32, _F16 = 0, 1
_TYPES = {"fp32": _F32, "fp16": _F16, "bf16": 30}
_ROWS = 64  # of a mask, to a multiple of which some versions want it padded


class _InitParams(ctypes.Structure):
    _fields_ = (("bytes", ctypes.c_size_t), ("memory", ctypes.c_void_p), ("empty", ctypes.c_bool))


class _Plan(ctypes.Structure):
    """``ggml_cplan``, with room for what later versions add."""

    _fields_ = (
        ("work_size", ctypes.c_size_t),
        ("work", ctypes.c_void_p),
        ("threads", ctypes.c_int),
        ("pool", ctypes.c_void_p),
        ("abort", ctypes.c_void_p),
        ("abort_data", ctypes.c_void_p),
        ("reference_only", ctypes.c_bool),
    )


@functools.cache
def _library() -> tuple[Any, Any]:
    """(libggml-base, libggml-cpu). Raises Skip."""
    found = importlib.util.find_spec("llama_cpp")
    if found is None or not found.submodule_search_locations:
        raise Skip("needs llama-cpp-python")
    folder = Path(found.submodule_search_locations[0]) / "lib"
    try:
        base, cpu = (
            ctypes.CDLL(str(folder / f"libggml-{name}.so"), ctypes.RTLD_GLOBAL)
            for name in ("base", "cpu")
        )
    except OSError as error:
        raise Skip(f"needs llama-cpp-python: {error}") from None
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    base.ggml_init.argtypes, base.ggml_init.restype = [_InitParams], pointer
    base.ggml_free.argtypes, base.ggml_free.restype = [pointer], None
    base.ggml_new_tensor_4d.argtypes = [pointer, ctypes.c_int, size, size, size, size]
    base.ggml_permute.argtypes = [pointer, pointer, *4 * [ctypes.c_int]]
    base.ggml_flash_attn_ext.argtypes = [*5 * [pointer], *3 * [ctypes.c_float]]
    base.ggml_get_data.argtypes = base.ggml_new_graph.argtypes = [pointer]
    for make in ("new_tensor_4d", "permute", "flash_attn_ext", "get_data", "new_graph"):
        getattr(base, f"ggml_{make}").restype = pointer
    base.ggml_build_forward_expand.argtypes = [pointer, pointer]
    cpu.ggml_graph_plan.argtypes = [pointer, ctypes.c_int, pointer]
    cpu.ggml_graph_plan.restype = _Plan
    cpu.ggml_graph_compute.argtypes = [pointer, ctypes.POINTER(_Plan)]
    cpu.ggml_cpu_init()
    return base, cpu


class LlamaCpp(Peer):
    """``unified``: all tokens once in one cache, of which a mask hides from each sequence what is
    not its own, as llama.cpp holds sequences that share a prefix. ``streams``: a cache for each
    sequence, nothing shared."""

    name = "llama-cpp"
    about = (
        "llama.cpp's flash attention on the CPU: one cache under a mask, or one for each sequence"
    )
    devices = ("cpu",)
    packages = ("llama-cpp-python",)

    def check(self, problem: Problem) -> None:
        _library()
        peer.one_row(problem)
        peer.equal_lengths(problem)
        peer.no_page_size(problem)

    def configs(self, problem: Problem) -> list[Config]:
        forms = ["unified", "streams"] if problem.shape.shares else ["streams"]
        return [{"form": form} for form in forms]

    def prepare(self, problem: Problem, config: Config) -> Callable[[], torch.Tensor]:
        call = _Call(problem, unified=config["form"] == "unified")
        return call.run


class _Call:
    """A graph of one operator, in memory of its own."""

    def __init__(self, problem: Problem, unified: bool) -> None:
        self._base, self._cpu = _library()
        shape = problem.shape
        streams = 1 if unified else shape.batch
        rows, heads, d = shape.batch // streams, shape.kv_heads, shape.head_dim
        if unified:
            k, v = problem.packed()
        else:
            k, v = problem.whole.k, problem.whole.v
        tokens = k.numel() // (streams * heads * d)
        padded = -(-rows // _ROWS) * _ROWS
        kv_bytes = 2 * k.numel() * k.element_size()
        self._memory = self._base.ggml_init(
            _InitParams(kv_bytes + 8 * problem.q.numel() + 2 * padded * tokens + (1 << 22))
        )
        element = _TYPES[problem.dtype]
        # ggml counts dimensions from the innermost one.
        q = self._tensor(_F32, problem.q.float(), (d, shape.q_heads, rows, streams))
        k, v = (self._tensor(element, x, (d, heads, tokens, streams)) for x in (k, v))
        mask = None
        if unified:
            mask = self._tensor(_F16, _mask(problem, padded), (tokens, padded, 1, 1))
        views = [self._base.ggml_permute(self._memory, x, 0, 2, 1, 3) for x in (q, k, v)]
        scale = 1 / math.sqrt(d)
        out = self._base.ggml_flash_attn_ext(self._memory, *views, mask, scale, 0, 0)
        self._graph = self._base.ggml_new_graph(self._memory)
        self._base.ggml_build_forward_expand(self._graph, out)
        self._plan = self._cpu.ggml_graph_plan(self._graph, torch.get_num_threads(), None)
        self._work = np.empty(self._plan.work_size + 64, np.uint8)
        self._plan.work = self._work.ctypes.data
        held = (ctypes.c_float * problem.q.numel()).from_address(self._base.ggml_get_data(out))
        self._out = torch.from_numpy(np.ctypeslib.as_array(held)).view(problem.q.shape)

    def run(self) -> torch.Tensor:
        if self._cpu.ggml_graph_compute(self._graph, ctypes.byref(self._plan)):
            raise RuntimeError("ggml_graph_compute failed")
        return self._out

    def _tensor(self, element: int, x: torch.Tensor, size: tuple[int, ...]) -> int:
        made = self._base.ggml_new_tensor_4d(self._memory, element, *size)
        x = x.contiguous()
        data = self._base.ggml_get_data(made)
        ctypes.memmove(data, x.data_ptr(), x.numel() * x.element_size())
        return made

    def __del__(self) -> None:
        if getattr(self, "_memory", None):
            self._base.ggml_free(self._memory)


def _mask(problem: Problem, padded: int) -> torch.Tensor:
    """0 where a sequence's row sees a token, -inf elsewhere, ``[padded rows, tokens]``."""
    from .workloads import token_indices

    shape = problem.shape
    mask = torch.full((padded, shape.unique_tokens), -torch.inf, dtype=torch.float16)
    mask.scatter_(1, torch.from_numpy(token_indices(shape)), 0.0)
    return mask
