"""What every network must keep to, over models.__all__.

A new variant adds its published size, a new family its smallest variant, to published.py; tests fail until they do.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxvision import models
from tests.models.published import PUBLISHED, SMALL, TOKENS

CLASSES = 5
CASES = [pytest.param(case, id=name) for name, case in SMALL.items()]
# 64 px: each layer still has more than one pixel to see, and none has thousands.
CASES += [
    pytest.param((name, {}, 64), id=name, marks=pytest.mark.slow)
    for name in models.__all__
    if name not in {case[0] for case in SMALL.values()}
]


def test_everything_is_listed():
    assert set(PUBLISHED) == set(models.__all__)
    assert set(models.__all__) > DEEP
    assert len(set(models.__all__)) == len(models.__all__)
    families = {family.__name__.rpartition(".")[2] for family in models.FAMILIES}
    assert {name.partition(",")[0] for name in SMALL} == families


# Deep or wide relatives of a network that is here by default: tracing one takes 0.5 to 3 s.
DEEP = {f"densenet{n}" for n in (161, 169, 201)} | {f"efficientnet_b{n}" for n in range(2, 8)}
DEEP |= {f"resnetv2_{n}_bit" for n in ("101x1", "101x3", "50x3", "152x2", "152x4")} | {"efficientnet_v2_m"}
DEEP |= {"resnet101", "resnet101d", "resnet152", "resnet152d", "resnext101_64x4d", "wide_resnet101_2"}
DEEP |= {"efficientnet_b1", "resnext101_32x8d", "swin_s", "swin_b", "convnext_base", "convnext_large", "vit_l_32"}
DEEP |= {"mixer_l16_224", "mixer_l32_224"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in DEEP)) for n in models.__all__])
def test_parameters_and_outputs(name):
    """Of one abstract pass."""
    model = getattr(models, name)(classes=1000, dtype=jnp.bfloat16)
    image = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    out, variables = jax.eval_shape(lambda k, x: model.init_with_output(k, x, train=False), jax.random.key(0), image)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == PUBLISHED[name]
    assert set(variables) <= {"params", "batch_stats"}
    # a mean and a variance for each normalised channel, and nothing else beside the parameters
    flat = traverse_util.flatten_dict(dict(variables.get("batch_stats", {})))
    assert {path[-1] for path in flat} <= {"mean", "var"}
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    assert out["logits"].shape == (2, 1000)
    assert out["features"].shape[0] == 2
    assert out["features"].ndim == 2
    assert out["logits"].dtype == out["features"].dtype == jnp.float32
    if models.family(name) in TOKENS:
        assert out["tokens"].ndim == 3
        assert out["tokens"].dtype == jnp.bfloat16
        return
    stages = [out[f"c{k}"] for k in (2, 3, 4, 5)]
    assert all(stage.dtype == jnp.bfloat16 and stage.ndim == 4 for stage in stages)
    sides = [stage.shape[1] for stage in stages]
    assert sides == sorted(sides, reverse=True)
    assert sides[-1] < sides[0]


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """One case after the other, so that `measured` holds the weights of one large network, not of all."""
    name, options, size = request.param
    return measured(name, tuple(sorted(options.items())), size)


class Measured(NamedTuple):
    """A network with random weights, nothing 0 where a gradient would vanish; without dropout and stochastic depth."""

    model: Any
    variables: Any
    image: jax.Array
    weight: jax.Array  # of each logit, in the sum that `gradients` are of
    gradients: Any  # in training
    training: jax.Array  # logits
    statistics: Any  # after that step
    evaluating: jax.Array  # logits


def random_leaf(rng, path, leaf):
    """Kernels that keep the scale of what passes (He et al. 2015), the rest near what it is when fresh, but never at 0;
    by NumPy, since compiling a network's own `init` takes as long as its gradient."""
    name, noise = path[-1].key, rng.standard_normal(leaf.shape, np.float32)
    if name in ("mean", "var"):
        return jnp.full(leaf.shape, float(name == "var"))
    if name == "kernel":
        return jnp.asarray(noise * (2 / np.prod(leaf.shape[:-1])) ** 0.5)
    if "scale" in name:
        return jnp.asarray(1 + 0.05 * noise)
    return jnp.asarray(0.05 * noise)


