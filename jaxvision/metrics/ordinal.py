"""Metrics over classes that have an order."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvision import targets
from jaxvision.losses import softmax_cross_entropy
from jaxvision.metrics.classification import rank_of_label
from jaxvision.task import Batch, Metric


def ordinal(*, classes: int) -> Metric:
    """`top1` (as in `topk`), `mae` (in ranks), `kappa` (with quadratic weights) and `loss` (cross-entropy).

    The rank that `mae` and `kappa` judge is the median of the predicted distribution, softmax(logits): the number of
    classes k above which the label lies with a probability over 1/2, the rule of CORAL (Cao et al. 2019,
    https://arxiv.org/abs/1901.07884). `kappa` is 1 - sum(w O) / sum(w E) with w = (i - j)^2, O the counts of label
    i and rank j, and E what their margins would give by chance (Cohen 1968, https://doi.org/10.1037/h0026256); NaN
    where all labels and all ranks are one class. A sample whose softmax is NaN is as far off as can be.
    """
    w = np.square(np.subtract.outer(np.arange(classes), np.arange(classes))).astype(float)

    def update(predictions: dict[str, Any], batch: Batch) -> dict[str, Any]:
        logits, label, mask = predictions["logits"].astype(jnp.float32), batch["label"], batch["mask"]
        below = jnp.cumsum(jax.nn.softmax(logits), -1)[:, :-1]  # NaN if a logit is, or is +inf
        rank = jnp.sum(below < 0.5 - 1e-6, -1)  # a half is a half however its parts were rounded
        worst = jnp.where(label < classes / 2, classes - 1, 0)
        rank = jnp.where(jnp.isnan(below).any(-1), worst, rank)
        counts = jnp.zeros((classes, classes), jnp.int32).at[label, rank].add(mask.astype(jnp.int32))
        loss = softmax_cross_entropy(logits, label)
        return {
            "top1": jnp.sum((rank_of_label(logits, label) == 0) & mask),
            "loss": jnp.sum(jnp.where(mask, loss, 0.0)),
            "counts": counts,
        }

    def finish(sums: dict[str, np.ndarray]) -> dict[str, float]:
        counts = np.asarray(sums["counts"], float)
        total = max(counts.sum(), 1.0)
        chance = np.outer(counts.sum(1), counts.sum(0)) / total
        by_chance = float((w * chance).sum())
        return {
            "top1": float(sums["top1"]) / total,
            "mae": float((np.sqrt(w) * counts).sum() / total),
            "kappa": 1.0 - float((w * counts).sum()) / by_chance if by_chance else float("nan"),
            "loss": float(sums["loss"]) / total,
        }

    return Metric(update, finish, names=("top1", "mae", "kappa", "loss"), compares=targets.class_)
