"""What every metric must keep to, over metrics.__all__: a new one adds a line to CASES."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvision import metrics

RNG = np.random.default_rng(0)
LOGITS = {"logits": RNG.normal(size=(8, 6)).astype(np.float32)}
FEATURES = {"features": RNG.normal(size=(8, 5)).astype(np.float32)}
PREDICTIONS = {
    "knn": FEATURES,
    "probe": FEATURES,
    "binary": {"logits": LOGITS["logits"][:, :2]},
    "regression": {"values": LOGITS["logits"]},
}
CLASS = np.arange(8, dtype=np.int32) % 6
LABELS = {
    "binary": np.arange(8, dtype=np.int32) % 2,
    "multilabel": RNG.integers(0, 2, (8, 6)).astype(np.float32),
    "regression": RNG.normal(size=(8, 6)).astype(np.float32),
}
CASES = {
    "auroc": lambda: metrics.auroc(classes=6),
    "knn": lambda: metrics.knn(classes=6, k=3),
    "probe": lambda: metrics.probe(classes=6),
    "binary": lambda: metrics.binary(classes=2),
    "multilabel": lambda: metrics.multilabel(classes=6),
    "ordinal": lambda: metrics.ordinal(classes=6),
    "per_class": lambda: metrics.per_class(classes=6),
    "regression": lambda: metrics.regression(classes=6),
    "topk": lambda: metrics.topk(classes=6),
}
# What a metric with a bank compares with.
BANK = {"features": np.random.default_rng(1).normal(size=(12, 5)).astype(np.float32), "label": np.arange(12) % 6}


def test_a_bank_needs_rows():
    assert all(metric().gather for metric in CASES.values() if metric().bank)


def test_every_metric_is_here():
    assert set(CASES) == set(metrics.__all__)


def given(name):
    """Predictions and the batch that they are of."""
    batch = {"label": LABELS.get(name, CLASS), "mask": np.ones(8, bool), "index": np.arange(8)}
    return PREDICTIONS.get(name, LOGITS), batch


def rows(tree, chosen):
    return {k: v[chosen] for k, v in tree.items()}


def measure(metric, *parts):
    """As the evaluator does: sums added, rows concatenated without their padding."""
    bank = (BANK,) if metric.bank else ()
    trees = [jax.device_get(jax.jit(metric.update)(jax.tree.map(jnp.asarray, p), b)) for p, b in parts]
    if metric.gather:
        kept = [jax.tree.map(lambda x, m=b["mask"]: x[m], t) for t, (_, b) in zip(trees, parts, strict=True)]
        return metric.finish(jax.tree.map(lambda *x: np.concatenate(x), *kept), *bank)
    return metric.finish(jax.tree.map(lambda *x: sum(x), *trees))


@pytest.mark.parametrize("name", sorted(CASES))
def test_parts_make_the_whole(name):
    metric = CASES[name]()
    predictions, batch = given(name)
    whole = measure(metric, (predictions, batch))
    assert set(whole) <= set(metric.names)  # so that a config can name them beforehand
    assert all("/" in key for key in metric.names if key not in whole)
    assert all(isinstance(v, float) for v in whole.values())
    first, second = np.arange(3), np.arange(3, 8)
    parts = [(rows(predictions, r), rows(batch, r)) for r in (first, second)]
    assert measure(metric, *parts) == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("name", sorted(n for n, make in CASES.items() if make().bank))
def test_a_bank_that_no_figure_can_be_made_of_is_refused_by_its_labels(name):
    check = CASES[name]().check
    check(BANK["label"])
    with pytest.raises(ValueError, match="of one class"):
        check(np.zeros(12, np.int32))


@pytest.mark.parametrize("name", sorted(CASES))
def test_padding_never_counts(name):
    metric = CASES[name]()
    predictions, batch = given(name)
    padded = {**batch, "mask": np.arange(8) < 5}
    garbage = {k: np.where(padded["mask"][:, None], v, np.nan) for k, v in predictions.items()}
    real = (rows(predictions, np.arange(5)), rows(batch, np.arange(5)))
    assert measure(metric, (garbage, padded)) == pytest.approx(measure(metric, real), rel=1e-6)
