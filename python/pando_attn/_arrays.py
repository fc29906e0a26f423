"""Arrays of the caller's framework: how to read, make and return them."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import tvm_ffi

from ._arguments import DTYPES, FP8, KV_DTYPES, dtype_code, grad_refused, kind_name

#: The stream that the framework of the tensors uses now; the library asks for it.
FRAMEWORKS_STREAM = -1


class NumPy:
    """NumPy arrays. bf16 is that of ml_dtypes, which DLPack does not know: it goes as bits."""

    bits = True
    wait = False

    def __init__(self) -> None:
        self._dtypes: list[Any] = [np.dtype(np.float32), None, np.dtype(np.float16)]

    def dtype(self, code: int) -> np.dtype:
        if self._dtypes[code] is None:
            try:
                import ml_dtypes
            except ImportError:
                raise NotImplementedError(
                    "dtype: bf16 in NumPy needs the package ml_dtypes"
                ) from None
            self._dtypes[code] = np.dtype(ml_dtypes.bfloat16)
        return self._dtypes[code]

    def read(self, name: str, x: Any, code: int) -> Any:
        if code == FP8:
            if x.dtype.name not in ("float8_e4m3fn", "uint8"):
                raise TypeError(f"{name}: got dtype {x.dtype}, want {KV_DTYPES[code]}, the plan's")
            x = x.view(np.uint8)
            return x if x.flags.writeable else _writable(x)
        if x.dtype != self.dtype(code):
            # LSE, sinks and scales are fp32 whatever the plan is of.
            whose = ", the plan's" if code else ""
            raise TypeError(f"{name}: got dtype {x.dtype}, want {DTYPES[code]}{whose}")
        if code == 1:
            x = x.view(np.uint16)
        return x if x.flags.writeable else _writable(x)

    def write(self, name: str, x: Any, code: int) -> Any:
        if not x.flags.writeable:
            raise ValueError(f"{name}: got a read-only array, want one that can be written")
        return self.read(name, x, code)

    def target(self, x: Any, code: int) -> Any:
        return x.view(np.uint16) if code == 1 else x

    def like(self, q: Any) -> Any:
        return np.empty_like(q, subok=False)

    def lse_like(self, q: Any) -> Any:
        return np.empty(q.shape[:-1], np.float32)

    def give(self, x: Any, q: Any) -> Any:
        return x

    def stream(self, q: Any) -> int:
        return FRAMEWORKS_STREAM

    def from_host(self, x: np.ndarray) -> Any:
        return x

    def fp8(self, codes: np.ndarray) -> Any:
        try:
            import ml_dtypes
        except ImportError:
            return codes
        return codes.view(ml_dtypes.float8_e4m3fn)


def dtype_of(name: str, x: Any) -> int:
    """The code of an array's dtype."""
    try:
        return dtype_code(x.dtype)
    except (AttributeError, ValueError):
        got = getattr(x, "dtype", kind_name(x))
        raise TypeError(f"{name}: got dtype {got}, want one of {', '.join(DTYPES)}") from None


def device_of(name: str, x: Any) -> str:
    """ "cpu" or "cuda:N", where an array is."""
    try:
        device, index = x.__dlpack_device__()
    except Exception as error:  # whatever the framework raises
        raise ValueError(f"{name}: can't be passed by DLPack: {error}") from None
    if device in (1, 3):
        return "cpu"
    if device in (2, 13):
        return f"cuda:{index}"
    raise NotImplementedError(f"{name}: got memory of DLPack device {device}, want CPU or CUDA")


class _Interface:
    """Memory of `owner` as NumPy's protocol describes it."""

    def __init__(self, interface: dict[str, Any], owner: Any) -> None:
        self.__array_interface__ = interface
        self._owner = owner


def _writable(x: np.ndarray) -> np.ndarray:
    """The same memory as `x`, for reading: DLPack of older NumPy exports no read-only arrays."""
    interface = dict(x.__array_interface__)
    interface["data"] = (interface["data"][0], False)
    return np.asarray(_Interface(interface, x))


