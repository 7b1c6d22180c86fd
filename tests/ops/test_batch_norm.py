"""Normalisation by the shorter way gives what the plain formulas give."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxvision import models
from jaxvision.models.layers import BatchNorm, Conv, conv_norm, max_pool
from jaxvision.ops import at_least_float32, batch_statistics, folded, pointwise, relu

EPSILON = 1e-5


def plain(x, kernel, scale, bias):
    """Batch normalisation of a 1x1 convolution as its paper writes it, in two passes."""
    y = jnp.einsum("bhwi,io->bhwo", x, kernel, precision="highest")
    mean = y.mean((0, 1, 2))
    var = ((y - mean) ** 2).mean((0, 1, 2))
    return (y - mean) / jnp.sqrt(var + EPSILON) * scale + bias, mean, var


def short(x, kernel, scale, bias):
    times, plus, mean, var = folded(x, kernel, scale, bias, EPSILON)
    return (at_least_float32(pointwise(x, times)) + plus).astype(x.dtype), mean, var


def inputs(shape, features, seed, dtype):
    rng = np.random.default_rng(seed)
    x = np.maximum(rng.normal(0.5, 1, shape), 0)  # as after a ReLU: the mean is not small
    rest = [rng.normal(size=s) for s in ((shape[-1], features), features, features)]
    return [jnp.asarray(a, dtype) for a in (x, *rest)], jnp.asarray(rng.normal(size=(*shape[:3], features)), dtype)


def gradients(function, args, target):
    return jax.jit(jax.grad(lambda *a: jnp.sum((function(*a)[0] * target).astype(target.dtype)), argnums=(0, 1, 2, 3)))(
        *args
    )


@settings(max_examples=4, deadline=None)
@given(
    batch=st.integers(1, 4),
    side=st.integers(2, 5),
    width=st.integers(1, 6),
    times=st.integers(1, 4),
    seed=st.integers(0),
)
def test_folded_is_the_formula_in_float64(batch, side, width, times, seed):
    with jax.enable_x64(True):
        args, target = inputs((batch, side, side + 1, width), width * times, seed % 2**32, jnp.float64)
        values, grads = jax.jit(lambda *a: [[f(*a) for f in (short, plain)],
                                            [gradients(f, a, target) for f in (short, plain)]])(*args)  # fmt: skip
        for got, want in zip(*values):
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)
        for got, want in zip(*grads):
            # where a channel hardly varies, 1 / sqrt(var + epsilon) enlarges rounding up to 1e7 times
            np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7 * max(1.0, float(jnp.abs(want).max())))


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 2e-5), (jnp.bfloat16, 0.03)])
def test_folded_keeps_its_dtypes_and_agrees(dtype, tolerance):
    (x, *rest), target = inputs((8, 7, 7, 16), 64, 0, jnp.float32)
    x = x.astype(dtype)
    y, mean, var = short(x, *rest)
    assert y.dtype == dtype
    assert mean.dtype == var.dtype == jnp.float32
    wanted = plain(x.astype(jnp.float32), *rest)
    for got, want in zip((y, mean, var), wanted):
        np.testing.assert_allclose(np.float32(got), want, atol=tolerance * float(jnp.abs(want).max()))
    mine = gradients(short, (x, *rest), target)
    assert [g.dtype for g in mine] == [dtype, jnp.float32, jnp.float32, jnp.float32]
    for got, want in zip(mine, gradients(plain, (x.astype(jnp.float32), *rest), target)):
        np.testing.assert_allclose(np.float32(got), want, atol=tolerance * float(jnp.abs(want).max()))


def test_relu_is_that_of_jax():
    x = jnp.asarray([-2.0, -0.0, 0.0, 1e-30, 3.0])
    np.testing.assert_array_equal(relu(x), nn.relu(x))
    np.testing.assert_array_equal(jax.grad(lambda v: relu(v).sum())(x), jax.grad(lambda v: nn.relu(v).sum())(x))


@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_is_that_of_flax(train):
    x = jax.random.normal(jax.random.key(0), (4, 5, 6, 3)) * 2 + 1
    theirs = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5)
    mine = BatchNorm(train, momentum=0.9, epsilon=1e-5)
    variables = {
        "params": {"scale": jnp.asarray([0.5, -1.0, 2.0]), "bias": jnp.asarray([0.1, 0.2, -0.3])},
        "batch_stats": {"mean": jnp.asarray([0.3, 0.0, -1.0]), "var": jnp.asarray([1.0, 2.0, 0.5])},
    }
    want, wanted = theirs.apply(variables, x, mutable=["batch_stats"])
    got, gotten = mine.apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    for name in ("mean", "var"):
        np.testing.assert_allclose(gotten["batch_stats"][name], wanted["batch_stats"][name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("train", [True, False])
def test_pooling_before_is_pooling_after(train):
    """Where a scale is negative too: there the smallest becomes the largest."""
    x = jax.random.normal(jax.random.key(0), (2, 7, 8, 4))
    model = BatchNorm(train)
    variables = {
        "params": {"scale": jnp.asarray([1.0, -1.0, 0.0, -0.2]), "bias": jnp.asarray([0.0, 0.3, 1.0, -0.5])},
        "batch_stats": {"mean": jnp.asarray([0.3, 0.5, -1.0, 0.0]), "var": jnp.asarray([1.0, 2.0, 0.5, 1.0])},
    }

    def pool(y):
        return max_pool(y, 3, 2, 1)

    def before(variables, x):
        return model.apply(variables, x, pool, method="pooled", mutable=["batch_stats"])

    def after(variables, x):
        y, stats = model.apply(variables, x, mutable=["batch_stats"])
        return pool(y), stats

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        *(jax.jit(f)(variables, x) for f in (before, after)),
    )
    # a channel of scale 0 is all ties, where each has its own subgradient
    variables["params"]["scale"] = jnp.asarray([1.0, -1.0, 0.1, -0.2])
    weight = jax.random.normal(jax.random.key(1), (2, 4, 4, 4))
    gradient = [
        jax.jit(
            jax.grad(lambda p, x: jnp.sum(f({**variables, "params": p}, x)[0] * weight), argnums=(0, 1))  # noqa: B023
        )(variables["params"], x)
        for f in (before, after)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *gradient)


def test_only_a_widening_1x1_convolution_takes_the_shorter_way():
    """Others take the plain one: narrowing ones would pay more for x' x than they save."""

    class Both(nn.Module):
        options: dict

        @nn.compact
        def __call__(self, x):
            return conv_norm(x, Conv(**self.options), BatchNorm(True, name="norm"))

    x = jnp.ones((2, 6, 6, 4))
    for conv, taken in (
        (dict(features=8), True),
        (dict(features=7), False),
        (dict(features=8, stride=2), True),
        (dict(features=8, kernel=3), False),
        (dict(features=8, groups=2), False),
        (dict(features=8, bias=True), False),
    ):
        jaxpr = jax.make_jaxpr(lambda x: Both(conv).init_with_output(jax.random.key(0), x))(x)  # noqa: B023
        assert ("name=_gram" in str(jaxpr)) is taken, conv


