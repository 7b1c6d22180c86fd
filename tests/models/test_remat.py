"""Names of what the backward pass computes again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvision import models

NETWORKS = {
    "resnet18": dict(depths=(1, 1), width=8, stem="small"),
    "vit_tiny_patch16_224": dict(patch=8, depth=2, width=32, heads=2),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_each_policy_gives_the_same_gradients_and_keeps_less(name):
    image = jax.random.normal(jax.random.key(0), (4, 32, 32, 3))
    kept, gradients = {}, {}
    for policy in ("", "products", "full"):
        model = getattr(models, name)(classes=5, remat=policy, **NETWORKS[name])
        variables = jax.jit(lambda k, model=model: model.init(k, image, train=False))(jax.random.key(1))

        def loss(params, model=model, variables=variables):
            out, _ = model.apply({**variables, "params": params}, image, train=True, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(out["logits"]))

        residuals = jax.eval_shape(lambda params, loss=loss: jax.vjp(loss, params)[1], variables["params"])
        kept[policy] = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(residuals))
        gradients[policy] = jax.jit(jax.grad(loss))(variables["params"])
    assert kept["full"] < 0.9 * kept["products"] < 0.8 * kept[""]
    for policy in ("products", "full"):
        for a, b in zip(jax.tree.leaves(gradients[""]), jax.tree.leaves(gradients[policy]), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-3 * float(jnp.abs(a).max()) + 1e-6)


def test_a_name_that_is_none():
    model = models.resnet18(classes=5, remat="ful")
    with pytest.raises(ValueError, match="unknown remat: did you mean 'full'"):
        jax.eval_shape(lambda k: model.init(k, jnp.zeros((1, 32, 32, 3)), train=False), jax.random.key(0))
