"""Arguments of the networks: what a docstring lists there is, and it does what it says."""

import dataclasses
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from jaxvision import models
from jaxvision.models.layers import DropPath, linear_rates
from tests.models.published import PUBLISHED, SMALL

PLAIN = {"alex_net", "vgg", "densenet"}  # families without branches that could be dropped
SAMPLES = dict(dropout=0.1, drop_path=0.1, remat=True, dtype=jnp.bfloat16, layer_scale=1e-4, zero_init=False)


def fields(name):
    return {f.name for f in dataclasses.fields(getattr(models, name).func)} - {"parent", "name"}


@pytest.mark.parametrize("name", models.__all__)
def test_docstrings_list_the_arguments(name):
    """All of them, and no other; each variant takes every one that a recipe sets."""
    text = inspect.cleandoc(getattr(models, name).func.__doc__)  # as Python 3.13 does by itself
    listed = {word for line in re.findall(r"^  (\w+(?:, \w+)*): ", text, re.M) for word in line.split(", ")}
    assert listed == fields(name)
    promised = {"dropout", "remat", "dtype"} | (set() if models.family(name) in PLAIN else {"drop_path"})
    assert promised <= listed
    for option, value in SAMPLES.items():
        if option in listed:
            assert getattr(getattr(models, name)(classes=3, **{option: value}), option) == value


def draws(model, variables, image, train):
    """How many random arrays the network makes, by its trace: nothing is compiled."""

    def apply(variables, key):
        return model.apply(variables, image, train=train, rngs={"dropout": key}, mutable=["batch_stats"])

    return str(jax.make_jaxpr(apply)(variables, jax.random.key(0))).count("random_bits[")


@pytest.mark.parametrize(
    ("case", "option"),
    [
        pytest.param(case, option, id=f"{label}-{option}")
        for label, case in SMALL.items()
        for option in ("dropout", "drop_path")
        if option in getattr(models, case[0]).func.__dataclass_fields__
    ],
)
def test_noise_is_there_in_training_only(case, option):
    """With the option on and all other noise off; 0 makes none at all."""
    name, options, size = case
    image = jnp.zeros((2, size, size, 3))
    off = {k: 0.0 for k in ("dropout", "drop_path") if k in fields(name)}
    model = getattr(models, name)(classes=3, **{**options, **off})
    noisy = model.clone(**{option: 0.5})
    variables = jax.eval_shape(lambda k: model.init(k, image, train=False), jax.random.key(0))
    assert draws(model, variables, image, True) == 0
    assert draws(noisy, variables, image, False) == 0
    assert draws(noisy, variables, image, True) > 0


def test_dropped_branches():
    """Rows are kept whole, divided by their chance, or dropped whole; at the rates that grow to the last block."""
    x = jnp.ones((4000, 3, 2))
    y = np.asarray(DropPath(0.25).apply({}, x, train=True, rngs={"dropout": jax.random.key(0)}))
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
    assert (y == y[:, :1, :1]).all()
    # of 4000 draws at 0.75, the standard deviation of the share is 0.007
    assert abs((y[:, 0, 0] > 0).mean() - 0.75) < 0.03
    np.testing.assert_array_equal(DropPath(0.25).apply({}, x, train=False), x)
    assert linear_rates(0.3, 4) == pytest.approx([0.0, 0.1, 0.2, 0.3])


def start(name, **options):
    """Leaves as they begin."""
    model = getattr(models, name)(classes=3, **options)
    image = jnp.zeros((1, 32, 32, 3))
    return traverse_util.flatten_dict(jax.jit(lambda k: model.init(k, image, train=False))(jax.random.key(0)), sep="/")


@pytest.mark.parametrize(
    ("name", "small", "leaf"),
    [
        ("convnext_tiny", dict(depths=(1, 1), widths=(8, 16)), "/layer_scale"),
        ("vit_small_patch16_224", dict(width=16, depth=2, heads=2), "/scale_1"),
        ("vit_small_patch16_224", dict(width=16, depth=2, heads=2), "/scale_2"),
    ],
)
def test_layer_scale_is_where_the_factors_begin(name, small, leaf):
    leaves = start(name, layer_scale=0.03, **small)
    found = [value for key, value in leaves.items() if key.endswith(leaf)]
    assert len(found) == 2
    assert all((value == np.float32(0.03)).all() for value in found)


@pytest.mark.parametrize(("zero_init", "value"), [(True, 0.0), (False, 1.0)])
@pytest.mark.parametrize(("name", "last"), [("resnet18", "bn2"), ("resnet50", "bn3")])
def test_zero_init_is_where_the_last_norms_begin(name, last, zero_init, value):
    leaves = start(name, depths=(1,), width=4, stem="small", zero_init=zero_init)
    found = {key: leaf for key, leaf in leaves.items() if key.endswith("/scale") and "layer" in key}
    assert {key for key in found if key.endswith(f"/{last}/scale")}
    for key, leaf in found.items():
        assert (leaf == (value if key.endswith(f"/{last}/scale") else 1.0)).all(), key


@pytest.mark.parametrize(
    ("name", "options", "added"),
    [
        ("vit_small_patch16_224", dict(patch=32), 22_878_952 - 22_050_664),  # is vit_small_patch32_224
        ("vit_b_16", dict(patch=32), 88_224_232 - 86_567_656),
        ("vit_l_16", dict(patch=32), 306_535_400 - 304_326_632),
        ("vit_b_16", dict(layer_scale=1e-6), 12 * 2 * 768),  # DeiT III, but for the position of its class token
        ("vit_b_16", dict(registers=4), 4 * 768),
        ("vit_b_16", dict(qk_norm=True), 12 * 2 * 2 * 64),
        ("vit_b_16", dict(pooling="mean"), -2 * 768),  # the class token and its position
    ],
)
def test_vit_options_add_the_parameters_that_they_say(name, options, added):
    def count(**options):
        model = getattr(models, name)(classes=1000, **options)
        image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
        shapes = jax.eval_shape(lambda k, x: model.init(k, x, train=False), jax.random.key(0), image)
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    assert count(**options) - PUBLISHED[name] == added
