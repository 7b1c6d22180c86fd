"""Every loss of losses.__all__ beside float64 numpy, where numbers are extreme: a new one adds a line to CASES.

Extreme but legal: logits of 1e4, temperatures of 0.001, zero vectors, constant rows, one class, unknown labels,
bfloat16.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from jaxvision import losses

KINDS = ("plain", "huge", "constant", "alike", "offset", "zero")


def log_sigmoid(x):
    return -np.logaddexp(0.0, -x)


def unit(x):
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-6)


def one_hot(labels, classes):
    return np.eye(classes)[labels]


def sigmoid_focal(x, t, *, gamma=0.0, pos_weight=1.0):
    with np.errstate(invalid="ignore"):
        value = -pos_weight * t * np.exp(gamma * log_sigmoid(-x)) * log_sigmoid(x)
        value -= (1 - t) * np.exp(gamma * log_sigmoid(x)) * log_sigmoid(-x)
    return np.where(np.isnan(t), 0, value)


def softmax_focal(x, labels, *, gamma):
    log_p = log_softmax(x, -1)
    return -np.sum(one_hot(labels, x.shape[1]) * (-np.expm1(log_p)) ** gamma * log_p, -1)


def ordinal_cross_entropy(x, labels):
    return sigmoid_focal(x, (labels[:, None] > np.arange(x.shape[1])).astype(float)).sum(-1)


def ordinal_log_probabilities(x):
    between = log_sigmoid(x[:, :-1]) + log_sigmoid(-x[:, 1:])
    between += np.log(-np.expm1(-np.maximum(x[:, :-1] - x[:, 1:], 1e-6)))
    return np.concatenate([log_sigmoid(-x[:, :1]), between, log_sigmoid(x[:, -1:])], -1)


def divergence(x, teacher, *, temperature):
    log_p, log_q = log_softmax(teacher / temperature, -1), log_softmax(x / temperature, -1)
    return temperature**2 * np.sum(np.exp(log_p) * (log_p - log_q), -1)


def nt_xent(a, b, mask, *, temperature):
    z, count = np.concatenate([unit(a), unit(b)]), len(a)
    logits = z @ z.T / temperature
    own = np.eye(2 * count, dtype=bool)
    pair = np.roll(own, count, axis=0)
    logits = np.where((np.tile(mask, 2) & ~own) | pair, logits, -np.inf)
    each = -log_softmax(logits, -1)[pair]
    return (each[:count] + each[count:]) / 2


def info_nce(query, keys, mask, *, temperature):
    logits = np.where(mask | np.eye(len(query), dtype=bool), unit(query) @ unit(keys).T / temperature, -np.inf)
    return -2 * temperature * np.diag(log_softmax(logits, -1))


def dino(student, teacher, centre, *, student_temperature, teacher_temperature):
    target = softmax((teacher - centre) / teacher_temperature, -1)
    return -np.sum(target * log_softmax(student / student_temperature, -1), -1)


def patch_error(prediction, patches, hidden, *, normalise):
    if normalise:
        patches = patches - patches.mean(-1, keepdims=True)
        patches = patches / np.sqrt(patches.var(-1, ddof=1, keepdims=True) + 1e-6)
    error = ((prediction - patches) ** 2).mean(-1)
    return (error * hidden).sum(-1) / np.maximum(hidden.sum(-1), 1)


class Draw:
    """Arrays of one kind of extremes; float32 values that the dtype holds, so that numpy sees the same numbers."""

    def __init__(self, seed, kind, dtype, temperature, classes):
        self.rng, self.kind, self.dtype = np.random.default_rng(seed), kind, dtype
        self.temperature, self.classes = temperature, classes

    def rows(self, *shape, largest=1e4, **_):
        x = self.rng.normal(size=shape)
        if self.kind == "huge":
            x = np.clip(x, -1, 1) * largest
        elif self.kind == "constant":
            x = np.broadcast_to(min(largest, 10.0) * x[..., :1], shape)
        elif self.kind == "alike":
            x = np.broadcast_to(x[:1], shape) + 1e-4 * x
        elif self.kind == "offset":
            x = largest + 0.01 * x
        elif self.kind == "zero":
            x = x * (self.rng.random((*shape[:-1], 1)) < 0.5)
        return np.asarray(jnp.asarray(x, self.dtype).astype(jnp.float32))

    def labels(self, count=5):
        return self.rng.integers(0, self.classes, count)

    def tags(self, *shape):
        return self.rng.choice([0.0, 1.0, 0.25, np.nan], shape).astype(np.float32)


# name -> (draw) -> (arguments, those that are computed on in `dtype`, keywords, the reference)
CASES = {
    "absolute_error": lambda d: ([d.rows(5, 3), d.rows(5, 3)], 1, {}, lambda x, t: abs(x - t)),
    "squared_error": lambda d: ([d.rows(5, 3), d.rows(5, 3)], 1, {}, lambda x, t: (x - t) ** 2),
    "huber": lambda d: (
        [d.rows(5, 3), d.rows(5, 3)], 1, dict(delta=0.5),
        lambda x, t, delta: np.where(abs(x - t) <= delta, (x - t) ** 2 / 2, delta * (abs(x - t) - delta / 2)),
    ),
    "softmax_cross_entropy": lambda d: (
        [d.rows(5, d.classes), d.labels()], 1, {},
        lambda x, y: -np.sum(one_hot(y, x.shape[1]) * log_softmax(x, -1), -1),
    ),
    "softmax_focal": lambda d: ([d.rows(5, d.classes), d.labels()], 1, dict(gamma=2.0), softmax_focal),
    "sigmoid_cross_entropy": lambda d: (
        [d.rows(5, d.classes), d.tags(5, d.classes)], 1, dict(pos_weight=3.0), sigmoid_focal,
    ),
    "sigmoid_focal": lambda d: (
        [d.rows(5, d.classes), d.tags(5, d.classes)], 1, dict(gamma=2.0, pos_weight=3.0), sigmoid_focal,
    ),
    "ordinal_cross_entropy": lambda d: (
        [-np.sort(-d.rows(5, max(d.classes - 1, 1))), np.minimum(d.labels(), d.classes - 1)], 1, {},
        ordinal_cross_entropy,
    ),
    "ordinal_log_probabilities": lambda d: (
        [-np.sort(-d.rows(5, max(d.classes - 1, 1)))], 1, {}, ordinal_log_probabilities,
    ),
    "soft_target_divergence": lambda d: (
        [d.rows(5, d.classes), d.rows(5, d.classes)], 2, dict(temperature=d.temperature), divergence,
    ),
    "normalised": lambda d: ([d.rows(5, 4)], 1, {}, unit),
    "negative_cosine": lambda d: ([d.rows(5, 4), d.rows(5, 4)], 2, {}, lambda p, z: -np.sum(unit(p) * unit(z), -1)),
    "nt_xent": lambda d: (
        [d.rows(5, 4), d.rows(5, 4), np.arange(5) < 4], 2, dict(temperature=d.temperature), nt_xent,
    ),
    "info_nce": lambda d: (
        [d.rows(5, 4), d.rows(5, 4), np.arange(5) < 4], 2, dict(temperature=d.temperature), info_nce,
    ),
    "dino_cross_entropy": lambda d: (
        [d.rows(5, d.classes), d.rows(5, d.classes), d.rows(d.classes)], 2,
        dict(student_temperature=d.temperature, teacher_temperature=d.temperature / 2), dino,
    ),
    "masked_patch_error": lambda d: (
        [d.rows(3, 4, 12, largest=100.0), d.rows(3, 4, 12, largest=100.0), d.rng.random((3, 4)) < [[0], [0.5], [1]]], 2,
        dict(normalise=bool(d.rng.random() < 0.7)), patch_error,
    ),
}  # fmt: skip


def test_every_loss_is_here():
    assert set(CASES) == set(losses.__all__)


def each_kind(test):
    """Each of KINDS at least once, where a low temperature magnifies what rounding does."""
    for kind in KINDS:
        test = example(seed=0, kind=kind, dtype=jnp.float32, temperature=0.001, classes=7)(test)
    return test


@pytest.mark.parametrize("name", sorted(CASES))
@settings(deadline=None, max_examples=3)
@each_kind
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16]),
    temperature=st.sampled_from([0.001, 0.1, 4.0]),
    classes=st.sampled_from([1, 2, 7]),
)
def test_is_float64s_answer_at_extremes(name, seed, kind, dtype, temperature, classes):
    arguments, in_dtype, options, reference = CASES[name](Draw(seed, kind, dtype, temperature, classes))
    loss = getattr(losses, name)
    given_ = [jnp.asarray(a, dtype) if k < in_dtype else jnp.asarray(a) for k, a in enumerate(arguments)]
    got = loss(*given_, **options)
    assert got.dtype == jnp.float32
    want = reference(*(a.astype(np.float64) if a.dtype.kind == "f" else a for a in arguments), **options)
    atol = 2e-6
    if name in ("nt_xent", "info_nce"):  # cosines are right to 3e-7, and a temperature divides that
        atol += 1e-6 / temperature
    elif name == "soft_target_divergence":  # a difference of logarithms, times T^2
        atol = 1e-6 * temperature * max(temperature, 1)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=atol)
    slopes = jax.grad(lambda x: jnp.sum(loss(x, *given_[1:], **options)))(given_[0])
    assert np.isfinite(np.asarray(slopes, np.float32)).all()


def test_no_temperature_makes_a_contrast_negative():
    """Twice the same view, far from all others: 0, and not what two ways to round one product differ by."""
    z = np.random.default_rng(0).normal(size=(64, 200)).astype(np.float32)
    for loss in (losses.nt_xent, losses.info_nce):
        assert (np.asarray(loss(z, z, np.ones(64, bool), temperature=0.001)) >= 0).all()
