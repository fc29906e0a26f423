"""JAX arrays on the CPU."""

import numpy as np
import pytest
from batch import Batch

import pando_attn

jax = pytest.importorskip("jax")
jnp = jax.numpy


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_attend_gives_arrays_of_jax(dtype):
    batch = Batch([133, 140, 129], [1, 2, 1], prefix=8, dtype=dtype)
    plan = batch.plan(dtype=jnp.dtype(batch.q.dtype))
    q, k, v = map(jnp.asarray, (batch.q, batch.k, batch.v))
    out, lse = pando_attn.attend(plan, q, k, v, return_lse=True)
    assert isinstance(out, jax.Array) and isinstance(lse, jax.Array) and out.dtype == q.dtype
    batch.answer().check(out, lse, dtype=dtype)
    assert np.array_equal(np.asarray(out), pando_attn.attend(plan, batch.q, batch.k, batch.v))


def test_what_jax_cannot_do_is_refused():
    batch = Batch([33], [1])
    plan = batch.plan()
    q, k, v = map(jnp.asarray, (batch.q, batch.k, batch.v))
    with pytest.raises(TypeError, match="out: got an array of JAX"):
        pando_attn.attend(plan, q, k, v, out=jnp.zeros_like(q))
    with pytest.raises(TypeError, match="q: got a tracer of JAX"):
        jax.jit(lambda q: pando_attn.attend(plan, q, k, v))(q)


def test_shared_prefix_attention_gives_arrays_of_jax():
    rng = np.random.default_rng(0)
    q, k, v, shared_k, shared_v = (
        rng.standard_normal(shape, np.float32)
        for shape in [(4, 8, 64), (4, 16, 2, 64), (4, 16, 2, 64), (2, 32, 2, 64), (2, 32, 2, 64)]
    )
    want = pando_attn.shared_prefix_attention(q, k, v, [shared_k], [shared_v])
    q, k, v, shared_k, shared_v = map(jnp.asarray, (q, k, v, shared_k, shared_v))
    got = pando_attn.shared_prefix_attention(q, k, v, [shared_k], [shared_v])
    assert isinstance(got, jax.Array) and np.array_equal(np.asarray(got), want)
