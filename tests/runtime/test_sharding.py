"""Which array lies where: the largest dimension that fsdp divides, exceptions by name, and what a device then holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jaxvision.config
from jaxvision.errors import UserError
from jaxvision.runtime import sharding
from jaxvision.training import build
from jaxvision.training.optim import make as make_optimiser
from jaxvision.training.step import abstract_state


@pytest.fixture
def mesh():
    return sharding.make_mesh(data=2, fsdp=4, devices=jax.devices()[:8])


TREE = {
    "fc": {"kernel": jax.ShapeDtypeStruct((8, 16), jnp.float32), "bias": jax.ShapeDtypeStruct((6,), jnp.float32)},
    "conv": {"kernel": jax.ShapeDtypeStruct((3, 3, 8, 16), jnp.float32)},
    "count": jax.ShapeDtypeStruct((), jnp.int32),
}


def specs(mesh, rules=()):
    found = sharding.state_shardings(mesh, TREE, rules)
    return [found["fc"]["kernel"].spec, found["fc"]["bias"].spec, found["conv"]["kernel"].spec, found["count"].spec]


def test_the_largest_divisible_dimension(mesh):
    assert specs(mesh) == [P(None, "fsdp"), P(), P(None, None, None, "fsdp"), P()]


def test_the_first_rule_that_matches_counts(mesh):
    assert specs(mesh, (("fc/kernel", 0), ("kernel", -1))) == [P("fsdp"), P(), P(), P()]
    # an optimiser may keep one number for a leaf that the rule splits
    assert specs(mesh, (("conv", 2), ("count|fc/kernel", 1))) == [P(None, "fsdp"), P(), P(None, None, "fsdp"), P()]


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ((("fc/kernell", 0),), "'fc/kernell' matches no leaf; there are, for example, conv/kernel, count, fc/bias"),
        ((("bias", 0),), r"is for fc/bias of shape \[6\], which has no dimension 0 that fsdp=4 divides"),
        ((("fc/kernel", 2),), r"of shape \[8, 16\], which has no dimension 2"),
    ],
)
def test_rules_that_cannot_be_followed_are_named(mesh, rules, words):
    with pytest.raises(UserError, match=words):
        specs(mesh, rules)


def test_rules_of_a_config_are_checked():
    config = jaxvision.config.default()
    config.data.train = "digits:train"
    config.steps = 1
    config.mesh.rules = (("fc/kernel", "first"),)
    with pytest.raises(UserError, match=r"mesh\.rules holds \('fc/kernel', 'first'\)"):
        jaxvision.config.check(config)


@pytest.mark.parametrize(
    ("name", "optim"),
    [("resnet50", dict(name="sgd", momentum=0.9)), ("vit_small_patch16_224", dict(name="adamw"))],
    ids=["resnet50, sgd", "vit_s, adamw"],
)
def test_a_device_of_eight_holds_an_eighth_of_the_state(name, optim):
    """Of parameters, optimiser and averages, measured from the arrays: at most 2 % more than an eighth."""
    config = jaxvision.config.default()
    config.data.train = "fake:1000x224?classes=1000"
    config.model = dict(name=name)
    config.optim = dict(config.optim, **optim)
    config.wrap = (("ema", dict(decay=0.99)),)
    config = build.resolve(config)
    task = build.task(config, 1000)
    params, _ = build.abstract_init(task, config)
    tx, _ = make_optimiser(config.optim, 100, params)
    mesh = sharding.make_mesh(data=1, fsdp=8, devices=jax.devices()[:8])
    abstract = abstract_state(task, tx, build.example(config), mesh)
    arrays = jax.tree.map(lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding), abstract)
    leaves = jax.tree.leaves(arrays)
    whole = sum(leaf.nbytes for leaf in leaves)
    for device in jax.devices()[:8]:
        held = sum(s.data.nbytes for leaf in leaves for s in leaf.addressable_shards if s.device == device)
        assert held < whole * (1 / 8 + 0.02)
    line, listing = sharding.table(abstract)
    assert f"{whole / 1e6:,.1f} MB, {held / 1e6:,.1f} MB a device ({held / whole:.1%})" in line
    assert len(listing.splitlines()) == 1 + len(leaves)
    print(f"\n{name}: {held / whole:.4f} of {whole:,} bytes")


def test_local_rows_cover_the_batch():
    mesh = sharding.make_mesh(devices=jax.devices()[:8])
    np.testing.assert_array_equal(sharding.local_rows(sharding.batch_sharding(mesh), 16), np.arange(16))
