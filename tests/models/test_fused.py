"""The fast forms against the plain ones that stand beside them, and which of the two a network runs.

So what is changed in a plain form, and not in the fast one, fails here: on a machine that runs the fast one, the change
would do nothing.
"""

import inspect
import re
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvision import models
from jaxvision.models import mixer, resnet, vit
from jaxvision.models.layers import BatchNorm, Conv, batch_norm, conv_norm, folded_conv_norm, norm_pool
from jaxvision.ops import Tail, finish, max_pool
from tests.models.published import SMALL

PLAIN = {
    resnet.FusedBottleneck: resnet.Bottleneck,
    vit.FusedBlock: vit.Block,
    mixer.FusedBlock: mixer.Block,
}

ADVICE = "the plain form and the fast one differ: change both, or leave the fast one out of the line that chooses"


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def variables_of(module, x):
    """Random ones, none of them 0."""
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    shapes = jax.eval_shape(module.init, keys, x)
    leaves, tree = jax.tree.flatten_with_path(shapes)
    near_one = [path[-1].key in ("scale", "var") for path, _ in leaves]
    return tree.unflatten(
        [one + 0.3 * draw(k, *leaf.shape) for k, (one, (_, leaf)) in enumerate(zip(near_one, leaves))]
    )


def run(module, variables, x):
    """Outputs and new statistics; gradients of x and of the parameters."""

    def loss(params, x):
        rngs = {"dropout": jax.random.key(2)}
        y, new = module.apply({**variables, "params": params}, x, rngs=rngs, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(3 * y)), (y, new)

    (_, seen), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(variables["params"], x)
    return seen, gradients


def assert_same(plain, fused, x, tolerance=1e-4):
    """With float32, so that what differs is the order of sums, and 1 / sqrt(variance) of few pixels enlarges that."""
    variables = variables_of(plain, x)
    wanted, got = run(plain, variables, x), run(fused, variables, x)
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(wanted), strict=True):
        assert np.abs(b).max() > 0, path
        np.testing.assert_allclose(a, b, atol=tolerance * float(jnp.abs(b).max()), err_msg=f"{path}: {ADVICE}")


@pytest.mark.parametrize(("kind", "drop_path"), [("vit", 0.0), ("vit", 0.4), ("mixer", 0.4)])
def test_fused_blocks_of_transformers_are_the_plain_ones(kind, drop_path):
    options = dict(drop_path=drop_path, train=True, dtype=jnp.float32)
    options |= dict(heads=2, mlp=24) if kind == "vit" else dict(dropout=0.0)
    plain, fused = getattr(models, kind).Block, getattr(models, kind).FusedBlock
    assert_same(plain(**options), fused(**options), draw(9, 6, 5, 16))


class Bottlenecks(nn.Module):
    block: Any
    options: dict

    @nn.compact
    def __call__(self, x):
        conv, norm = partial(resnet._conv, bias=False, dtype=jnp.float32), batch_norm(True, jnp.float32)
        make = partial(self.block, channels=4, conv=conv, norm=norm, zero_init=False, train=True, **self.options)
        x = make(stride=1, name="one")(x)
        x = make(stride=2, name="two")(x)
        return finish(x) if isinstance(x, Tail) else x


@pytest.mark.parametrize("options", [{}, dict(groups=2, inner=8, mean_shortcut=True)], ids=["plain", "grouped"])
def test_fused_bottlenecks_are_the_plain_ones(options):
    assert_same(
        Bottlenecks(resnet.Bottleneck, options),
        Bottlenecks(resnet.FusedBottleneck, options),
        draw(9, 8, 6, 6, 8),
    )


class Normalised(nn.Module):
    """A convolution and its BatchNorm, by one of the functions for both."""

    function: Any
    stride: int = 1

    @nn.compact
    def __call__(self, x):
        return self.function(x, Conv(8, 1, self.stride, name="conv"), BatchNorm(True, name="norm"))


def written_out(x, conv, norm):
    return norm(conv(x))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_folded_normalisation_is_the_one_written_out(stride):
    x = draw(9, 8, 6, 6, 4)
    assert_same(Normalised(written_out, stride), Normalised(folded_conv_norm, stride), x)
    # which of them runs is one line: in training a convolution that widens twice is folded
    folded, chosen, plain = (jaxpr(Normalised(f, stride), x) for f in (folded_conv_norm, conv_norm, written_out))
    assert folded == chosen != plain
    assert jaxpr(Normalised(conv_norm), draw(9, 8, 6, 6, 5)) == jaxpr(Normalised(written_out), draw(9, 8, 6, 6, 5))


