"""Against scikit-learn, ties included."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from jaxvision import metrics
from jaxvision.metrics import ranking
from tests.metrics.test_contract import measure


def batch(label):
    return {"label": np.asarray(label), "mask": np.ones(len(label), bool), "index": np.arange(len(label))}


def some(seed, rows, classes, ties):
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 2, (rows, classes)).astype(np.float32)
    if ties:
        scores = scores.round()
    labels = (rng.uniform(size=(rows, classes)) < rng.uniform(0.1, 0.9)).astype(np.float32)
    labels[0] = 1  # so that each class has a positive and
    labels[1] = 0  # a negative
    return scores, labels


def best_f1(labels, scores):
    precision, recall, thresholds = sk.precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    return f1.max(), {t for t, f in zip(thresholds, f1) if f > f1.max() - 1e-12}


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from([3, 20, 90]), st.booleans())
def test_multilabel_equals_scikit_learn(seed, rows, ties):
    scores, labels = some(seed, rows, 4, ties)
    got = measure(metrics.multilabel(classes=4, names=tuple("abcd")), ({"logits": scores}, batch(labels)))
    assert got["map"] == pytest.approx(sk.average_precision_score(labels, scores, average="macro"), abs=1e-6)
    assert got["map_micro"] == pytest.approx(sk.average_precision_score(labels, scores, average="micro"), abs=1e-6)
    p = 1 / (1 + np.exp(-scores.astype(np.float64)))
    assert got["loss"] == pytest.approx(sk.log_loss(labels.ravel(), p.ravel()), abs=1e-6)
    assert got["absent_classes"] == 0
    for k, name in enumerate("abcd"):
        f1, thresholds = best_f1(labels[:, k], p[:, k])
        assert got[f"f1/{name}"] == pytest.approx(f1, abs=1e-6)
        assert any(got[f"threshold/{name}"] == pytest.approx(t, abs=1e-6) for t in thresholds)
        assert got[f"ap/{name}"] == pytest.approx(sk.average_precision_score(labels[:, k], scores[:, k]), abs=1e-6)
        # the threshold is what gives the F1, where scores at or above it count
        there = p[:, k] >= got[f"threshold/{name}"] - 1e-12
        assert sk.f1_score(labels[:, k], there) == pytest.approx(f1, abs=1e-6)
    assert got["f1"] == pytest.approx(np.mean([got[f"f1/{name}"] for name in "abcd"]))


def test_classes_without_a_positive_are_left_out():
    scores, labels = some(0, 30, 3, False)
    labels[:, 1] = 0
    got = measure(metrics.multilabel(classes=3), ({"logits": scores}, batch(labels)))
    want = [sk.average_precision_score(labels[:, k], scores[:, k]) for k in (0, 2)]
    assert got["map"] == pytest.approx(np.mean(want))
    assert got["absent_classes"] == 1
    assert not [k for k in got if k.endswith("/1")]
    nothing = measure(metrics.multilabel(classes=3), ({"logits": scores}, batch(0 * labels)))
    assert np.isnan([nothing["map"], nothing["map_micro"], nothing["f1"]]).all()
    assert nothing["absent_classes"] == 3


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from([2, 20, 90]), st.booleans())
def test_binary_equals_scikit_learn(seed, rows, ties):
    scores, labels = some(seed, rows, 1, ties)
    scores, labels = scores[:, 0], labels[:, 0].astype(np.int32)
    other = np.random.default_rng(seed).integers(-3, 3, rows).astype(np.float32)  # only the difference counts
    logits = np.stack([other, other + scores], -1)
    scores = logits[:, 1] - logits[:, 0]
    got = measure(metrics.binary(classes=2), ({"logits": logits}, batch(labels)))
    assert got["auroc"] == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-6)
    assert got["ap"] == pytest.approx(sk.average_precision_score(labels, scores), abs=1e-6)
    p = 1 / (1 + np.exp(-scores.astype(np.float64)))
    f1, thresholds = best_f1(labels, p)
    assert got["f1"] == pytest.approx(f1, abs=1e-6)
    assert any(got["threshold"] == pytest.approx(t, abs=1e-6) for t in thresholds)
    assert got["loss"] == pytest.approx(sk.log_loss(labels, p), abs=1e-6)
    assert got["top1"] == pytest.approx(np.mean(((scores > 0) == labels) & (scores != 0)))


def test_one_class_only():
    """As scikit-learn, which warns: no AUROC without both, no average precision without a positive."""
    logits = np.array([[0.0, 1.0], [0.0, -1.0]], np.float32)
    for label, auroc, ap in ((1, True, False), (0, True, True)):
        got = measure(metrics.binary(classes=2), ({"logits": logits}, batch(np.full(2, label, np.int32))))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert np.isnan(sk.roc_auc_score([label] * 2, logits[:, 1])) == auroc
        assert (np.isnan(got["auroc"]), np.isnan(got["ap"]), np.isnan(got["f1"])) == (auroc, ap, ap)


def test_constant_scores_are_no_better_than_chance_and_nan_is_the_worst():
    labels = np.array([1, 0, 0, 1, 0], bool)
    assert ranking.roc_area(np.zeros(5), labels) == 0.5
    assert ranking.average_precision(np.zeros(5), labels) == pytest.approx(0.4)
    worst = ranking.worst_for_nan(np.full(5, np.nan), labels)
    assert ranking.roc_area(worst, labels) == 0
    one = ranking.worst_for_nan(np.array([np.nan, 0, 0, 1, 0]), labels)
    assert ranking.roc_area(one, labels) == 0.5


def test_binary_refuses_other_numbers_of_classes():
    with pytest.raises(ValueError, match="there are 3: take topk"):
        metrics.binary(classes=3)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10**6), st.sampled_from([3, 6]))
def test_auroc_of_classes_equals_scikit_learn(seed, classes):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (60, classes)).astype(np.float32)
    labels = np.append(rng.integers(0, classes, 60 - classes), range(classes)).astype(np.int32)
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(-1, keepdims=True)
    got = measure(metrics.auroc(classes=classes), ({"logits": logits}, batch(labels)))
    assert got["auroc"] == pytest.approx(sk.roc_auc_score(labels, p, multi_class="ovr", average="macro"), abs=1e-9)
    assert got["auroc/1"] == pytest.approx(sk.roc_auc_score(labels == 1, p[:, 1]), abs=1e-9)
    # of a task whose classes each have a probability of their own, that one orders the samples
    alone = {"logits": logits, "probabilities": 1 / (1 + np.exp(-logits))}
    got = measure(metrics.auroc(classes=classes), (alone, batch(labels)))
    assert got["auroc/1"] == pytest.approx(sk.roc_auc_score(labels == 1, logits[:, 1]), abs=1e-9)


def test_a_class_without_samples_is_in_no_mean_of_auroc():
    logits = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    got = measure(metrics.auroc(classes=3, names=tuple("abc")), ({"logits": logits}, batch(np.arange(20) % 2)))
    assert got["auroc"] == pytest.approx((got["auroc/a"] + got["auroc/b"]) / 2)
    assert "auroc/c" not in got
    assert got["absent_classes"] == 1
    alone = measure(metrics.auroc(classes=3), ({"logits": logits}, batch(np.zeros(20, int))))
    assert np.isnan(alone["auroc"])
    assert measure(metrics.auroc(classes=1), ({"logits": logits[:, :1]}, batch(np.zeros(20, int))))["top1"] == 1


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10**6))
def test_unknown_tags_count_nowhere(seed):
    """Each tag is measured as if the samples that do not know it were not there."""
    scores, labels = some(seed, 40, 4, True)
    unknown = np.random.default_rng(seed + 1).random((40, 4)) < 0.3
    unknown[:2] = False
    labels[2:, 3] = 1
    unknown[1, 3] = True  # so that of d no negative is known
    given_ = {"logits": np.where(unknown, 1e4, scores)}, batch(np.where(unknown, np.nan, labels))
    got = measure(metrics.multilabel(classes=4, names=tuple("abcd")), given_)
    for k, name in enumerate("abc"):
        x, y = scores[~unknown[:, k], k], labels[~unknown[:, k], k]
        assert got[f"ap/{name}"] == pytest.approx(sk.average_precision_score(y, x), abs=1e-6)
        assert got[f"auroc/{name}"] == pytest.approx(sk.roc_auc_score(y, x), abs=1e-6)
        assert got[f"f1/{name}"] == pytest.approx(best_f1(y, x)[0], abs=1e-6)
    for name in ("ap", "auroc", "f1"):
        assert got["map" if name == "ap" else name] == pytest.approx(np.mean([got[f"{name}/{c}"] for c in "abc"]))
    assert got["absent_classes"] == 1
    assert not [k for k in got if k.endswith("/d")]
    p = 1 / (1 + np.exp(-scores[~unknown].astype(np.float64)))
    assert got["loss"] == pytest.approx(sk.log_loss(labels[~unknown], p), abs=1e-6)
    nothing = measure(metrics.multilabel(classes=4), (given_[0], batch(np.full((40, 4), np.nan, np.float32))))
    assert np.isnan([nothing[k] for k in ("map", "map_micro", "auroc", "f1", "loss")]).all()
