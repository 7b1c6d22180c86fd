"""The TPU's kernels, interpreted, against the plain path; and where each of them is taken."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxvision import models
from jaxvision.ops import attention, attention_branch, gelu, mlp_branch

# batch, tokens, width, heads. Heads of 8 to 128 channels; one, two or all of them in a group of lanes; odd batches
# and token counts.
SHAPES = [(3, 5, 16, 2), (2, 17, 192, 3), (5, 50, 64, 2), (2, 9, 256, 4), (1, 197, 256, 2)]


def case(kind, shape, dtype):
    """(branch, arguments): x and the leaves, none of them 0."""
    batch, tokens, width, heads = shape
    rng = np.random.default_rng(0)

    def normal(*size, scale=0.1):
        return jnp.asarray(rng.normal(0, scale, size), jnp.float32)

    hidden = 3 * width if kind == "attention" else 4 * width
    norm = {"scale": 1 + normal(width), "bias": normal(width)}
    first = {"kernel": normal(width, hidden), "bias": normal(hidden)}
    second = {"kernel": normal(width if kind == "attention" else hidden, width), "bias": normal(width)}
    x = normal(batch, tokens, width, scale=1).astype(dtype)

    def branch(*arguments, **options):
        if kind == "attention":
            return attention_branch(*arguments, heads=heads, **options)
        return mlp_branch(*arguments, **options)

    return branch, (x, norm, first, second)


def both_ways(branch, arguments, **options):
    """The value and the gradients of all arguments, as float32 leaves, under a fixed random cotangent."""
    weight = jnp.asarray(np.random.default_rng(1).normal(size=arguments[0].shape), arguments[0].dtype)

    @jax.jit
    def run(*arguments):
        y, pull = jax.vjp(lambda *a: branch(*a, **options), *arguments)
        return y, pull(weight.astype(y.dtype))

    return [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(run(*arguments))]


def errors(got, wanted):
    return [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(got, wanted, strict=True)]


@pytest.mark.parametrize("kind", ["attention", "mlp"])
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_equal_the_plain_path(kind, shape):
    branch, arguments = case(kind, shape, jnp.float32)
    got = both_ways(branch, arguments, interpret=True)
    # float32 rounds at 6e-8; sums have up to 1,000 terms, and the norms are computed by another formula
    assert max(errors(got, both_ways(branch, arguments))) < 1e-5


@pytest.mark.parametrize("kind", ["attention", "mlp"])
@pytest.mark.parametrize("shape", SHAPES[2:4])
def test_kernels_in_bfloat16_lose_no_more_than_the_plain_path(kind, shape):
    branch, arguments = case(kind, shape, jnp.bfloat16)
    exact = both_ways(branch, (arguments[0].astype(jnp.float32), *arguments[1:]))
    plain = errors(both_ways(branch, arguments), exact)
    kernels = errors(both_ways(branch, arguments, interpret=True), exact)
    # 2**-8 a rounding, a few of which add up; the kernels round less often, but not at the same places
    assert max(kernels) < 0.015
    assert all(k < 1.5 * p + 2**-8 for k, p in zip(kernels, plain))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_plain_path_is_the_modules_of_flax(dtype):
    (batch, tokens, width, heads), dtype = SHAPES[2], jnp.dtype(dtype)

    def modules(kind):
        def branch(x, norm, first, second):
            y = nn.LayerNorm(epsilon=1e-6, dtype=dtype).apply({"params": norm}, x)
            y = nn.Dense(first["bias"].size, dtype=dtype).apply({"params": first}, y)
            if kind == "mlp":
                y = gelu(y)
            else:
                q, k, v = jnp.moveaxis(y.reshape(batch, tokens, 3, heads, -1), 2, 0)
                y = attention(q, k, v).reshape(x.shape)
            return x + nn.Dense(width, dtype=dtype).apply({"params": second}, y)

        return branch

    for kind in ("attention", "mlp"):
        branch, arguments = case(kind, SHAPES[2], dtype)
        assert max(errors(both_ways(branch, arguments), both_ways(modules(kind), arguments))) < 1e-6


@pytest.mark.parametrize("kind", ["attention", "mlp"])
def test_dropped_branches(kind):
    branch, arguments = case(kind, SHAPES[2], jnp.float32)
    keep = jnp.asarray([True, False, True, False, False])
    got = both_ways(branch, arguments, keep=keep, rate=0.2, interpret=True)
    assert max(errors(got, both_ways(branch, arguments, keep=keep, rate=0.2))) < 1e-5
    x, whole = np.asarray(arguments[0]), both_ways(branch, arguments)[0]
    wanted = np.where(np.asarray(keep)[:, None, None], x + (whole - x) / 0.8, x)
    np.testing.assert_allclose(got[0], wanted, atol=1e-5)


@pytest.mark.parametrize("kind", ["attention", "mlp"])
@pytest.mark.parametrize("fsdp", [1, 2])
def test_two_devices_equal_one(kind, fsdp):
    branch, arguments = case(kind, (4, 5, 16, 2), jnp.float32)
    keep = jnp.asarray([True, True, False, True])
    one = both_ways(branch, arguments, keep=keep, rate=0.5, interpret=True)
    axes = (AxisType.Auto,) * 2
    mesh = jax.make_mesh((2 // fsdp, fsdp), ("data", "fsdp"), axis_types=axes, devices=jax.devices()[:2])

    def put(leaf, *spec):
        return jax.device_put(leaf, NamedSharding(mesh, P(*spec)))

    split = put(arguments[0], ("data", "fsdp")), *jax.tree.map(lambda leaf: put(leaf, "fsdp"), arguments[1:])
    # another order of the sum over the images
    assert max(errors(both_ways(branch, split, keep=keep, rate=0.5, interpret=True), one)) < 1e-6


def lowered(platform, *, network="vit_tiny_patch16_224", dtype=jnp.bfloat16, rows=4, devices=2, **options):
    """How many kernels there are in the lowered gradient of a small network, and its text. Nothing is compiled."""
    device = AbstractDevice(device_kind={"tpu": "TPU v5 lite"}.get(platform, platform), num_cores=1, platform=platform)
    axes = (AxisType.Auto,) * 2
    mesh = AbstractMesh((devices, 1), ("data", "fsdp"), axis_types=axes, abstract_device=device)
    model = getattr(models, network)(classes=10, dtype=dtype, width=16, depth=2, patch=8, **options)
    image = jax.ShapeDtypeStruct((rows, 16, 16, 3), jnp.float32)

    def put(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, P()))

    variables = jax.eval_shape(lambda k, x: model.init(k, x, train=False), jax.random.key(0), image)

    def loss(variables, image):
        out = model.apply(variables, image, train=True, rngs={"dropout": jax.random.key(0)})
        return jnp.sum(out["logits"])

    traced = jax.jit(jax.grad(loss)).trace(jax.tree.map(put, variables), put(image))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    return text.count("tpu_custom_call"), text


def test_kernels_on_a_tpu_only():
    count, text = lowered("tpu", heads=2)
    assert count == 4  # two branches, two ways; shared by the blocks
    assert "mlp_backward_kernel" in text
    assert lowered("tpu", heads=2, devices=1)[0] == 4
    assert lowered("tpu", heads=2, drop_path=0.1)[0] > 0
    assert lowered("tpu", heads=2, remat="full")[0] > 0
    assert lowered("tpu", network="mixer_s32_224")[0] == 2
    assert lowered("cpu", heads=2)[0] == 0


@pytest.mark.parametrize(
    "options", [dict(rows=3), dict(dtype=jnp.float32), dict(dropout=0.1), dict(qk_norm=True), dict(layer_scale=0.1)]
)
def test_what_does_not_fit_takes_the_plain_path(options):
    assert lowered("tpu", heads=2, **options)[0] == 0


def test_too_large_takes_the_plain_path():
    device = AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
    mesh = AbstractMesh((1,), ("data",), axis_types=(AxisType.Auto,), abstract_device=device)

    def kernels(tokens):
        branch, arguments = case("attention", (1, 2, 64, 2), jnp.bfloat16)
        x = jax.ShapeDtypeStruct((1, tokens, 64), jnp.bfloat16, sharding=NamedSharding(mesh, P()))
        traced = jax.jit(branch).trace(x, *arguments[1:])
        return traced.lower(lowering_platforms=("tpu",)).as_text().count("tpu_custom_call")

    assert kernels(1024) == 1
    assert kernels(4096) == 0