def jaxpr(module, x):
    text = str(jax.make_jaxpr(lambda x: module.init_with_output(jax.random.key(0), x))(x))
    return re.sub(r"0x[0-9a-f]+", "", text)


def test_a_pooled_normalisation_is_the_one_written_out():
    class Pooled(nn.Module):
        function: Any

        @nn.compact
        def __call__(self, x):
            return self.function(x, BatchNorm(True, name="norm"), partial(max_pool, kernel=3, stride=2, padding=1))

    assert_same(Pooled(lambda x, norm, pool: pool(norm(x))), Pooled(norm_pool), draw(9, 4, 7, 7, 5))


def classes_that_run(name, options, size, train):
    """Those of jaxvision.models whose `__call__` runs when the network is applied; traced, not computed."""
    model = getattr(models, name)(classes=3, **options)
    image = jnp.zeros((2, size, size, 3))
    variables = jax.eval_shape(lambda k: model.init(k, image, train=False), jax.random.key(0))
    seen = set()

    def note(call, args, kwargs, context):
        if context.method_name == "__call__":
            seen.add(type(context.module))
        return call(*args, **kwargs)

    def apply(variables):
        rngs = {"dropout": jax.random.key(0)}
        return model.apply(variables, image, train=train, rngs=rngs, mutable=["batch_stats"])

    with nn.intercept_methods(note):
        jax.eval_shape(apply, variables)
    return {c for c in seen if c.__module__.startswith("jaxvision.models.")}


RESNET, VIT, MIXER = dict(depths=(1,), width=64), dict(width=16, depth=1, heads=2, patch=8), dict(width=16, depth=1)


@pytest.mark.parametrize(
    ("name", "options", "training", "evaluating"),
    [
        ("resnet18", RESNET, resnet.BasicBlock, resnet.BasicBlock),
        ("resnet50", RESNET, resnet.FusedBottleneck, resnet.Bottleneck),
        ("resnext50_32x4d", RESNET, resnet.FusedBottleneck, resnet.Bottleneck),
        ("resnext101_32x8d", RESNET, resnet.Bottleneck, resnet.Bottleneck),
        ("resnet50", {**RESNET, "drop_path": 0.1}, resnet.Bottleneck, resnet.Bottleneck),
        ("resnet50", {**RESNET, "norm": "none"}, resnet.Bottleneck, resnet.Bottleneck),
        ("vit_tiny_patch16_224", VIT, vit.FusedBlock, vit.FusedBlock),
        ("vit_tiny_patch16_224", {**VIT, "drop_path": 0.1}, vit.FusedBlock, vit.FusedBlock),
        ("vit_tiny_patch16_224", {**VIT, "dropout": 0.1}, vit.Block, vit.FusedBlock),
        ("vit_tiny_patch16_224", {**VIT, "qk_norm": True}, vit.Block, vit.Block),
        ("vit_tiny_patch16_224", {**VIT, "layer_scale": 0.1}, vit.Block, vit.Block),
        ("mixer_s32_224", MIXER, mixer.FusedBlock, mixer.FusedBlock),
        ("mixer_s32_224", {**MIXER, "dropout": 0.1}, mixer.Block, mixer.FusedBlock),
    ],
)
def test_which_form_runs(name, options, training, evaluating):
    forms = {*PLAIN, *PLAIN.values(), resnet.BasicBlock}
    assert classes_that_run(name, options, 32, True) & forms == {training}
    assert classes_that_run(name, options, 32, False) & forms == {evaluating}


def test_every_other_class_of_a_network_runs_as_it_stands():
    """Only the pairs above have a form that another class computes; a new fast form needs its line there."""
    cases = [*SMALL.values(), ("resnet50", RESNET, 32)]
    seen = {c for case in cases for c in classes_that_run(*case, train=True)}
    assert {c for c in seen if "Fused" in c.__name__} == set(PLAIN)
    for family in models.FAMILIES:
        own = {c for c in vars(family).values() if inspect.isclass(c) and c.__module__ == family.__name__}
        missing = {c for c in own if issubclass(c, nn.Module) and "__call__" in vars(c)} - seen
        assert missing <= set(PLAIN.values()), missing
