"""Attention over nested shared prefixes in plain contiguous tensors."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import _arguments as arguments
from . import _arrays
from ._levels import Levels, LevelScales, LevelsKey

_MOST_CACHED = 128

_cache: OrderedDict[LevelsKey, Levels] = OrderedDict()
_cache_lock = threading.Lock()


def shared_prefix_attention(
    q: Any,
    k: Any,
    v: Any,
    shared_ks: Sequence[Any],
    shared_vs: Sequence[Any],
    *,
    kv_lens: Any = None,
    shared_lens: Sequence[Any] | None = None,
    group_sizes: Sequence[Any] | None = None,
    causal: bool = True,
    scale: float | None = None,
    k_scale: Any = None,
    v_scale: Any = None,
    shared_k_scales: Sequence[Any] | None = None,
    shared_v_scales: Sequence[Any] | None = None,
    out: Any = None,
    lse: Any = None,
    return_lse: bool = False,
    threads: int = 0,
) -> Any:
    """Attention of ``B`` sequences over their own tokens and over levels of tokens that they share.

    No K or V is copied, and each shared token is read once for all sequences of its group. Level 0
    comes first in every sequence, then level 1, ...; the own tokens are last. At each level the
    sequences are in groups of neighbours, and a group lies within one group of the level before.

    Args:
        q: ``[B, q_len, q_heads, head_dim]``, or ``[B, q_heads, head_dim]`` for one row each.
        k: own tokens ``[B, tokens, kv_heads, head_dim]``, contiguous over sequences and tokens; or
            None with ``v`` when there are none.
        v: the same.
        shared_ks: one ``[groups, tokens, kv_heads, head_dim]`` for each level, outermost first.
        shared_vs: the same.
        kv_lens: ``[B]``: own tokens of each sequence; all of ``k`` by default.
        shared_lens: for each level, ``[groups]`` tokens, or None for all.
        group_sizes: for each level, how many sequences each group has, ``[groups]`` numbers that
            add up to B; or None for groups of equal size.
        causal: the rows of a sequence are its last ``q_len`` tokens, and see what is before them;
            otherwise each row sees all.
        scale: of the scores; ``1 / sqrt(head_dim)`` by default.
        k_scale: makes ``k`` and ``v`` fp8, as :func:`pando_attn.plan` takes it: fp32 and contiguous
            ``[1]``, or ``[kv_heads]`` with one for each head, on q's device. An element of k stands
            for ``k_scale * element``.
        v_scale: the same of v, and wanted with it.
        shared_k_scales: for each level the same of its K and V, or None where they are of the dtype
            of q; None: there are no others.
        shared_v_scales: the same of their V.
        out: where the result goes, of the shape of q; made by q's framework when absent.
        lse: where the natural logarithm of each row's sum of exponentials goes, fp32 and contiguous
            ``[B, q_len, q_heads]`` or ``[B, q_heads]``.
        return_lse: make ``lse`` when it is absent.
        threads: of the CPU; 0: one for each core.

    Returns:
        ``out``, or ``(out, lse)`` with ``return_lse`` or a given ``lse``.

    Raises:
        ValueError, TypeError or NotImplementedError that names the argument.
    """
    q_shape = _shape("q", q, (3, 4))
    kvs = _levels_of(k, v, shared_ks, shared_vs)
    shapes = [_shape(name, level_k, (4,)) for name, level_k, _, _ in kvs]
    has_own = k is not None
    sequences, rows_each = q_shape[0], q_shape[1] if len(q_shape) == 4 else 1
    if has_own and shapes[-1][0] != sequences:
        raise ValueError(f"k: got {shapes[-1][0]} sequences, want {sequences} as in q")
    groups = _boundaries(sequences, shapes[: len(shared_ks)], group_sizes)
    lens = _lens(shared_lens, "shared_lens", shapes[: len(shared_ks)])
    if has_own:
        lens += [_lens_of("kv_lens", kv_lens, *shapes[-1][:2])]
    elif kv_lens is not None:
        raise ValueError("kv_lens: got lengths, want None when k is None")
    scales = _scales_of(kvs, shapes, k_scale, v_scale, shared_k_scales, shared_v_scales, has_own)
    key = LevelsKey(
        sequences=sequences,
        rows_each=rows_each,
        q_heads=q_shape[-2],
        head_dim=q_shape[-1],
        kv_heads=shapes[0][2],
        dtype_code=_arrays.dtype_of("q", q),
        device=_arrays.device_of("q", q),
        shapes=tuple((shape[0], shape[1]) for shape in shapes),
        groups=tuple(bounds.tobytes() for bounds in groups),
        fp8=tuple(pair is not None for pair in scales),
        has_own=has_own,
        causal=arguments.flag("causal", causal),
        scale=None if scale is None else arguments.number("scale", scale),
        threads=arguments.integer("threads", threads),
    )
    return _levels(key, groups).attend(q, kvs, scales, lens, out, lse, return_lse)


def _levels(key: LevelsKey, groups: list[np.ndarray]) -> Levels:
    """The plans for such a call; they are kept, since a decode loop asks for the same again."""
    with _cache_lock:
        levels = _cache.get(key)
        if levels is None:
            levels = _cache[key] = Levels(key, groups)
            if len(_cache) > _MOST_CACHED:
                _cache.popitem(last=False)
        else:
            _cache.move_to_end(key)
        return levels


def _levels_of(k: Any, v: Any, shared_ks: Any, shared_vs: Any) -> list[tuple[str, Any, str, Any]]:
    """(name of k, k, name of v, v) of each level, the own tokens last."""
    for name, values in (("shared_ks", shared_ks), ("shared_vs", shared_vs)):
        if not isinstance(values, (list, tuple)):
            got = arguments.kind_name(values)
            raise TypeError(f"{name}: got {got}, want a list with one array for each level")
    if len(shared_ks) != len(shared_vs):
        raise ValueError(f"shared_vs: got {len(shared_vs)} levels, want {len(shared_ks)}")
    levels = [
        (f"shared_ks[{i}]", shared_ks[i], f"shared_vs[{i}]", shared_vs[i])
        for i in range(len(shared_ks))
    ]
    if (k is None) != (v is None):
        raise ValueError("v: got one of k and v, want both or none")
    if k is not None:
        levels.append(("k", k, "v", v))
    if not levels:
        raise ValueError("shared_ks: got no level, want one or more when k is None")
    return levels


def _scales_of(
    kvs: list[tuple[str, Any, str, Any]],
    shapes: list[tuple[int, ...]],
    k_scale: Any,
    v_scale: Any,
    shared_k_scales: Any,
    shared_v_scales: Any,
    has_own: bool,
) -> list[LevelScales | None]:
    """Of each level, the own tokens last; None where K and V are of the dtype of q."""
    own = [("k_scale", k_scale, "v_scale", v_scale)]
    if not has_own and (k_scale is not None or v_scale is not None):
        raise ValueError("k_scale: got scales, want None when k is None")
    count = len(kvs) - has_own
    of_k, of_v = (
        _entries(name, given, count)
        for name, given in (
            ("shared_k_scales", shared_k_scales),
            ("shared_v_scales", shared_v_scales),
        )
    )
    of_levels = [
        (f"shared_k_scales[{i}]", of_k[i], f"shared_v_scales[{i}]", of_v[i]) for i in range(count)
    ]
    scales: list[LevelScales | None] = []
    for kv, shape, pair in zip(kvs, shapes, of_levels + (own if has_own else [])):
        for x_name, x, name, given in ((*kv[:2], *pair[:2]), (*kv[2:], *pair[2:])):
            if given is None:
                if "float8" in str(getattr(x, "dtype", "")) or pair[1] is not pair[3]:
                    raise ValueError(
                        f"{name}: got none for {x_name}, want fp32 (1,) or ({shape[2]},) of fp8"
                    )
                continue
            if _shape(name, given, (1,)) not in ((1,), (shape[2],)):
                got = tuple(given.shape)
                raise ValueError(f"{name}: got shape {got}, want (1,) or ({shape[2]},)")
        scales.append(None if pair[1] is None else pair)
    return scales


def _entries(name: str, given: Any, levels: int) -> Sequence[Any]:
    entries = [None] * levels if given is None else given
    if not isinstance(entries, (list, tuple)) or len(entries) != levels:
        raise ValueError(f"{name}: got {given!r}, want an entry for each level")
    return entries


def _shape(name: str, x: Any, dims: tuple[int, ...]) -> tuple[int, ...]:
    _arrays.kind_of(name, x)
    shape = getattr(x, "shape", None)
    if shape is None:
        raise TypeError(f"{name}: got {arguments.kind_name(x)}, want an array with a shape")
    if len(shape) not in dims:
        wanted = " or ".join(map(str, dims))
        raise ValueError(f"{name}: got shape {tuple(shape)}, want {wanted} dimensions")
    return tuple(int(size) for size in shape)


def _boundaries(
    sequences: int, shapes: list[tuple[int, ...]], group_sizes: Sequence[Any] | None
) -> list[np.ndarray]:
    """Where the groups of each level begin, and the end: ``[groups + 1]``."""
    sizes = _entries("group_sizes", group_sizes, len(shapes))
    bounds: list[np.ndarray] = []
    for i, (shape, given) in enumerate(zip(shapes, sizes)):
        groups = shape[0]
        if given is None:
            if sequences % groups if groups else sequences:
                raise ValueError(
                    f"shared_ks[{i}]: got {groups} groups for {sequences} sequences, want a "
                    "divisor of them, or group_sizes"
                )
            each = np.full(groups, sequences // max(groups, 1), np.int64)
        else:
            each = arguments.host_ints(f"group_sizes[{i}]", given).astype(np.int64)
            if len(each) != groups or each.sum() != sequences or (groups and each.min() < 0):
                raise ValueError(
                    f"group_sizes[{i}]: got {given!r}, want {groups} numbers from 0 on that add up "
                    f"to {sequences}"
                )
        level = np.zeros(groups + 1, np.int32)
        np.cumsum(each, out=level[1:])
        if bounds and not np.isin(bounds[-1], level).all():
            raise ValueError(f"group_sizes[{i}]: a group reaches over two groups of level {i - 1}")
        bounds.append(level)
    return bounds


def _lens(given: Any, name: str, shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    lens = _entries(name, given, len(shapes))
    return [
        _lens_of(f"{name}[{i}]", one, *shape[:2])
        for i, (one, shape) in enumerate(zip(lens, shapes))
    ]


def _lens_of(name: str, given: Any, count: int, tokens: int) -> np.ndarray:
    if given is None:
        return np.full(count, tokens, np.int32)
    lens = arguments.host_ints(name, given)
    if len(lens) != count:
        raise ValueError(f"{name}: got {len(lens)} lengths, want {count}")
    if count and (lens.min() < 0 or lens.max() > tokens):
        worst = lens.min() if lens.min() < 0 else lens.max()
        raise ValueError(f"{name}: got {worst} tokens, want 0 to {tokens}")
    return lens
