"""Soft targets against the formula and its known properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxvision.losses import soft_target_divergence, softmax_cross_entropy


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from([0.5, 1.0, 4.0]))
def test_equals_the_formula(seed, temperature):
    rng = np.random.default_rng(seed)
    logits, teacher = rng.normal(0, 4, (2, 5, 7))
    p, q = softmax(teacher / temperature), softmax(logits / temperature)
    want = temperature**2 * (p * (np.log(p) - np.log(q))).sum(-1)
    got = soft_target_divergence(jnp.float32(logits), jnp.float32(teacher), temperature=temperature)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_known_values():
    # p = (1/2, 1/2), q = (3/4, 1/4): KL = 1/2 log(2/3) + 1/2 log 2 = 1/2 log(4/3)
    logits, teacher = jnp.log(jnp.array([[3.0, 1.0]])), jnp.zeros((1, 2))
    assert soft_target_divergence(logits, teacher)[0] == pytest.approx(0.5 * np.log(4 / 3), rel=1e-5)
    assert soft_target_divergence(logits, logits + 3, temperature=2.0)[0] == pytest.approx(0, abs=1e-6)


def test_a_sure_teacher_is_cross_entropy():
    logits, label = jnp.array([[1.0, -2.0, 0.5]]), jnp.array([2])
    sure = 1e4 * jax.nn.one_hot(label, 3)
    assert soft_target_divergence(logits, sure)[0] == pytest.approx(float(softmax_cross_entropy(logits, label)[0]))


def test_at_high_temperature_it_matches_logits():
    """Section 2.1 of the paper: for zero-mean logits, T^2 * KL goes to |v - z|^2 / (2 N)."""
    rng = np.random.default_rng(0)
    z, v = rng.normal(size=(2, 1, 6))
    z, v = z - z.mean(), v - v.mean()
    with jax.enable_x64(True):
        got = soft_target_divergence(jnp.float64(z), jnp.float64(v), temperature=1e4)
    np.testing.assert_allclose(got, ((v - z) ** 2).sum(-1) / 12, rtol=1e-3)


def test_bfloat16_is_computed_in_float32():
    got = soft_target_divergence(jnp.zeros((2, 5), jnp.bfloat16), jnp.ones((2, 5), jnp.bfloat16))
    assert got.dtype == jnp.float32
