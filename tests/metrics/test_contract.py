"""What every metric must keep to, over metrics.__all__: a new one adds a line to CASES."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvision import metrics

RNG = np.random.default_rng(0)
PREDICTIONS = {
    "logits": RNG.normal(size=(8, 6)).astype(np.float32),
    "features": RNG.normal(size=(8, 5)).astype(np.float32),
}
BATCH = {"label": RNG.integers(0, 6, 8).astype(np.int32), "mask": np.ones(8, bool), "index": np.arange(8)}
CASES = {
    "knn": lambda: metrics.knn(classes=6, k=3),
    "probe": lambda: metrics.probe(classes=6),
    "topk": lambda: metrics.topk(classes=6),
}
# What a metric with a bank compares with.
BANK = {"features": np.random.default_rng(1).normal(size=(12, 5)).astype(np.float32), "label": np.arange(12) % 6}


def test_a_bank_needs_rows():
    assert all(metric().gather for metric in CASES.values() if metric().bank)


def test_every_metric_is_here():
    assert set(CASES) == set(metrics.__all__)


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
    whole = measure(metric, (PREDICTIONS, BATCH))
    assert whole
    assert all(isinstance(v, float) for v in whole.values())
    first, second = np.arange(3), np.arange(3, 8)
    parts = [(rows(PREDICTIONS, r), rows(BATCH, r)) for r in (first, second)]
    assert measure(metric, *parts) == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("name", sorted(CASES))
def test_padding_never_counts(name):
    metric = CASES[name]()
    padded = {**BATCH, "mask": np.arange(8) < 5}
    garbage = {name: np.where(padded["mask"][:, None], value, np.nan) for name, value in PREDICTIONS.items()}
    real = (rows(PREDICTIONS, np.arange(5)), rows(BATCH, np.arange(5)))
    assert measure(metric, (garbage, padded)) == pytest.approx(measure(metric, real), rel=1e-6)
