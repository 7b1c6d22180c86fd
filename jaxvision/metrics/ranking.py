"""Metrics over scores of yes and no: how far the positives come before the negatives."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxvision import targets
from jaxvision.metrics.classification import rank_of_label
from jaxvision.task import Batch, Metric

NAN = float("nan")


def multilabel(*, classes: int, names: tuple[str, ...] = ()) -> Metric:
    """`map`, `map_micro`, `auroc`, `f1`, `loss`; `ap/NAME`, `auroc/NAME`, `f1/NAME`, `threshold/NAME` of each class.

    Average precision as `average_precision` has it, the area under the ROC curve as `roc_area`: `map` and `auroc` are
    their means over the classes, `map_micro` is the average precision of all labels as if they were one class's.
    `f1/NAME` is the largest F1 that any threshold gives, `threshold/NAME` that threshold, a probability: at or above it
    the class is taken to be there. `f1` is their mean. They are chosen on the data that they are measured on, so choose
    them on a validation split. `loss`: binary cross-entropy, mean over the labels.

    Labels that are NaN are unknown and count nowhere. Classes without a known positive or without a known negative are
    left out of the means and of the rows; `absent_classes` is their number.
    """
    names = names or tuple(map(str, range(classes)))

    def update(predictions: dict[str, Any], batch: Batch) -> dict[str, Any]:
        return {"logits": predictions["logits"].astype(jnp.float32), "label": batch["label"]}

    def finish(rows: dict[str, np.ndarray]) -> dict[str, float]:
        logits, label = np.asarray(rows["logits"], np.float64), rows["label"]
        known, positive = ~np.isnan(label), label > 0.5
        scores = worst_for_nan(logits, positive)
        there = np.flatnonzero(positive.any(0) & (known & ~positive).any(0))
        each: dict[str, float] = {}
        for k in there:
            mine = scores[known[:, k], k], positive[known[:, k], k]
            f1, threshold = best_f1(*mine)
            each[f"ap/{names[k]}"], each[f"auroc/{names[k]}"] = average_precision(*mine), roc_area(*mine)
            each[f"f1/{names[k]}"], each[f"threshold/{names[k]}"] = f1, sigmoid(threshold)

        def mean(what: str) -> float:
            return float(np.mean([v for key, v in each.items() if key.startswith(what)])) if len(there) else NAN

        return {
            "map": mean("ap/"),
            "map_micro": average_precision(scores[known], positive[known]),
            "auroc": mean("auroc/"),
            "f1": mean("f1/"),
            "loss": float(cross_entropy(logits, positive)[known].mean()) if known.any() else NAN,
            "absent_classes": float(classes - len(there)),
            **each,
        }

    parts = (f"{what}/{name}" for name in names for what in ("ap", "auroc", "f1", "threshold"))
    figures = ("map", "map_micro", "auroc", "f1", "loss", "absent_classes", *parts)
    return Metric(update, finish, gather=True, names=figures, compares=targets.tags)


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
            "auroc": roc_area(scores, positive),
            "ap": average_precision(scores, positive),
            "f1": f1,
            "threshold": sigmoid(threshold),
            "top1": float(np.where(positive, scores > 0, scores < 0).mean()),
            "loss": float(cross_entropy(logits, positive).mean()),
        }

    figures = ("auroc", "ap", "f1", "threshold", "top1", "loss")
    return Metric(update, finish, gather=True, names=figures, compares=targets.class_)


def auroc(*, classes: int, names: tuple[str, ...] = ()) -> Metric:
    """`auroc`, the mean over the classes of the area under the ROC curve of a class against all others; and `top1`.

    `auroc/NAME` is that of each class, as `roc_area` has it: samples are ordered by the probability of the class, the
    softmax of the logits, or the sigmoid of its own where the task predicts that. Classes that no sample has, or every
    sample, are left out; `absent_classes` is their number. `top1` as in `topk`. All logits are kept in memory, 4 bytes
    each.

    Source: the "macro" mean "one vs rest" of Fawcett 2006, https://doi.org/10.1016/j.patrec.2005.10.010, section 9,
    as scikit-learn's roc_auc_score has it.
    """
    names = names or tuple(map(str, range(classes)))

    def update(predictions: dict[str, Any], batch: Batch) -> dict[str, Any]:
        logits = predictions["logits"].astype(jnp.float32)
        scores = {"odds" if "probabilities" in predictions else "logits": logits}
        return {**scores, "label": batch["label"], "right": rank_of_label(logits, batch["label"]) == 0}

    def finish(rows: dict[str, np.ndarray]) -> dict[str, float]:
        scores = rows["odds"] if "odds" in rows else log_odds(rows["logits"])
        each: dict[str, float] = {}
        for k in range(classes):
            positive = rows["label"] == k
            area = roc_area(worst_for_nan(scores[:, k], positive), positive)
            each |= {} if np.isnan(area) else {f"auroc/{names[k]}": area}
        return {
            "auroc": float(np.mean(list(each.values()))) if each else NAN,
            "top1": float(np.mean(rows["right"])),
            "absent_classes": float(classes - len(each)),
            **each,
        }

    parts = (f"auroc/{name}" for name in names)
    figures = ("auroc", "top1", "absent_classes", *parts)
    return Metric(update, finish, gather=True, names=figures, compares=targets.class_)


def log_odds(logits: np.ndarray) -> np.ndarray:
    """log(p / (1 - p)) with p the softmax of [N, C], float64: samples of one class in the order of its probability.

    The probability itself is 1 in float32 for all samples of which the network is sure; this ties none of them.
    """
    return np.concatenate(
        [_log_odds(part.astype(np.float64)) for part in np.array_split(logits, 1 + logits.size // 2**20)]
    )


def _log_odds(x: np.ndarray) -> np.ndarray:
    rows, first = np.arange(len(x)), x.argmax(1)
    largest = x[rows, first]
    x[rows, first] = -np.inf
    with np.errstate(divide="ignore", invalid="ignore"):  # one class alone is certain; NaN stays NaN
        second = x.max(1)
        second = np.where(np.isinf(second), 0, second)
        rest = second + np.log(np.exp(x - second[:, None]).sum(1))
        log_p = x - np.logaddexp(largest, rest)[:, None]  # of all but the first, at most log(1/2)
        odds = log_p - np.log1p(-np.exp(log_p))
        odds[rows, first] = largest - rest
    return odds


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


def roc_area(scores: np.ndarray, positive: np.ndarray) -> float:
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
