"""Metrics over scores of yes and no: how far the positives come before the negatives."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxvision.task import Batch, Metric

NAN = float("nan")


def multilabel(*, classes: int, names: tuple[str, ...] = ()) -> Metric:
    """`map` (macro), `map_micro`, `f1`, `loss`, and `ap/NAME`, `f1/NAME` and `threshold/NAME` of each class.

    Average precision as `average_precision` has it: `map` is its mean over the classes, `map_micro` that of all labels
    as if they were one class's. `f1/NAME` is the largest F1 that any threshold gives, `threshold/NAME` that threshold,
    a probability: at or above it the class is taken to be there. `f1` is their mean. They are chosen on the data that
    they are measured on, so choose them on a validation split. Classes without a positive are left out of the means and
    of the rows; `absent_classes` is their number. `loss`: binary cross-entropy, mean over classes and samples.
    """
    names = names or tuple(map(str, range(classes)))

    def update(predictions: dict[str, Any], batch: Batch) -> dict[str, Any]:
        return {"logits": predictions["logits"].astype(jnp.float32), "label": batch["label"]}

    def finish(rows: dict[str, np.ndarray]) -> dict[str, float]:
        logits, positive = np.asarray(rows["logits"], np.float64), rows["label"] > 0.5
        scores = worst_for_nan(logits, positive)
        there = np.flatnonzero(positive.any(0))
        each: dict[str, float] = {}
        for k in there:
            f1, threshold = best_f1(scores[:, k], positive[:, k])
            each[f"ap/{names[k]}"] = average_precision(scores[:, k], positive[:, k])
            each[f"f1/{names[k]}"], each[f"threshold/{names[k]}"] = f1, sigmoid(threshold)

        def mean(what: str) -> float:
            return float(np.mean([v for key, v in each.items() if key.startswith(what)])) if len(there) else NAN

        return {
            "map": mean("ap/"),
            "map_micro": average_precision(scores.ravel(), positive.ravel()),
            "f1": mean("f1/"),
            "loss": float(cross_entropy(logits, positive).mean()),
            "absent_classes": float(classes - len(there)),
            **each,
        }

    parts = (f"{what}/{name}" for name in names for what in ("ap", "f1", "threshold"))
    return Metric(update, finish, gather=True, names=("map", "map_micro", "f1", "loss", "absent_classes", *parts))


def binary(*, classes: int) -> Metric:
    """`auroc`, `ap` (average precision), `f1`, `threshold`, `top1` and `loss` of two classes; the second is positive.

    `f1` is the largest F1 that any threshold gives, `threshold` that threshold: from that probability of the second
    class on it is predicted. It is chosen on the data that it is measured on. `top1` is at a probability of 1/2, ties
    as in `topk`; `loss` is the binary cross-entropy. Without a positive or without a negative `auroc` is NaN, without a
    positive `ap` and `f1` too. Raises ValueError for more or fewer than two classes.
    """
    if classes != 2:
        raise ValueError(f"binary measures 2 classes, there are {classes}: take topk or per_class")

    def update(predictions: dict[str, Any], batch: Batch) -> dict[str, Any]:
        logits = predictions["logits"].astype(jnp.float32)
        return {"logits": logits[:, 1] - logits[:, 0], "label": batch["label"]}

    def finish(rows: dict[str, np.ndarray]) -> dict[str, float]:
        logits, positive = np.asarray(rows["logits"], np.float64), rows["label"] == 1
        scores = worst_for_nan(logits, positive)
        f1, threshold = best_f1(scores, positive)
        return {
            "auroc": auroc(scores, positive),
            "ap": average_precision(scores, positive),
            "f1": f1,
            "threshold": sigmoid(threshold),
            "top1": float(np.where(positive, scores > 0, scores < 0).mean()),
            "loss": float(cross_entropy(logits, positive).mean()),
        }

    return Metric(update, finish, gather=True, names=("auroc", "ap", "f1", "threshold", "top1", "loss"))


def worst_for_nan(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Scores in which NaN is the worst there is: below all for a positive, above all for a negative."""
    return np.where(np.isnan(scores), np.where(positive, -np.inf, np.inf), scores)


def sigmoid(x: float) -> float:
    return float(np.exp(-np.logaddexp(0.0, -x))) if x == x else NAN


def cross_entropy(logits: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """-log of the probability that sigmoid(logits) gives what is the case."""
    with np.errstate(invalid="ignore"):  # NaN stays NaN
        return np.logaddexp(0.0, np.where(positive, -logits, logits))


def _curve(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct scores, falling, and how many positives and how many samples score at least that."""
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(positive[order])
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))  # samples of one score stand or fall together
    return scores[last], hits[last], last + 1


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """sum_n (R_n - R_(n-1)) P_n over the distinct scores, without interpolation; NaN without a positive."""
    if not positive.any():
        return NAN
    _, hits, count = _curve(scores, positive)
    return float(np.sum(np.diff(hits, prepend=0) * hits / count) / hits[-1])


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """The probability that a positive scores above a negative, ties counting half; NaN without either."""
    _, hits, count = _curve(scores, positive)
    misses = count - hits
    if not hits[-1] or not misses[-1]:
        return NAN
    before = (hits + np.concatenate([[0], hits[:-1]])) / 2  # positives above each negative, on average over ties
    return float(np.sum(np.diff(misses, prepend=0) * before) / (hits[-1] * misses[-1]))


def best_f1(scores: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """(the largest F1, the threshold that gives it: scores at or above count as positive), NaN without a positive.

    Of several thresholds with the same F1 the highest.
    """
    if not positive.any():
        return NAN, NAN
    thresholds, hits, count = _curve(scores, positive)
    f1 = 2 * hits / (count + hits[-1])
    best = int(np.argmax(f1))
    return float(f1[best]), float(thresholds[best])
