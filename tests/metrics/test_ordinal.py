import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from jaxvision import metrics
from tests.metrics.test_ranking import batch, measure


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 10**6), st.sampled_from([3, 6]))
def test_equals_scikit_learn(seed, classes):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (40, classes)).astype(np.float32)
    labels = rng.integers(0, classes, 40).astype(np.int32)
    got = measure(metrics.ordinal(classes=classes), ({"logits": logits}, batch(labels)))
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(-1, keepdims=True)
    above = p[:, ::-1].cumsum(-1)[:, ::-1][:, 1:]  # P(label > k)
    rank = (above > 0.5).sum(-1)
    assert got["kappa"] == pytest.approx(sk.cohen_kappa_score(labels, rank, weights="quadratic"), abs=1e-6)
    assert got["mae"] == pytest.approx(np.abs(rank - labels).mean(), abs=1e-6)
    assert got["top1"] == pytest.approx((logits.argmax(-1) == labels).mean(), abs=1e-6)
    assert got["loss"] == pytest.approx(sk.log_loss(labels, p, labels=np.arange(classes)), abs=1e-5)


def test_the_median_is_judged_not_the_largest():
    """Class 0 is the likeliest, yet the label is above it with a probability of 0.6."""
    logits = np.log(np.array([[0.4, 0.25, 0.35]], np.float32))
    got = measure(metrics.ordinal(classes=3), ({"logits": logits}, batch(np.array([1], np.int32))))
    assert (got["mae"], got["top1"]) == (0, 0)


def test_nan_is_as_far_off_as_can_be_and_one_class_has_no_kappa():
    logits = np.full((2, 5), np.nan, np.float32)
    got = measure(metrics.ordinal(classes=5), ({"logits": logits}, batch(np.array([1, 4], np.int32))))
    assert (got["mae"], got["top1"]) == (3.5, 0)
    certain = np.array([[9.0, 0.0, 0.0]] * 3, np.float32)
    got = measure(metrics.ordinal(classes=3), ({"logits": certain}, batch(np.zeros(3, np.int32))))
    assert got["mae"] == 0
    assert np.isnan(got["kappa"])
