import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from jaxvision import metrics
from tests.metrics.test_ranking import batch, measure


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 1e4]))
def test_equals_scikit_learn(seed, offset):
    rng = np.random.default_rng(seed)
    labels = (offset + rng.normal(0, [1, 50], (40, 2))).astype(np.float32)
    values = (labels + rng.normal(0, 1, (40, 2))).astype(np.float32)
    got = measure(metrics.regression(classes=2, names=("a", "b")), ({"values": values}, batch(labels)))
    exact = values.astype(np.float64), labels.astype(np.float64)
    assert got["mse"] == pytest.approx(sk.mean_squared_error(*exact), rel=1e-6)
    assert got["mae"] == pytest.approx(sk.mean_absolute_error(*exact), rel=1e-6)
    assert got["r2"] == pytest.approx(sk.r2_score(exact[1], exact[0]), abs=1e-6)
    assert got["mae/b"] == pytest.approx(sk.mean_absolute_error(exact[0][:, 1], exact[1][:, 1]), rel=1e-6)


@pytest.mark.parametrize("error", [0.0, 0.5])
def test_r2_of_a_constant(error):
    labels = np.full((3, 1), 2.0, np.float32)
    values = labels + np.float32(error)
    got = measure(metrics.regression(classes=1), ({"values": values}, batch(labels)))
    assert got["r2"] == sk.r2_score(labels, values) == float(not error)
    assert set(got) == {"mse", "mae", "r2"}
    one = measure(metrics.regression(classes=1), ({"values": values[:1]}, batch(labels[:1])))
    assert np.isnan(one["r2"])
