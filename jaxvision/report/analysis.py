"""The numbers of a report, from the outcomes of the samples. numpy only, pure functions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Calibration(NamedTuple):
    """Calibration in M bins.

    In each bin: `samples` int64 [M], `confidence` and `accuracy` float64 [M], means over them, NaN where there are
    none. `ece`: expected calibration error, in 0..1. `left_out`: samples whose confidence is NaN.
    """

    samples: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    ece: float
    left_out: int


def calibration(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> Calibration:
    """How far the probability of the predicted class, float [N] in 0..1, is how often it is right, bool [N].

    M bins of equal width, ((m - 1) / M, m / M]; ECE = sum_m n_m / N |accuracy_m - confidence_m|.

    Source: Guo et al. 2017, https://arxiv.org/abs/1706.04599, section 2.
    """
    known = ~np.isnan(confidence)
    p, hit = np.asarray(confidence, np.float64)[known], np.asarray(right, np.float64)[known]
    place = np.clip(np.ceil(p * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_p, mean_hit = (np.bincount(place, weights=x, minlength=bins) / count for x in (p, hit))
    there = count > 0
    gaps = count[there] * np.abs(mean_hit[there] - mean_p[there])
    ece = float(gaps.sum() / len(p)) if len(p) else float("nan")
    return Calibration(count, mean_p, mean_hit, ece, int((~known).sum()))


def confusion(label: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """int64 [C, C]: how many samples of class i (rows) were taken for class j."""
    return np.bincount(label.astype(np.int64) * classes + predicted, minlength=classes**2).reshape(classes, classes)


class PerClass(NamedTuple):
    """One value a class, [C]. `recall` is NaN for a class without samples, `precision` for one that was never
    predicted, `f1` = 2 TP / (samples + predictions) for one without either. `other`: the class that most of its samples
    were taken for by mistake, -1 if none was; `mistaken`: how many."""

    samples: np.ndarray
    recall: np.ndarray
    precision: np.ndarray
    f1: np.ndarray
    other: np.ndarray
    mistaken: np.ndarray


def per_class(matrix: np.ndarray) -> PerClass:
    """Figures of each class from a confusion matrix, int [C, C]."""
    hits, count, predicted = np.diag(matrix).astype(float), matrix.sum(1), matrix.sum(0)
    wrong = matrix - np.diag(np.diag(matrix))
    other = wrong.argmax(1)
    mistaken = wrong[np.arange(len(wrong)), other]
    with np.errstate(invalid="ignore"):
        recall, precision, f1 = hits / count, hits / predicted, 2 * hits / (count + predicted)
    return PerClass(count, recall, precision, f1, np.where(mistaken > 0, other, -1), mistaken)


def confusions(matrix: np.ndarray, most: int) -> list[tuple[int, int, int]]:
    """(class, what it was taken for, how often) of the most frequent mistakes, of equally frequent ones in order."""
    wrong = (matrix - np.diag(np.diag(matrix))).ravel()
    order = np.argsort(-wrong, kind="stable")[:most]
    return [(int(k) // len(matrix), int(k) % len(matrix), int(wrong[k])) for k in order if wrong[k]]


def coarse(matrix: np.ndarray, cells: int) -> np.ndarray:
    """The matrix [C, C] with neighbouring classes added up, so that at most `cells` x `cells` are left."""
    starts = np.arange(0, len(matrix), -(-len(matrix) // cells))
    return np.add.reduceat(np.add.reduceat(matrix, starts, 0), starts, 1)


def extremes(goodness: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the worst, worst first, and of the best, best first; NaN is the worst there is. No row is in both: of
    fewer than 2 `most` samples the worst get the larger half."""
    order = np.argsort(np.where(np.isnan(goodness), -np.inf, goodness), kind="stable")
    worst = order[: min(most, -(-len(order) // 2))]
    return worst, order[::-1][: min(most, len(order) - len(worst))]


def tag_loss(scores: np.ndarray, label: np.ndarray, known: np.ndarray | bool = True) -> np.ndarray:
    """Loss of each row, float64 [N]: binary cross-entropy, mean over the known tags.

    Probabilities [N, K] are kept within 1e-4 of 0 and 1. A row is 0 where no tag is known.
    """
    p = np.clip(np.asarray(scores, np.float64), 1e-4, 1 - 1e-4)
    known = np.broadcast_to(known, p.shape)
    return np.sum(-np.log(np.where(label, p, 1 - p)), 1, where=known) / np.maximum(known.sum(1), 1)