@functools.lru_cache(maxsize=1)
def measured(name, options, size):
    factory = getattr(models, name)
    off = {k: 0.0 for k in ("dropout", "drop_path") if k in factory.func.__dataclass_fields__}
    model = factory(classes=CLASSES, **{**dict(options), **off})
    image = jax.random.normal(jax.random.key(1), (4, size, size, 3))
    shapes = jax.eval_shape(lambda k: model.init(k, image[:1], train=False), jax.random.key(0))
    rng = np.random.default_rng(0)
    variables = jax.tree_util.tree_map_with_path(functools.partial(random_leaf, rng), shapes)
    params = variables["params"]
    weight = jnp.asarray(rng.normal(size=(4, CLASSES)), jnp.float32)
    gradients, (training, statistics) = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)(
        params, model, variables, image, weight
    )
    evaluating = evaluate(model, variables, image)
    return Measured(model, variables, image, weight, gradients, training, statistics, evaluating)


@functools.partial(jax.jit, static_argnums=0)
def evaluate(model, variables, image):
    return model.apply(variables, image, train=False)["logits"]


def round_to_bfloat16(x):
    return x.astype(jnp.bfloat16).astype(jnp.float32)


def train(model, variables, image):
    """(logits, new statistics)."""
    out, new = model.apply(variables, image, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(2)})
    return out["logits"], new.get("batch_stats", {})


def loss(params, model, variables, image, weight):
    logits, statistics = train(model, {**variables, "params": params}, image)
    return jnp.sum(logits * weight), (logits, statistics)


def test_every_parameter_gets_a_gradient(case):
    for path, g in jax.tree_util.tree_leaves_with_path(case.gradients):
        assert np.isfinite(g).all(), path
        assert np.abs(g).max() > 0, path


def test_training_differs_only_by_batch_statistics(case):
    """Networks without BatchNorm are the same in both modes; with it, all statistics move, and so do the logits."""
    scale = float(jnp.abs(case.evaluating).max())
    if "batch_stats" not in case.variables:
        np.testing.assert_allclose(case.training, case.evaluating, atol=1e-4 * scale)
        return
    old, new = case.variables["batch_stats"], case.statistics
    assert jax.tree.structure(dict(new)) == jax.tree.structure(dict(old))
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool(jnp.any(a != b)), dict(new), dict(old))))
    assert not np.allclose(case.training, case.evaluating, atol=1e-3)


def test_bfloat16_agrees_with_float32(case):
    got = evaluate(case.model.clone(dtype=jnp.bfloat16), case.variables, case.image)
    # bfloat16 has 8 bits: one part in 256 a rounding, some of which add up over the layers
    bound = 0.06 * float(jnp.abs(case.evaluating).max())
    if np.abs(case.evaluating - got).max() > bound:
        # Networks whose stages only add up (BiT) multiply errors: what float32 makes of rounded weights and images.
        rounded = [jax.tree.map(round_to_bfloat16, x) for x in (case.variables, case.image)]
        bound = 3 * float(jnp.abs(evaluate(case.model, *rounded) - case.evaluating).max())
    np.testing.assert_allclose(case.evaluating, got, atol=bound)


def test_one_device_equals_two(case):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    variables = jax.device_put(case.variables, NamedSharding(mesh, P()))
    image = jax.device_put(case.image, NamedSharding(mesh, P("data")))
    logits = jax.jit(lambda v, x: train(case.model, v, x)[0])
    split = logits(variables, image)
    bound = 2e-4 * float(jnp.abs(case.training).max())
    if np.abs(case.training - split).max() > bound:
        # BatchNorm over a last stage of 16 values a channel, a hundred layers deep, multiplies rounding: what one
        # device makes of each pixel's neighbour in float32. Statistics of half the batch would be off by the scale.
        one = logits(case.variables, case.image)
        neighbours = [jnp.nextafter(case.image, jnp.full_like(case.image, towards)) for towards in (np.inf, -np.inf)]
        bound = 3 * max(float(jnp.abs(logits(case.variables, x) - one).max()) for x in neighbours)
        assert bound < 0.05 * float(jnp.abs(one).max())
    np.testing.assert_allclose(case.training, split, atol=bound)


@pytest.mark.parametrize("case", CASES[: len(SMALL)], indirect=True, scope="module")
def test_remat_changes_nothing_but_memory(case):
    """Of the smallest of each family: it is by block, and the blocks of the others are the same."""
    model = case.model.clone(remat="full")
    shapes = jax.eval_shape(lambda k: model.init(k, case.image[:1], train=False), jax.random.key(0))
    assert jax.tree.structure(dict(shapes)) == jax.tree.structure(dict(case.variables))
    again, _ = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)(
        case.variables["params"], model, case.variables, case.image, case.weight
    )
    ours, theirs = jax.tree.leaves(case.gradients), jax.tree.leaves(again)
    largest = max(float(np.abs(a).max()) for a in ours)
    for a, b in zip(ours, theirs, strict=True):
        # the last term: leaves whose gradient is 0 but for rounding, such as what a normalisation takes out again
        np.testing.assert_allclose(a, b, atol=1e-3 * float(np.abs(a).max()) + 1e-6 * largest)
