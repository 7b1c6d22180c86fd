"""Each loss beside a plain reading of its paper's formula: loops over samples, float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxvision.losses import dino_cross_entropy, info_nce, masked_patch_error, negative_cosine, nt_xent

SEEDS = st.integers(0, 10**6)


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def cosine(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@settings(deadline=None, max_examples=15)
@given(SEEDS, st.sampled_from([0.1, 0.5, 1.0]), st.sampled_from([2, 5]))
def test_nt_xent_is_equation_1_of_simclr(seed, temperature, count):
    a, b = draw(seed, count, 6), draw(seed + 1, count, 6)
    z = np.concatenate([a, b])

    def one(i, j):
        against = [np.exp(cosine(z[i], z[k]) / temperature) for k in range(2 * count) if k != i]
        return -np.log(np.exp(cosine(z[i], z[j]) / temperature) / sum(against))

    want = [(one(k, k + count) + one(k + count, k)) / 2 for k in range(count)]
    got = nt_xent(a, b, jnp.ones(count, bool), temperature=temperature)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-5)


@settings(deadline=None, max_examples=15)
@given(SEEDS, st.sampled_from([0.2, 1.0]))
def test_info_nce_is_algorithm_1_of_moco_v3(seed, temperature):
    q, k = draw(seed, 5, 6), draw(seed + 1, 5, 6)
    want = []
    for i in range(5):
        logits = np.array([cosine(q[i], k[j]) / temperature for j in range(5)])
        want.append(2 * temperature * -np.log(np.exp(logits[i]) / np.exp(logits).sum()))
    np.testing.assert_allclose(info_nce(q, k, jnp.ones(5, bool), temperature=temperature), want, rtol=2e-5, atol=1e-5)


@settings(deadline=None, max_examples=15)
@given(SEEDS)
def test_negative_cosine_is_equation_1_of_simsiam(seed):
    p, z = draw(seed, 4, 6), draw(seed + 1, 4, 6)
    np.testing.assert_allclose(negative_cosine(p, z), [-cosine(p[i], z[i]) for i in range(4)], atol=1e-6)


@settings(deadline=None, max_examples=15)
@given(SEEDS, st.sampled_from([0.04, 0.07]))
def test_dino_is_equations_1_to_4(seed, warmth):
    student, teacher, centre = draw(seed, 4, 8), draw(seed + 1, 4, 8), draw(seed + 2, 8)

    def softmax(x):
        e = np.exp(x - x.max())
        return e / e.sum()

    want = [
        -sum(
            softmax((teacher[i].astype(np.float64) - centre) / warmth)
            * np.log(softmax(student[i].astype(np.float64) / 0.1))
        )
        for i in range(4)
    ]
    got = dino_cross_entropy(student, teacher, centre, student_temperature=0.1, teacher_temperature=jnp.float32(warmth))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=15)
@given(SEEDS, st.booleans())
def test_masked_patch_error_is_that_of_mae(seed, normalise):
    prediction, patches = draw(seed, 3, 6, 12), draw(seed + 1, 3, 6, 12)
    hidden = np.random.default_rng(seed).random((3, 6)) < 0.5
    hidden[:, 0] = True
    want = []
    for i in range(3):
        errors = []
        for n in np.flatnonzero(hidden[i]):
            target = patches[i, n].astype(np.float64)
            if normalise:
                target = (target - target.mean()) / np.sqrt(target.var(ddof=1) + 1e-6)
            errors.append(np.mean((prediction[i, n] - target) ** 2))
        want.append(np.mean(errors))
    got = masked_patch_error(prediction, patches, hidden, normalise=normalise)
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("loss", [nt_xent, info_nce])
def test_padding_is_nobodys_negative(loss):
    a, b = draw(0, 6, 4), draw(1, 6, 4)
    mask = np.arange(6) < 4
    padded = loss(a, b, mask, temperature=0.2)
    assert np.isfinite(padded).all()
    np.testing.assert_allclose(padded[:4], loss(a[:4], b[:4], np.ones(4, bool), temperature=0.2), rtol=1e-6)


def test_known_values():
    """All alike: every one of the 2 B - 1 others is as near. All apart: only the own view counts."""
    same = jnp.ones((4, 3))
    np.testing.assert_allclose(nt_xent(same, same, jnp.ones(4, bool), temperature=0.5), np.log(7), rtol=1e-6)
    apart = jnp.eye(4)
    want = np.log(np.exp(10.0) + 6) - 10.0
    np.testing.assert_allclose(nt_xent(apart, 5 * apart, jnp.ones(4, bool), temperature=0.1), want, atol=1e-6)
    np.testing.assert_allclose(negative_cosine(same, -2 * same), 1.0, rtol=1e-6)


def test_a_zero_row_has_a_finite_gradient():
    zero = jnp.zeros((2, 3))
    gradient = jax.grad(lambda x: jnp.sum(negative_cosine(x, jnp.ones((2, 3)))))(zero)
    assert np.isfinite(gradient).all()
