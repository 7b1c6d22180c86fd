"""Metrics over class scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvision import targets
from jaxvision.config.ranges import Counts
from jaxvision.losses import softmax_cross_entropy
from jaxvision.task import Batch, Metric, PyTree


def topk(*, classes: int, ks: Counts = (1, 5)) -> Metric:
    """`top1`, `top5` (fractions in 0..1) and `loss` (cross-entropy without smoothing, mean over samples).

    A sample counts for k if fewer than k classes score at least as high as the right one: ties count against
    the network, so constant or NaN logits score 0 and not by luck. A k that exceeds the number of classes is
    left out.
    """
    ks = tuple(k for k in ks if k <= classes)

    def update(predictions: dict[str, Any], batch: Batch) -> dict[str, Any]:
        logits, label, mask = predictions["logits"].astype(jnp.float32), batch["label"], batch["mask"]
        rank = rank_of_label(logits, label)
        sums = {f"top{k}": jnp.sum((rank < k) & mask) for k in ks}
        loss = softmax_cross_entropy(logits, label)
        return {**sums, "loss": jnp.sum(jnp.where(mask, loss, 0.0)), "count": jnp.sum(mask)}

    def finish(sums: dict[str, np.ndarray]) -> dict[str, float]:
        count = max(float(sums["count"]), 1.0)
        return {name: float(value) / count for name, value in sums.items() if name != "count"}

    return Metric(update, finish, names=(*(f"top{k}" for k in ks), "loss"), compares=targets.class_)


def rank_of_label(logits: jax.Array, label: jax.Array) -> jax.Array:
    """int32[B]: how many other classes score at least as high as the right one; NaN counts as such."""
    right = jnp.take_along_axis(logits, label[:, None], axis=-1)
    others = ~jax.nn.one_hot(label, logits.shape[-1], dtype=bool)
    return jnp.sum(~(logits < right) & others, axis=-1)


def over_classes(metric: Metric, columns: Sequence[int]) -> Metric:
    """A metric of some of the network's classes alone: it sees their `columns` of the logits and probabilities, [K].

    Labels are 0 to K - 1, places in `columns`. A softmax is then over these classes.
    """
    chosen = np.asarray(columns, np.int32)

    def update(predictions: dict[str, Any], batch: Batch) -> PyTree:
        some = {k: v[:, chosen] if k in ("logits", "probabilities") else v for k, v in predictions.items()}
        return metric.update(some, batch)

    return metric._replace(update=update)


def per_class(*, classes: int, names: tuple[str, ...] = ()) -> Metric:
    """`balanced_accuracy`, the mean of the classes' accuracies, `top1`, `loss`, and `accuracy/NAME` of each class.

    The accuracy of a class is top-1 over its own samples, ties and `loss` as in `topk`. Classes without a sample are
    left out; `absent_classes` is their number.
    """
    names = names or tuple(map(str, range(classes)))

    def update(predictions: dict[str, Any], batch: Batch) -> dict[str, Any]:
        logits, label, mask = predictions["logits"].astype(jnp.float32), batch["label"], batch["mask"]
        right = rank_of_label(logits, label) == 0
        mine = jax.nn.one_hot(label, classes, dtype=jnp.int32) * mask[:, None]
        loss = jnp.sum(jnp.where(mask, softmax_cross_entropy(logits, label), 0.0))
        return {"right": jnp.sum(mine * right[:, None], 0), "count": jnp.sum(mine, 0), "loss": loss}

    def finish(sums: dict[str, np.ndarray]) -> dict[str, float]:
        right, count = np.asarray(sums["right"], float), np.asarray(sums["count"], float)
        there = count > 0
        accuracy = right / np.maximum(count, 1)
        return {
            "balanced_accuracy": float(accuracy[there].mean()) if there.any() else float("nan"),
            "top1": float(right.sum() / max(count.sum(), 1)),
            "absent_classes": float((~there).sum()),
            "loss": float(sums["loss"]) / max(count.sum(), 1),
            **{f"accuracy/{name}": float(a) for name, a, here in zip(names, accuracy, there) if here},
        }

    parts = (f"accuracy/{name}" for name in names)
    figures = ("balanced_accuracy", "top1", "absent_classes", "loss", *parts)
    return Metric(update, finish, names=figures, compares=targets.class_)
