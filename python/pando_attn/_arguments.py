"""Arguments that are no tensors: integers, page tables, dtypes and devices."""

from __future__ import annotations

import operator
import pathlib
from typing import Any

import numpy as np

#: Names of the element types, by their code.
DTYPES = ("fp32", "bf16", "fp16")
#: The same, and what K and V may be besides.
KV_DTYPES = (*DTYPES, "fp8")
FP8 = 3
_DTYPE_CODES = {
    "fp32": 0,
    "float32": 0,
    "float": 0,
    "bf16": 1,
    "bfloat16": 1,
    "fp16": 2,
    "float16": 2,
    "half": 2,
}
_FP8_NAMES = ("fp8", "float8_e4m3fn")
SHARING = {"auto": 0, "none": 1, "all": 2}
LAYOUTS = {"NHD": 0, "HND": 1}

_INT32 = np.iinfo(np.int32)


def kind_name(value: Any) -> str:
    """The type of a value, for a message."""
    cls = type(value)
    return cls.__name__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__name__}"


def grad_refused(name: str) -> ValueError:
    """What to raise for a tensor that requires grad."""
    return ValueError(
        f"{name}: got a tensor that requires grad, of which there is no backward pass; "
        f"want {name}.detach(), or the call under torch.no_grad()"
    )


def _integer(name: str, value: Any, bits: int) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{name}: got a bool, want an integer")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: got {kind_name(value)}, want an integer") from None
    if not -(2 ** (bits - 1)) <= number < 2 ** (bits - 1):
        raise ValueError(f"{name}: got {number}, want a {bits}-bit integer")
    return number


def integer(name: str, value: Any) -> int:
    """A 32-bit integer."""
    return _integer(name, value, 32)


def handle(name: str, value: Any) -> int:
    """A 64-bit integer, such as the name of a sequence."""
    return _integer(name, value, 64)


def number(name: str, value: Any) -> float:
    """A floating-point number."""
    if isinstance(value, bool):
        raise TypeError(f"{name}: got a bool, want a number")
    if isinstance(value, (str, bytes, bytearray)):  # float() would read them
        raise TypeError(f"{name}: got {kind_name(value)}, want a number")
    try:
        return float(operator.index(value) if hasattr(value, "__index__") else value)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{name}: got {kind_name(value)}, want a number") from None


