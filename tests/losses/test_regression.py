import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvision.losses import absolute_error, huber, squared_error


def test_known_values():
    x, t = jnp.array([0.0, 1.0, -4.0]), jnp.array([0.5, 1.0, 0.0])
    np.testing.assert_allclose(squared_error(x, t), [0.25, 0, 16])
    np.testing.assert_allclose(absolute_error(x, t), [0.5, 0, 4])
    np.testing.assert_allclose(huber(x, t), [0.125, 0, 3.5])
    np.testing.assert_allclose(huber(x, t, delta=2.0), [0.125, 0, 6])


@pytest.mark.parametrize("delta", [0.5, 3.0])
def test_huber_pulls_with_at_most_delta(delta):
    errors = jnp.linspace(-10, 10, 41)
    slopes = jax.vmap(jax.grad(lambda e: huber(e, jnp.zeros(()), delta=delta)))(errors)
    np.testing.assert_allclose(slopes, np.clip(errors, -delta, delta), atol=1e-6)


@pytest.mark.parametrize("loss", [squared_error, absolute_error, huber])
def test_bfloat16_values_are_computed_in_float32(loss):
    assert loss(jnp.ones(2, jnp.bfloat16), jnp.zeros(2)).dtype == jnp.float32