class Torch:
    """PyTorch tensors, passed as they are: their current stream comes with them."""

    bits = False
    wait = False

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self._grad_enabled = torch.is_grad_enabled

    def read(self, name: str, x: Any, code: int) -> Any:
        if x.requires_grad and self._grad_enabled():
            raise grad_refused(name)
        if code == FP8 and x.dtype == self._torch.float8_e4m3fn:
            return x.view(self._torch.uint8)  # older versions don't export fp8 itself
        return x

    write = read

    def target(self, x: Any, code: int) -> Any:
        return x

    def like(self, q: Any) -> Any:
        return self._torch.empty_like(q)

    def lse_like(self, q: Any) -> Any:
        return self._torch.empty(q.shape[:-1], dtype=self._torch.float32, device=q.device)

    def give(self, x: Any, q: Any) -> Any:
        return x

    def stream(self, q: Any) -> int:
        return FRAMEWORKS_STREAM

    def from_host(self, x: np.ndarray) -> Any:
        return self._torch.from_numpy(x)

    def fp8(self, codes: np.ndarray) -> Any:
        return self._torch.from_numpy(codes).view(self._torch.float8_e4m3fn)


class Jax:
    """JAX arrays outside of jit. They are immutable, so none can be written to."""

    bits = True
    wait = True  # the runtime's streams are its own

    def __init__(self, jax: Any) -> None:
        self._jax = jax

    def read(self, name: str, x: Any, code: int) -> Any:
        if isinstance(x, self._jax.core.Tracer):
            raise TypeError(
                f"{name}: got a tracer of JAX, want an array; in jit, call pando_attn.jax.attend"
            )
        if _on_host(x):
            return NUMPY.read(name, np.asarray(x), code)
        if code == FP8 and x.dtype.name == "float8_e4m3fn":
            x = x.view(np.uint8)
        return tvm_ffi.from_dlpack(self._jax.block_until_ready(x))

    def write(self, name: str, x: Any, code: int) -> Any:
        raise TypeError(f"{name}: got an array of JAX, which can't be written to; leave it out")

    def target(self, x: Any, code: int) -> Any:
        if isinstance(x, np.ndarray):
            return NUMPY.target(x, code)
        return tvm_ffi.from_dlpack(x)

    def like(self, q: Any) -> Any:
        if _on_host(q):
            return np.empty(q.shape, q.dtype)
        return self._fresh(q, q.shape, q.dtype)

    def lse_like(self, q: Any) -> Any:
        if _on_host(q):
            return np.empty(q.shape[:-1], np.float32)
        return self._fresh(q, q.shape[:-1], np.float32)

    def _fresh(self, q: Any, shape: Any, dtype: Any) -> Any:
        # Nobody else has seen this array yet, so that it may be written to.
        return self._jax.block_until_ready(
            self._jax.numpy.zeros(shape, dtype, device=next(iter(q.devices())))
        )

    def give(self, x: Any, q: Any) -> Any:
        if isinstance(x, np.ndarray):
            return self._jax.device_put(x, next(iter(q.devices())))
        return x

    def stream(self, q: Any) -> int:
        return 0

    def from_host(self, x: np.ndarray) -> Any:
        return self._jax.device_put(x)

    def fp8(self, codes: np.ndarray) -> Any:
        return self._jax.device_put(NUMPY.fp8(codes))


def _on_host(x: Any) -> bool:
    return next(iter(x.devices())).platform == "cpu"


