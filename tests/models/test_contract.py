"""What every network must keep to, over models.__all__.

A new variant adds its published size, a new family its smallest variant, to published.py; tests fail until they do.
"""

import functools

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
    assert len(set(models.__all__)) == len(models.__all__)
    families = {family.__name__.rpartition(".")[2] for family in models.FAMILIES}
    assert {name.partition(",")[0] for name in SMALL} == families


@pytest.mark.parametrize("name", models.__all__)
def test_parameters_and_outputs(name):
    """Of one abstract pass: tracing the deepest networks takes seconds."""
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
    """One case after the other, so that `ready` holds the weights of one large network, not of all."""
    return request.param


@functools.lru_cache(maxsize=2)
def ready(name, options, size):
    """(model, random variables, image): nothing is 0 where a gradient would vanish."""
    model = getattr(models, name)(classes=CLASSES, **dict(options))
    image = jax.random.normal(jax.random.key(1), (4, size, size, 3))
    variables = jax.jit(lambda k: model.init(k, image[:1], train=False))(jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + rng.normal(0, 0.05, x.shape).astype(np.float32), variables["params"])
    return model, {**variables, "params": params}, image


def case_of(case):
    name, options, size = case
    return ready(name, tuple(sorted(options.items())), size)


def run(model, variables, image, train):
    if not train:
        return model.apply(variables, image, train=False), {}
    return model.apply(variables, image, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(2)})


def test_every_parameter_gets_a_gradient(case):
    model, variables, image = case_of(case)
    weight = jnp.asarray(np.random.default_rng(1).normal(size=(4, CLASSES)), jnp.float32)

    @jax.jit
    @jax.grad
    def gradient(params):
        out, _ = run(model, {**variables, "params": params}, image, True)
        return jnp.sum(out["logits"] * weight)

    for path, g in jax.tree_util.tree_leaves_with_path(gradient(variables["params"])):
        assert np.isfinite(g).all(), path
        assert np.abs(g).max() > 0, path


def test_training_differs_only_by_batch_statistics(case):
    """With dropout and stochastic depth at 0: networks without BatchNorm are the same in both modes; with it, the
    mode that uses stored statistics gives what training gives once those of the batch are stored."""
    name, options, size = case
    off = {k: 0.0 for k in ("dropout", "drop_path") if k in getattr(models, name).func.__dataclass_fields__}
    model, variables, image = case_of((name, {**options, **off}, size))
    once, stats = jax.jit(lambda v, x: run(model, v, x, True))(variables, image)
    plain, _ = jax.jit(lambda v, x: run(model, v, x, False))(variables, image)
    if "batch_stats" not in variables:
        np.testing.assert_allclose(once["logits"], plain["logits"], atol=1e-4 * float(jnp.abs(plain["logits"]).max()))
        return
    assert jax.tree.structure(dict(stats["batch_stats"])) == jax.tree.structure(dict(variables["batch_stats"]))
    changed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), dict(stats["batch_stats"]), variables["batch_stats"])
    assert all(jax.tree.leaves(changed))
    assert not np.allclose(once["logits"], plain["logits"], atol=1e-3)


def test_bfloat16_agrees_with_float32(case):
    model, variables, image = case_of(case)
    exact = jax.jit(lambda v, x: run(model, v, x, False)[0]["logits"])(variables, image)
    rough = model.clone(dtype=jnp.bfloat16)
    got = jax.jit(lambda v, x: run(rough, v, x, False)[0]["logits"])(variables, image)
    # bfloat16 has 8 bits: one part in 256 a rounding, some of which add up over the layers
    np.testing.assert_allclose(exact, got, atol=0.06 * float(jnp.abs(exact).max()))


def test_one_device_equals_two(case):
    model, variables, image = case_of(case)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    apply = jax.jit(lambda v, x: run(model, v, x, True)[0]["logits"])
    split = apply(
        jax.device_put(variables, NamedSharding(mesh, P())), jax.device_put(image, NamedSharding(mesh, P("data")))
    )
    one = apply(variables, image)
    np.testing.assert_allclose(one, split, atol=2e-4 * float(jnp.abs(one).max()))


def test_remat_changes_nothing_but_memory(case):
    model, variables, image = case_of(case)
    again = model.clone(remat=True)
    shapes = jax.eval_shape(lambda k: again.init(k, image[:1], train=False), jax.random.key(0))
    assert jax.tree.structure(dict(shapes)) == jax.tree.structure(dict(variables))

    def gradients(model):
        def loss(params):
            out, _ = run(model, {**variables, "params": params}, image, True)
            return jnp.mean(out["logits"] ** 2)

        return jax.jit(jax.grad(loss))(variables["params"])

    for a, b in zip(jax.tree.leaves(gradients(model)), jax.tree.leaves(gradients(again))):
        np.testing.assert_allclose(a, b, atol=1e-3 * float(np.abs(a).max()) + 1e-7)
