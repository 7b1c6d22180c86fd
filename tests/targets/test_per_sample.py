"""The rows that a report is made of."""

import jax.numpy as jnp
import numpy as np
from scipy.special import softmax

from jaxvision import targets

LOGITS = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
LABEL = np.array([0, 3, 6, 2, 2], np.int32)


def rows(predictions, label, *, kind, classes, **options):
    metric = targets.find(kind).per_sample(classes, **options)
    assert metric.gather
    assert metric.finish({}) == {}
    return {k: np.asarray(v) for k, v in metric.update(predictions, {"label": jnp.asarray(label)}).items()}


def test_classes():
    found = rows({"logits": LOGITS.astype(jnp.bfloat16)}, LABEL, classes=7, kind="class", k=3)
    p = softmax(LOGITS.astype(jnp.bfloat16).astype(np.float64), axis=1)
    np.testing.assert_array_equal(found["top"], np.argsort(-p, axis=1)[:, :3])
    np.testing.assert_allclose(found["top_p"], -np.sort(-p, axis=1)[:, :3], rtol=1e-5)
    np.testing.assert_allclose(found["p"], p[np.arange(5), LABEL], rtol=1e-5)
    np.testing.assert_array_equal(found["label"], LABEL)


def test_probabilities_of_a_task_go_before_its_softmax():
    p = 1 / (1 + np.exp(-LOGITS))
    found = rows({"logits": LOGITS, "probabilities": p}, LABEL, classes=7, kind="class")
    np.testing.assert_array_equal(found["p"], p[np.arange(5), LABEL])
    assert found["top"].shape == (5, 5)
    assert rows({"logits": LOGITS[:, :2]}, LABEL * 0, classes=2, kind="class")["top"].shape == (5, 2)


def test_tags_and_values():
    label = (LOGITS > 0).astype(np.float32)
    found = rows({"probabilities": np.abs(LOGITS)}, label, classes=7, kind="tags")
    assert (found["label"].dtype, found["scores"].dtype) == (bool, np.float16)
    np.testing.assert_array_equal(found["label"], LOGITS > 0)
    assert found["known"].all()
    unknown = rows({"probabilities": np.abs(LOGITS)}, np.where(LOGITS > 1, np.nan, label), classes=7, kind="tags")
    np.testing.assert_array_equal(unknown["known"], LOGITS <= 1)
    np.testing.assert_array_equal(unknown["label"], (LOGITS > 0) & (LOGITS <= 1))
    found = rows({"values": LOGITS}, label, classes=7, kind="values")
    np.testing.assert_array_equal(found["values"], LOGITS)
    assert targets.find("none") is None
