import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxvision.losses import sigmoid_cross_entropy, sigmoid_focal, softmax_cross_entropy, softmax_focal


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


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.5, 2.0]), st.sampled_from([0.0, 0.1]))
def test_focal_losses_equal_the_formulas(seed, gamma, smoothing):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (4, 5)).astype(np.float32)
    labels = rng.integers(0, 5, 4)
    t = np.eye(5)[labels] * (1 - smoothing) + smoothing / 5
    p = np.exp(-reference(logits, np.eye(5)[:, None])).T  # p[b, c] = exp(-CE of class c)
    want = -(t * (1 - p) ** gamma * np.log(p)).sum(-1)
    got = softmax_focal(jnp.asarray(logits), jnp.asarray(labels), gamma=gamma, smoothing=smoothing)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)

    tags, weight = rng.uniform(size=(4, 5)).round(), rng.uniform(0.5, 3, 5)
    t, p = tags * (1 - smoothing) + smoothing / 2, sigmoid(logits)
    want = -weight * t * (1 - p) ** gamma * np.log(p) - (1 - t) * p**gamma * np.log(1 - p)
    options = dict(smoothing=smoothing, pos_weight=jnp.asarray(weight, jnp.float32))
    got = sigmoid_focal(jnp.asarray(logits), jnp.asarray(tags), gamma=gamma, **options)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    if not gamma:
        np.testing.assert_allclose(sigmoid_cross_entropy(jnp.asarray(logits), jnp.asarray(tags), **options), got)


def test_focal_known_values():
    """At p_t = 0.9 and gamma = 2 a sample counts 100 times less (Lin et al., section 3.2); alpha is a pos_weight."""
    x = jnp.log(jnp.array([[9.0]]))
    plain, focal = sigmoid_cross_entropy(x, jnp.ones((1, 1))), sigmoid_focal(x, jnp.ones((1, 1)), gamma=2.0)
    assert plain[0, 0] == pytest.approx(-np.log(0.9), rel=1e-5)
    assert plain[0, 0] / focal[0, 0] == pytest.approx(100, rel=1e-4)
    # -0.25 (1 - p)^2 log p for a positive, -0.75 p^2 log(1 - p) for a negative
    both = 0.75 * sigmoid_focal(jnp.concatenate([x, x]), jnp.array([[1.0], [0.0]]), gamma=2.0, pos_weight=1 / 3)
    np.testing.assert_allclose(both[:, 0], [-0.25 * 0.01 * np.log(0.9), -0.75 * 0.81 * np.log(0.1)], rtol=1e-4)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_gradients_are_finite_at_huge_logits(gamma):
    logits = jnp.array([[1e4, -1e4, 0.0], [88.0, 0.0, -88.0]])
    for loss, labels in ((softmax_focal, jnp.array([0, 2])), (sigmoid_focal, jnp.array([[1.0, 0, 1], [0, 0, 1]]))):
        value, slope = jax.value_and_grad(lambda x, f=loss, y=labels: f(x, y, gamma=gamma).sum())(logits)
        assert jnp.isfinite(value)
        assert jnp.all(jnp.isfinite(slope))
    assert sigmoid_focal(logits.astype(jnp.bfloat16), labels, gamma=gamma).dtype == jnp.float32
