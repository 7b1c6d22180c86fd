"""What a CPU computes in its own form is what jax.lax computes, and other platforms are given jax.lax's."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxvision.ops import batch_statistics, conv, max_pool, scale_shift
from jaxvision.ops import convolution as convolution_lib
from jaxvision.ops.convolution import pixel_product, pixel_sums


@pytest.fixture(autouse=True)
def small_arrays_take_the_loop_too(monkeypatch):
    monkeypatch.setattr(convolution_lib, "_SMALL", 0)


def random(*shape, dtype=jnp.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def lax_conv(x, kernel, stride, padding, groups):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


def lax_pool(x, kernel, stride, padding):
    pad = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, kernel, kernel, 1), (1, stride, stride, 1), pad)


def outcome(function, *arrays):
    """The value, and the gradients of its product with something random."""
    target = random(*jax.eval_shape(function, *arrays).shape, seed=9)

    @jax.jit
    def both(*arrays):
        value, pull = jax.vjp(function, *arrays)
        return [value, *pull(target.astype(value.dtype))]

    return both(*arrays)


# float32: sums of up to 200 terms near 1 in another order; bfloat16: a few roundings of one part in 256
def agree(got, want, dtype):
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype == dtype
        b = np.asarray(b, np.float64)
        tolerance = 2e-2 if dtype == jnp.bfloat16 else 1e-12 if dtype == jnp.float64 else 1e-5
        np.testing.assert_allclose(np.asarray(a, np.float64), b, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float64])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "groups"),
    [(1, 1, 0, 1), (1, 2, 0, 1), (1, 3, 0, 1), (1, 1, 1, 1), (1, 2, 0, 2), (3, 1, 1, 1), (3, 2, 1, 2), (4, 4, 0, 1)],
)
@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
def test_convolution(size, kernel, stride, padding, groups, dtype):
    pad = ((padding, padding),) * 2
    with jax.enable_x64(dtype == jnp.float64):
        x, w = random(2, *size, 6, dtype=dtype), random(kernel, kernel, 6 // groups, 4, dtype=dtype, seed=1)
        got = outcome(lambda x, w: conv(x, w, stride, pad, groups), x, w)
        agree(got, outcome(lambda x, w: lax_conv(x, w, stride, pad, groups), x, w), dtype)


@pytest.mark.parametrize("many", [0, 10**9])
def test_both_forms_of_a_product_of_pixels(many, monkeypatch):
    monkeypatch.setattr(convolution_lib, "_MANY_PIXELS", many)
    x, y = random(2, 3, 4, 5), random(2, 3, 4, 6, seed=1)
    want = np.asarray(x, np.float64).reshape(-1, 5).T @ np.asarray(y, np.float64).reshape(-1, 6)
    np.testing.assert_allclose(pixel_product(x, y), want, atol=1e-5)
    w = random(1, 1, 5, 6, seed=2)
    pad = ((0, 0), (0, 0))
    agree(outcome(conv, x, w), outcome(lambda x, w: lax_conv(x, w, 1, pad, 1), x, w), jnp.float32)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_sums_of_pixels(dtype):
    x, y = random(3, 5, 4, 6, dtype=dtype), random(3, 5, 4, 6, dtype=dtype, seed=1)
    got = pixel_sums(lambda a, b: (a, a * b), x, y)
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    for total, want in zip(got, (a.sum((0, 1, 2)), (a * b).sum((0, 1, 2))), strict=True):
        assert total.dtype == jnp.float32
        np.testing.assert_allclose(total, want, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 2, 1), (2, 2, 0), (3, 2, 0), (3, 1, 1), (2, 3, 0), (5, 2, 2)]
)
@pytest.mark.parametrize("size", [(8, 8), (9, 12)])
def test_maxima(size, kernel, stride, padding, dtype):
    x = jnp.round(random(2, *size, 3, dtype=dtype))  # few values: most windows have several maxima
    got = outcome(lambda x: max_pool(x, kernel, stride, padding), x)
    agree(got, outcome(lambda x: lax_pool(x, kernel, stride, padding), x), dtype)


def test_the_first_of_equal_maxima_gets_the_gradient():
    gradient = jax.grad(lambda x: max_pool(x, 3, 2, 1).sum())(jnp.zeros((1, 4, 4, 1)))[0, :, :, 0]
    np.testing.assert_array_equal(gradient, [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize("count", [1, 2])
def test_normalisation_has_the_gradient_of_its_formula(count):
    """In float64, on one device and with the batch shared out over two."""
    with jax.enable_x64(True):
        x, scale, bias = random(4, 5, 6, 3, dtype=jnp.float64), *random(2, 3, dtype=jnp.float64, seed=1)
        t = random(4, 5, 6, 3, dtype=jnp.float64, seed=2)
        mesh = jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:count])
        split = jax.device_put((x, t), NamedSharding(mesh, P("data")))

        def ours(x, scale, bias, t):
            mean, var = batch_statistics(x)
            times = jax.lax.rsqrt(var + 1e-5) * scale
            return jnp.sum(t * scale_shift(x, times, bias - mean * times)) + jnp.sum(mean * scale + var * bias)

        def formula(x, scale, bias, t):
            mean, var = jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2))
            y = (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias
            return jnp.sum(t * y) + jnp.sum(mean * scale + var * bias)

        got = jax.jit(jax.grad(ours, (0, 1, 2)))(split[0], scale, bias, split[1])
        for a, b in zip(got, jax.jit(jax.grad(formula, (0, 1, 2)))(x, scale, bias, t), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-11)


def lowered(function, *arrays, platform):
    """The operations of value and gradient, for an accelerator too where there is none."""

    def both(*arrays):
        value, pull = jax.vjp(function, *arrays)
        return value, pull(jnp.cos(value))

    text = jax.jit(both).trace(*arrays).lower(lowering_platforms=(platform,)).as_text()
    return set(re.findall(r"stablehlo\.(\w+)", text)) - {"case", "constant", "return"}


@pytest.mark.parametrize(
    ("ours", "plain", "shapes"),
    [
        (conv, lambda x, w: lax_conv(x, w, 1, ((0, 0), (0, 0)), 1), [(2, 4, 4, 3), (1, 1, 3, 5)]),
        (lambda x: max_pool(x, 3, 2, 1), lambda x: lax_pool(x, 3, 2, 1), [(2, 4, 4, 3)]),
    ],
)
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_accelerators_are_given_what_lax_has(ours, plain, shapes, platform):
    arrays = [random(*shape) for shape in shapes]
    assert lowered(ours, *arrays, platform=platform) == lowered(plain, *arrays, platform=platform)
    assert lowered(ours, *arrays, platform="cpu") != lowered(plain, *arrays, platform="cpu")


def test_accelerators_sum_over_pixels_at_once():
    texts = {
        platform: jax.jit(lambda x: pixel_sums(lambda x: (x, x * x), x)).trace(random(2, 4, 4, 3))
        .lower(lowering_platforms=(platform,)).as_text()
        for platform in ("tpu", "cuda", "cpu")
    }  # fmt: skip
    assert {platform for platform, text in texts.items() if "while" in text} == {"cpu"}