def test_statistics_are_those_of_the_definition():
    x = jax.random.normal(jax.random.key(0), (3, 4, 5, 6)) + 3
    mean, var = batch_statistics(x.astype(jnp.bfloat16))
    exact = np.asarray(x.astype(jnp.bfloat16), np.float64)
    np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(var, exact.var((0, 1, 2)), rtol=1e-4)  # 9 is taken from 10 in float32


def test_the_variance_of_what_does_not_vary_is_never_below_0():
    """It is a difference of two large numbers, whose rounding would make the inverse of a root NaN."""
    values = jnp.asarray(np.random.default_rng(0).uniform(100, 10_000, 64), jnp.float32)
    x = jnp.broadcast_to(values, (3, 5, 7, 64))
    mean, var = batch_statistics(x)
    np.testing.assert_allclose(mean, values, rtol=1e-5)  # of 105 additions, each of which rounds by up to 6e-8
    assert (var >= 0).all()
    assert (var <= 1e-5 * values**2).all()


@pytest.mark.parametrize(
    "name", ["mobilenet_v2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet50", "densenet121"))]
)
def test_a_pod_may_have_more_values_a_channel_than_an_int32_holds(name):
    """As 256 chips with a thousand images each have; traced, not computed."""
    model = getattr(models, name)(classes=5)
    image = jax.ShapeDtypeStruct((256_000, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(lambda k: model.init(k, jnp.zeros((1, 224, 224, 3)), train=False), jax.random.key(0))

    def loss(params, stats, image):
        out, _ = model.apply({"params": params, "batch_stats": stats}, image, train=True, mutable=["batch_stats"],
                             rngs={"dropout": jax.random.key(0)})  # fmt: skip
        return jnp.sum(out["logits"])

    gradients = jax.eval_shape(jax.grad(loss), variables["params"], variables["batch_stats"], image)
    assert jax.tree.structure(gradients) == jax.tree.structure(variables["params"])
