import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxvision.losses import ordinal_cross_entropy, ordinal_log_probabilities


def ordered(rng, rows, classes):
    """Logits that fall along the last axis, as CORAL's biases make them."""
    return np.sort(rng.normal(0, 3, (rows, classes - 1)))[:, ::-1].astype(np.float32)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10**6), st.sampled_from([2, 5]))
def test_equals_the_paper(seed, classes):
    rng = np.random.default_rng(seed)
    logits, labels = ordered(rng, 5, classes), rng.integers(0, classes, 5)
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    above = labels[:, None] > np.arange(classes - 1)
    want = -(np.log(p) * above + np.log(1 - p) * ~above).sum(-1)
    hard = ordinal_cross_entropy(jnp.asarray(logits), jnp.asarray(labels))
    np.testing.assert_allclose(hard, want, rtol=1e-5, atol=1e-6)
    soft = ordinal_cross_entropy(jnp.asarray(logits), jnp.asarray(np.eye(classes, dtype=np.float32)[labels]))
    np.testing.assert_allclose(soft, want, rtol=1e-4, atol=1e-5)

    ends = np.concatenate([np.ones((5, 1)), p, np.zeros((5, 1))], -1)
    got = np.exp(ordinal_log_probabilities(jnp.asarray(logits)))
    np.testing.assert_allclose(got, ends[:, :-1] - ends[:, 1:], atol=2e-6)
    np.testing.assert_allclose(got.sum(-1), 1, atol=1e-5)


def test_a_mixture_of_labels_costs_the_mixture_of_the_losses():
    logits = jnp.asarray(ordered(np.random.default_rng(0), 1, 4))
    each = ordinal_cross_entropy(jnp.repeat(logits, 4, 0), jnp.arange(4))
    share = jnp.array([[0.25, 0.0, 0.75, 0.0]])
    np.testing.assert_allclose(ordinal_cross_entropy(logits, share), share @ each, rtol=1e-5)


@pytest.mark.parametrize("logits", [[0.0, 0.0], [1e4, -1e4], [-50.0, -60.0]])
def test_log_probabilities_are_finite(logits):
    def total(x):
        return ordinal_log_probabilities(x).sum()

    value, slope = jax.value_and_grad(total)(jnp.array([logits]))
    assert jnp.isfinite(value)
    assert jnp.all(jnp.isfinite(slope))