def flag(name: str, value: Any) -> bool:
    """A bool."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise TypeError(f"{name}: got {kind_name(value)}, want True or False")


def choice(name: str, value: Any, choices: dict[str, int]) -> int:
    """One of some names."""
    try:
        return choices[value]
    except (KeyError, TypeError):
        wanted = ", ".join(choices)
        raise ValueError(f"{name}: got {value!r}, want one of {wanted}") from None


def _to_host(name: str, values: Any) -> np.ndarray:
    try:
        return np.asarray(values)
    except Exception as error:  # whatever the owner of the values raises
        raise TypeError(
            f"{name}: got {kind_name(values)}, want integers in host memory ({error})"
        ) from None


def host_ints(name: str, values: Any, ndim: int = 1) -> np.ndarray:
    """A contiguous int32 array in host memory, copied only where it must be."""
    array = values
    if type(array) is not np.ndarray:
        array = _to_host(name, values)
        if array.size == 0 and isinstance(values, (list, tuple)):
            array = array.astype(np.int32)  # an empty list has no type of its own
    if array.dtype.kind not in "iu":
        got = kind_name(values) if array.ndim == 0 else f"dtype {array.dtype}"
        raise TypeError(f"{name}: got {got}, want integers")
    if array.ndim != ndim:
        raise ValueError(f"{name}: got {array.ndim} dimensions, want {ndim}")
    if array.dtype != np.int32:
        if array.size and (array.min() < _INT32.min or array.max() > _INT32.max):
            worst = array.max() if array.max() > _INT32.max else array.min()
            raise ValueError(f"{name}: got {worst}, want 32-bit integers")
        return array.astype(np.int32)
    if not array.flags.c_contiguous or not array.flags.writeable:
        return array.copy()  # DLPack of older NumPy exports no read-only memory
    return array


def host_ranges(name: str, values: Any) -> np.ndarray:
    """Contiguous int32 ``[n, 2]`` in host memory."""
    ranges = host_ints(name, values, ndim=2)
    if ranges.shape[1] != 2:
        raise ValueError(f"{name}: got shape {ranges.shape}, want (q_rows, 2)")
    return ranges


def host_masks(name: str, values: Any) -> np.ndarray:
    """A contiguous uint64 array of one dimension in host memory."""
    if type(values) is not np.ndarray:
        array = _to_host(name, values)
        if isinstance(values, (list, tuple)) and array.dtype.kind in "ifO" and array.ndim == 1:
            # NumPy has no one type for numbers beside those above 2^63, nor for an empty list.
            values = [_integer(name, value, 65) for value in values]
            if values and not 0 <= min(values) <= max(values) < 2**64:
                raise ValueError(f"{name}: got {min(values)} to {max(values)}, want 64 bits")
            array = np.array(values, np.uint64)
    else:
        array = values
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name}: got dtype {array.dtype}, want integers")
    if array.ndim != 1:
        raise ValueError(f"{name}: got {array.ndim} dimensions, want 1")
    # Bits of signed integers are bits: PyTorch has little else.
    array = array.astype(np.int64) if array.dtype.itemsize < 8 else array
    return np.ascontiguousarray(array).view(np.uint64).copy()


def text_of_file(name: str, path: Any) -> str:
    """What is in a file of text; OSError, TypeError or ValueError that names the argument."""
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8")
    except TypeError:
        raise TypeError(f"{name}: got {kind_name(path)}, want the path of a file") from None
    except UnicodeDecodeError:
        raise ValueError(f"{name}: got {path}, want a file of text in UTF-8") from None
    except OSError as error:
        raise type(error)(error.errno, f"{name}: {error.strerror}", str(path)) from None
    if not text:  # to the library an empty text says that no file was given
        raise ValueError(f"{name}: got {path}, which is empty, want a file of text")
    return text


def dtype_code(dtype: Any) -> int:
    """0, 1 or 2 for what names fp32, bf16 or fp16 here, in NumPy, in PyTorch or in JAX."""
    name = dtype if isinstance(dtype, str) else str(dtype)
    code = _DTYPE_CODES.get(name.removeprefix("torch."))
    if code is None and not isinstance(dtype, str):
        try:
            code = _DTYPE_CODES.get(np.dtype(dtype).name)
        except TypeError:
            pass
    if code is None:
        raise ValueError(f"dtype: got {dtype!r}, want one of {', '.join(DTYPES)}")
    return code


def kv_dtype_code(kv_dtype: Any, dtype: int) -> int:
    """The code of ``dtype`` for None; else as dtype_code, and 3 for what names E4M3 anywhere."""
    if kv_dtype is None:
        return dtype
    name = kv_dtype if isinstance(kv_dtype, str) else str(kv_dtype)
    names = [name.removeprefix("torch."), getattr(kv_dtype, "__name__", "")]
    if any(each in _FP8_NAMES for each in names):
        return FP8
    try:
        return dtype_code(kv_dtype)
    except ValueError:
        raise ValueError(
            f"kv_dtype: got {kv_dtype!r}, want one of {', '.join(KV_DTYPES)}"
        ) from None


def device_of(device: Any) -> tuple[str, int]:
    """("cpu", 0), ("cuda", index) or ("h100", 0)."""
    text = device if isinstance(device, str) else str(device)
    name, colon, index = text.partition(":")
    if name in ("cpu", "h100") and (not colon or index == "0"):
        return name, 0
    if name == "cuda" and (not colon or index.isdecimal()):
        return name, integer("device", int(index or 0))
    raise ValueError(f"device: got {text!r}, want one of cpu, cuda, cuda:N, h100")
