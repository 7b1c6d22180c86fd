import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxvision.metrics import topk


def measure(logits, labels, mask=None, **options):
    logits = np.asarray(logits, np.float32)
    metric = topk(classes=logits.shape[1], **options)
    mask = np.ones(len(logits), bool) if mask is None else np.asarray(mask)
    sums = metric.update({"logits": jnp.asarray(logits)}, {"label": jnp.asarray(labels), "mask": jnp.asarray(mask)})
    return metric.finish({k: np.asarray(v) for k, v in sums.items()})


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6))
def test_equals_sorting(seed):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=(9, 7)), rng.integers(0, 7, 9)
    order = np.argsort(-logits, -1)
    got = measure(logits, labels)
    assert got["top1"] == pytest.approx(np.mean(order[:, 0] == labels))
    assert got["top5"] == pytest.approx(np.mean([y in o[:5] for y, o in zip(labels, order, strict=True)]))


def test_padding_never_counts():
    logits = [[5.0, 0.0], [0.0, 5.0], [np.nan, np.nan]]
    assert measure(logits, [0, 0, 0], [True, True, False])["top1"] == 0.5
    assert np.isfinite(measure(logits, [0, 0, 0], [True, True, False])["loss"])
    assert measure([[5.0, 0.0], [0.0, 5.0], [5.0, 0.0]], [0, 0, 0], [True, True, False])["top1"] == 0.5


def test_ties_and_nan_count_against_the_network():
    assert measure(np.zeros((3, 4)), [0, 1, 2])["top1"] == 0
    assert measure([[np.nan, 1.0, 0.0]], [0])["top1"] == 0
    assert measure([[np.nan, 1.0, 0.0]], [1])["top1"] == 0


def test_k_beyond_the_classes_is_left_out():
    assert set(measure(np.zeros((1, 3)), [0])) == {"top1", "loss"}
    assert set(measure(np.zeros((1, 3)), [0], ks=(1, 2, 3))) == {"top1", "top2", "top3", "loss"}
