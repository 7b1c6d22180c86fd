"""k-NN and probe on features whose answer is known, and beside scikit-learn."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from jaxvision import metrics
from jaxvision.metrics.representation import few, spread

RNG = np.random.default_rng(0)


def clusters(count, seed, noise=0.1):
    rng = np.random.default_rng(seed)
    label = np.arange(count) % 3
    return {"features": (np.eye(3)[label] + noise * rng.normal(size=(count, 3))).astype(np.float32), "label": label}


def test_knn_finds_clusters_and_is_lost_without():
    assert metrics.knn(classes=3).finish(clusters(30, 1), clusters(60, 2))["knn"] == 1.0
    noise = clusters(3000, 1)
    noise["features"] = RNG.normal(size=(3000, 3)).astype(np.float32)
    assert metrics.knn(classes=3).finish(noise, clusters(60, 2))["knn"] == pytest.approx(1 / 3, abs=0.05)


@pytest.mark.parametrize("k", [1, 5, 20])
def test_knn_is_sklearns_with_the_same_weights(k):
    bank, query = clusters(200, 1, noise=1.0), clusters(1500, 2, noise=1.0)

    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    theirs = KNeighborsClassifier(
        k, weights=lambda d: np.exp((1 - d**2 / 2) / 0.07), metric="euclidean", algorithm="brute"
    ).fit(unit(bank["features"]), bank["label"])
    want = np.mean(theirs.predict(unit(query["features"])) == query["label"])
    assert metrics.knn(classes=3, k=k).finish(query, bank)["knn"] == pytest.approx(want, abs=1e-9)


def test_knn_of_a_bank_smaller_than_k():
    bank = clusters(3, 0, noise=0.0)
    assert metrics.knn(classes=3, k=20).finish(clusters(30, 1), bank)["knn"] == 1.0


def test_probe_reads_a_linear_rule_and_few_labels_are_spread():
    bank, query = clusters(300, 1, noise=0.3), clusters(300, 2, noise=0.3)
    whole = metrics.probe(classes=3).finish(query, bank)
    assert whole["probe"] > 0.9
    few_labels = metrics.probe(classes=3, per_class=2).finish(query, bank)
    assert few_labels["probe"] < whole["probe"]
    assert few_labels["probe_spread"] > 0
    assert metrics.probe(classes=3, per_class=2, seeds=1).finish(query, bank)["probe_spread"] == 0.0


def test_few_takes_so_many_of_each_and_names_a_class_that_has_fewer():
    label = np.array([0] * 5 + [1] * 3)
    chosen = few(label, 3, 0)
    assert np.bincount(label[chosen]).tolist() == [3, 3]
    assert not np.array_equal(chosen, few(label, 3, 1))
    with pytest.raises(ValueError, match="class 1 of the bank has 3 images, per_class is 4"):
        few(label, 4, 0)


def test_spread_knows_collapse_and_full_rank():
    assert spread(np.ones((50, 8)))["feature_std"] == pytest.approx(0, abs=1e-6)
    full = spread(np.random.default_rng(0).normal(size=(20000, 8)))
    assert full["feature_std"] == pytest.approx(1, abs=0.01)
    assert full["effective_rank"] == pytest.approx(8, abs=0.01)
    line = np.outer(np.random.default_rng(0).choice([-1.0, 1.0], 500), np.ones(8))
    assert spread(line)["effective_rank"] == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("options", [dict(k=0), dict(temperature=0.0)])
def test_knn_refuses(options):
    with pytest.raises(ValueError, match="knn"):
        metrics.knn(classes=3, **options)


@pytest.mark.parametrize("options", [dict(strength=0.0), dict(per_class=-1), dict(seeds=0)])
def test_probe_refuses(options):
    with pytest.raises(ValueError, match="probe"):
        metrics.probe(classes=3, **options)


@pytest.mark.parametrize("classes", [3, 30])
def test_the_picture_has_every_point(classes):
    from matplotlib.figure import Figure

    rows = {"features": RNG.normal(size=(90, 4)).astype(np.float32), "label": np.arange(90) % classes}
    axes = Figure().subplots()
    metrics.knn(classes=classes).draw(axes, rows, rows, tuple(map(str, range(classes))))
    assert sum(len(c.get_offsets()) for c in axes.collections) == 90


def test_twenty_classes_have_a_colour_each():
    from matplotlib.figure import Figure

    rows = {"features": RNG.normal(size=(40, 4)).astype(np.float32), "label": np.arange(40) % 20}
    axes = Figure().subplots()
    metrics.knn(classes=20).draw(axes, rows, rows, tuple(map(str, range(20))))
    assert len({tuple(c.get_facecolor()[0]) for c in axes.collections}) == 20
