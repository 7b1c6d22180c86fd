import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxvision.losses import softmax_cross_entropy


def reference(logits, targets):
    logits = logits.astype(np.float64)
    log_p = logits - logits.max(-1, keepdims=True)
    log_p = log_p - np.log(np.exp(log_p).sum(-1, keepdims=True))
    return -(targets * log_p).sum(-1)


def test_known_values():
    assert softmax_cross_entropy(jnp.zeros((1, 4)), jnp.array([2]))[0] == pytest.approx(np.log(4))
    # torch.nn.functional.cross_entropy([[2., 0., -1.]], [0], label_smoothing=0.1)
    logits = jnp.array([[2.0, 0.0, -1.0]])
    assert softmax_cross_entropy(logits, jnp.array([0]), smoothing=0.1)[0] == pytest.approx(0.336513, abs=1e-5)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.1, 0.5]))
def test_equals_the_formula(seed, smoothing):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 5, (4, 7)).astype(np.float32)
    labels = rng.integers(0, 7, 4)
    targets = np.eye(7)[labels] * (1 - smoothing) + smoothing / 7
    got = softmax_cross_entropy(jnp.asarray(logits), jnp.asarray(labels), smoothing=smoothing)
    np.testing.assert_allclose(got, reference(logits, targets), rtol=1e-5, atol=1e-5)
    soft = softmax_cross_entropy(
        jnp.asarray(logits), jnp.asarray(np.eye(7, dtype=np.float32)[labels]), smoothing=smoothing
    )
    np.testing.assert_allclose(got, soft, rtol=1e-6)


def test_bfloat16_logits_are_computed_in_float32():
    loss = softmax_cross_entropy(jnp.zeros((2, 1000), jnp.bfloat16), jnp.array([1, 2]))
    assert loss.dtype == jnp.float32
    assert loss[0] == pytest.approx(np.log(1000), rel=1e-6)


def test_huge_logits_stay_finite():
    loss = softmax_cross_entropy(jnp.array([[1e30, -1e30]]), jnp.array([0]))
    assert loss[0] == 0
    assert jnp.all(
        jnp.isfinite(jax.grad(lambda x: softmax_cross_entropy(x, jnp.array([0])).sum())(jnp.array([[1e4, -1e4]])))
    )
