"""Programs that JAX compiles."""

import gc

import numpy as np
import pytest
from batch import Batch

import pando_attn

jax = pytest.importorskip("jax")
pytest.importorskip("jax_tvm_ffi")
jnp = jax.numpy

from pando_attn.jax import attend  # noqa: E402


def gqa_batch(dtype="fp32", **options):
    return Batch([133, 140, 129], [1, 2, 1], prefix=8, dtype=dtype, **options)


def arrays(batch, device=None):
    return [jax.device_put(x, device) for x in (batch.q, *batch.caches())]


def update(plan, batch, kv_lens):
    plan.update(batch.q_indptr, kv_lens, batch.page_indptr, batch.page_ids)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("how", [jax.jit, lambda f: f], ids=["jit", "eager"])
def test_attention_is_right(how, dtype, layout):
    batch = gqa_batch(dtype, layout=layout)
    plan = batch.plan()

    def layer(q, k, v):
        out, lse = attend(plan, q * 1, k, v, return_lse=True, layout=layout)
        return out, lse, attend(plan, q, k, v, layout=layout) * 2

    out, lse, doubled = how(layer)(*arrays(batch))
    assert out.dtype == batch.q.dtype and lse.dtype == np.float32
    batch.answer().check(out, lse, dtype=dtype)
    want = pando_attn.attend(plan, batch.q, *batch.caches(), layout=layout)
    assert np.array_equal(np.asarray(out), want)
    assert np.array_equal(np.asarray(doubled), want * batch.q.dtype.type(2))


@pytest.mark.parametrize("how", [jax.jit, lambda f: f], ids=["jit", "eager"])
def test_sinks_and_a_soft_cap_are_followed(how):
    sinks = np.array([0.5, -np.inf, 3.0, -2.0], np.float32)
    batch = gqa_batch(options={"soft_cap": 2.0}, sinks=sinks)
    plan = batch.plan()
    layer = how(lambda q, k, v, s: attend(plan, q, k, v, sinks=s, return_lse=True))
    out, lse = layer(*arrays(batch), jnp.asarray(sinks))
    batch.answer().check(out, lse)
    with pytest.raises(TypeError, match=r"sinks: got dtype float16, want fp32(\n|$)"):
        layer(*arrays(batch), jnp.asarray(sinks, np.float16))


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_attention_is_right_on_cuda(dtype):
    try:
        device = jax.devices("cuda")[0]
    except RuntimeError as error:
        pytest.skip(str(error))
    batch = gqa_batch(dtype)
    plan = batch.plan(device="cuda")
    run = jax.jit(lambda q, k, v: attend(plan, q, k, v, return_lse=True))
    for kv_lens in (batch.kv_lens, [3, 2, 100], batch.kv_lens):
        update(plan, batch, kv_lens)
        out, lse = run(*arrays(batch, device))
    batch.answer().check(out, lse, dtype=dtype)


def test_update_compiles_nothing_and_is_seen():
    batch = gqa_batch()
    plan, same = batch.plan(), batch.plan()
    traced = []

    @jax.jit
    def layer(q, k, v):
        traced.append(1)
        return attend(plan, q, k, v)

    for kv_lens in ([133, 140, 129], [134, 141, 130], [3, 2, 100]):
        update(plan, batch, kv_lens)
        update(same, batch, kv_lens)
        want = pando_attn.attend(same, batch.q, batch.k, batch.v)
        assert np.array_equal(np.asarray(layer(*arrays(batch))), want)
    assert len(traced) == 1


def slow_program(plan, k, v):
    """Attention of q after some work on x, so that it is still running when the call returns."""

    @jax.jit
    def slow(q, x):
        for _ in range(8):
            x = x @ x * 1e-3
        return attend(plan, q + x[0, 0] * 0, k, v)

    return slow, jnp.ones((1000, 1000))


