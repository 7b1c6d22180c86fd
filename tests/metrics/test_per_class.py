import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from jaxvision import metrics
from tests.metrics.test_ranking import batch, measure


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 10**6))
def test_equals_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=(30, 4)).astype(np.float32), rng.integers(0, 3, 30).astype(np.int32)
    names = ("a", "b", "c", "d")
    got = measure(metrics.per_class(classes=4, names=names), ({"logits": logits}, batch(labels)))
    found = logits.argmax(-1)
    there = np.unique(labels)
    assert got["balanced_accuracy"] == pytest.approx(
        sk.recall_score(labels, found, labels=there, average="macro"), abs=1e-6
    )
    assert got["top1"] == pytest.approx(sk.accuracy_score(labels, found), abs=1e-6)
    assert got["absent_classes"] == 4 - len(there)
    assert got["loss"] == pytest.approx(
        sk.log_loss(labels, scipy.special.softmax(logits, -1), labels=range(4)), rel=1e-5
    )
    want = {f"accuracy/{names[k]}": np.mean(found[labels == k] == k) for k in there}
    assert {k: v for k, v in got.items() if "/" in k} == pytest.approx(want, abs=1e-6)


def test_ties_count_against_the_network():
    got = measure(metrics.per_class(classes=2), ({"logits": np.zeros((2, 2), np.float32)}, batch(np.array([0, 1]))))
    assert got["balanced_accuracy"] == 0
