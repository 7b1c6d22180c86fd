"""The 1x1 convolutions between two bottlenecks, as written out and as TPU kernels."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxvision import models
from jaxvision.ops import Tail, bottleneck, finish, finish_and_narrow


def make(batch, side, inner, outer, narrow, dtype, seed=0):
    rng = np.random.default_rng(seed)

    def draw(*shape, dtype=jnp.float32, by=1.0):
        return jnp.asarray(rng.normal(0, by, shape), dtype)

    y, a, b = draw(batch, side, side, inner, dtype=dtype), draw(inner), draw(inner)
    tail = Tail(
        z=jnp.maximum(y.astype(jnp.float32) * a + b, 0).astype(dtype),
        y=y,
        a=a,
        b=b,
        shortcut=draw(batch, side, side, outer, dtype=dtype),
        kernel=draw(inner, outer, by=inner**-0.5),
        bias=draw(outer),
    )
    cotangents = draw(batch, side, side, outer, dtype=dtype), draw(batch, side, side, narrow, dtype=dtype)
    return tail, draw(outer, narrow, by=outer**-0.5), cotangents


def kept(tail, kernel, cotangents):
    wide = finish(tail)
    dtype = tail.y.dtype
    return bottleneck._Kept(
        *cotangents, wide, tail.y, tail.a, tail.b, tail.kernel.T.astype(dtype), kernel.astype(dtype)
    )


def test_gradients_are_those_of_autodiff():
    tail, kernel, cotangents = make(3, 4, 5, 12, 6, jnp.float32)

    def plain(tail, kernel):
        wide = nn.relu(tail.shortcut + jnp.einsum("bhwi,io->bhwo", tail.z, tail.kernel) + tail.bias)
        return wide, jnp.einsum("bhwo,on->bhwn", wide, kernel)

    for got, want in zip(finish_and_narrow(tail, kernel), plain(tail, kernel)):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    got, want = (
        jax.jit(lambda *args, f=f: jax.vjp(f, *args)[1](cotangents))(tail, kernel) for f in (finish_and_narrow, plain)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, want)


# channels that fill 128 lanes and that do not, batches that do and do not, sides whose pixels 8 does not divide
@pytest.mark.parametrize(
    ("batch", "side", "inner", "outer", "narrow"),
    [(128, 2, 8, 32, 8), (128, 2, 8, 32, 128), (16, 3, 8, 32, 16), (16, 4, 128, 256, 128)],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_kernels_are_the_plain_paths(batch, side, inner, outer, narrow, dtype):
    made = make(batch, side, inner, outer, narrow, dtype)
    inputs = kept(*made)
    got = *bottleneck._backward_kernel(inputs, interpret=True), *bottleneck._forward_kernel(*made[:2], interpret=True)
    want = *jax.jit(bottleneck._plain)(inputs), *jax.jit(bottleneck._plain_both)(*made[:2])
    # float32: other orders of the sums; bfloat16: a gradient that lies between two values may be rounded either way
    tolerance = 1e-5 if dtype == jnp.float32 else 1e-2
    for a, b in zip(got, want):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        a, b = np.float32(a), np.float32(b)
        np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max())


def test_the_kernel_on_two_devices_is_that_on_one():
    mesh = jax.make_mesh((2, 1), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:2])
    made = make(32, 2, 8, 32, 8, jnp.float32)
    inputs = kept(*made)
    rows, whole = NamedSharding(mesh, P(("data", "fsdp"))), NamedSharding(mesh, P())

    def split(tree):
        return jax.tree.map(lambda x: jax.device_put(x, rows if x.ndim == 4 else whole), tree)

    got = (
        *jax.jit(partial(bottleneck._backward_kernel, interpret=True))(split(inputs)),
        *jax.jit(partial(bottleneck._forward_kernel, interpret=True))(*split(made[:2])),
    )
    for a, b in zip(got, (*bottleneck._plain(inputs), *bottleneck._plain_both(*made[:2]))):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


def test_a_network_that_hands_tails_over_learns_the_same():
    """remat turns them off; the gradients are those of the same network, the statistics too."""
    model = models.resnet50(classes=5, depths=(2, 1), width=8, stem="small", zero_init=False)
    image = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    variables = jax.jit(lambda k: model.init(k, image, train=False))(jax.random.key(1))

    def run(model):
        def loss(params):
            out, stats = model.apply({**variables, "params": params}, image, train=True, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(out["logits"])) + jnp.sum(out["c3"] ** 2), (out, stats)

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])

    (loss, (out, stats)), grads = run(model)
    (wanted, (outs, statistics)), gradients = run(model.clone(remat="full"))
    np.testing.assert_allclose(loss, wanted, rtol=1e-4)
    for a, b in ((out, outs), (stats, statistics), (grads, gradients)):
        assert jax.tree.structure(dict(a)) == jax.tree.structure(dict(b))
        for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
            np.testing.assert_allclose(p, q, atol=1e-3 * float(jnp.abs(q).max()) + 1e-6)