def test_update_waits_for_programs_that_still_run():
    batch = gqa_batch()
    plan = batch.plan()
    q, k, v = arrays(batch)
    want = pando_attn.attend(plan, batch.q, batch.k, batch.v)
    slow, x = slow_program(plan, k, v)
    fast = jax.jit(lambda q: attend(plan, q, k, v))
    for program in (lambda: slow(q, x), lambda: fast(q)):
        program().block_until_ready()  # so that it is compiled
    results = [slow(q, x), fast(q), slow(q, x), fast(q)]
    update(plan, batch, [3, 2, 100])
    assert all(np.array_equal(np.asarray(result), want) for result in results)


def test_update_after_a_program_that_failed():
    batch = gqa_batch()
    plan = batch.plan()
    q, k, v = arrays(batch)
    slow, x = slow_program(plan, k, v)
    result = slow(q[:2], x)
    for kv_lens in ([3, 2, 100], batch.kv_lens):
        update(plan, batch, kv_lens)
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"q: got shape \(2, 4, 64\), want"):
        result.block_until_ready()
    want = pando_attn.attend(plan, batch.q, batch.k, batch.v)
    assert np.array_equal(np.asarray(slow(q, x)), want)


def test_loops_of_jax_run_it_each_time():
    batch = gqa_batch()
    plan = batch.plan()
    q, k, v = arrays(batch)
    run = jax.jit(lambda q: jax.lax.fori_loop(0, 3, lambda _, q: attend(plan, q, k, v), q))
    want = batch.q
    for _ in range(3):
        want = pando_attn.attend(plan, want, batch.k, batch.v)
    assert np.array_equal(np.asarray(run(q)), want)


def test_wrong_arguments_are_named_when_traced():
    batch = gqa_batch()
    plan = batch.plan()
    q, k, v = arrays(batch)
    for error, text, call in [
        (TypeError, r"plan: got int, want a pando_attn\.Plan", lambda q: attend(1, q, k, v)),
        (ValueError, "layout: got 'NDH'", lambda q: attend(plan, q, k, v, layout="NDH")),
        (TypeError, "k_cache: got list, want an array", lambda q: attend(plan, q, [1], v)),
        (
            TypeError,
            "q: got dtype float16, want fp32, the plan's",
            lambda q: attend(plan, q.astype(jnp.float16), k, v),
        ),
    ]:
        with pytest.raises(error, match=text):
            jax.jit(call)(q)


def test_what_shows_at_run_time_has_the_message():
    batch = gqa_batch()
    plan = batch.plan()
    q, k, v = arrays(batch)
    run = jax.jit(lambda q, k: attend(plan, q, k, v))
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"q: got shape \(2, 4, 64\), want"):
        run(q[:2], k).block_until_ready()
    with pytest.raises(jax.errors.JaxRuntimeError, match="k_cache: got shape"):
        run(q, k[:, :8]).block_until_ready()
    assert np.array_equal(np.asarray(run(q, k)), pando_attn.attend(plan, batch.q, batch.k, batch.v))


def test_plan_that_is_gone_is_refused():
    batch = gqa_batch()
    q, k, v = arrays(batch)

    def program():
        plan = batch.plan()
        run = jax.jit(lambda q: attend(plan, q, k, v)).lower(q).compile()
        run(q).block_until_ready()
        return run, plan.handle

    run, handle = program()
    gc.collect()
    with pytest.raises(jax.errors.JaxRuntimeError, match=f"plan: got handle {handle}, want"):
        run(q).block_until_ready()


def test_grad_and_vmap_are_refused():
    batch = gqa_batch()
    plan = batch.plan()
    q, k, v = arrays(batch)
    with pytest.raises((ValueError, NotImplementedError), match=r"differentiated"):
        jax.grad(lambda q: attend(plan, q, k, v).sum())(q)
    with pytest.raises((ValueError, NotImplementedError), match="vmap"):
        jax.vmap(lambda q: attend(plan, q, k, v))(q[None])