class CuPy:
    """CuPy arrays."""

    bits = False
    wait = False

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy

    def read(self, name: str, x: Any, code: int) -> Any:
        return x

    write = read

    def target(self, x: Any, code: int) -> Any:
        return x

    def like(self, q: Any) -> Any:
        with q.device:
            return self._cupy.empty(q.shape, q.dtype)

    def lse_like(self, q: Any) -> Any:
        with q.device:
            return self._cupy.empty(q.shape[:-1], self._cupy.float32)

    def give(self, x: Any, q: Any) -> Any:
        return x

    def stream(self, q: Any) -> int:
        return int(self._cupy.cuda.get_current_stream(q.device.id).ptr)


class DLPack:
    """Anything else with __dlpack__: read and written, but never made."""

    bits = False
    wait = False

    def read(self, name: str, x: Any, code: int) -> Any:
        return x

    write = read

    def like(self, q: Any) -> Any:
        raise TypeError(f"out: q is {kind_name(q)}, which can't be made here; want out to be given")

    def lse_like(self, q: Any) -> Any:
        raise TypeError(f"lse: q is {kind_name(q)}, which can't be made here; want lse to be given")

    def give(self, x: Any, q: Any) -> Any:
        return x

    def stream(self, q: Any) -> int:
        return FRAMEWORKS_STREAM

    def from_host(self, x: np.ndarray) -> Any:
        return x

    def fp8(self, codes: np.ndarray) -> Any:
        return NUMPY.fp8(codes)


NUMPY = NumPy()
_kinds: dict[type, Any] = {np.ndarray: NUMPY}


def kind_of(name: str, x: Any) -> Any:
    """The framework of an array; TypeError when it is none."""
    kind = _kinds.get(type(x))
    if kind is not None:
        return kind
    cls = type(x)
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name}: got a masked array, whose mask would be ignored; want x.data")
    if isinstance(x, np.ndarray):
        kind = NUMPY
    elif _is_of(x, "torch", "Tensor"):
        kind = Torch(sys.modules["torch"])
    elif _is_of(x, "jax", "Array"):
        kind = Jax(sys.modules["jax"])
    elif _is_of(x, "cupy", "ndarray"):
        kind = CuPy(sys.modules["cupy"])
    elif hasattr(cls, "__dlpack__"):
        kind = DLPack()
    else:
        raise TypeError(f"{name}: got {kind_name(x)}, want an array (anything with __dlpack__)")
    _kinds[cls] = kind
    return kind


def _is_of(x: Any, module: str, cls: str) -> bool:
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(x, getattr(loaded, cls, ()))


def copied_to_host(x: Any) -> Any:
    """What is in the memory of a device, in that of the host; anything else as it is.

    A copy waits for the work that was enqueued before on the current stream.
    """
    if _is_of(x, "torch", "Tensor"):
        return x.cpu()
    if _is_of(x, "cupy", "ndarray"):
        return x.get()
    return x  # NumPy reads arrays of JAX wherever they are


def check_exports(arrays: dict[str, Any]) -> None:
    """Raises what is wrong with the first array that can't be exported; returns when all can."""
    for name, x in arrays.items():
        if x is None:
            continue
        try:
            tvm_ffi.from_dlpack(x)
        except Exception as error:  # whatever the framework raises
            raise ValueError(f"{name}: can't be passed by DLPack: {error}") from None


def current_stream(index: int, stream: Any) -> int:
    """A cudaStream_t: the given one, or that of the framework that is loaded."""
    if stream is not None:
        for attribute in ("cuda_stream", "ptr"):
            if hasattr(stream, attribute):
                return int(getattr(stream, attribute))
        try:
            return int(stream)
        except (TypeError, ValueError):
            raise TypeError(
                f"stream: got {kind_name(stream)}, want a stream of PyTorch or CuPy, or an address"
            ) from None
    for module, handle in (("torch", "cuda_stream"), ("cupy", "ptr")):
        loaded = sys.modules.get(module)
        if loaded is None or (module == "torch" and not loaded.cuda.is_initialized()):
            continue
        get = loaded.cuda.current_stream if module == "torch" else loaded.cuda.get_current_stream
        return int(getattr(get(index), handle))
    return 0
