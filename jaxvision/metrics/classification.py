"""Metrics over class scores."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvision.losses import softmax_cross_entropy
from jaxvision.task import Batch, Metric


def topk(*, classes: int, ks: tuple[int, ...] = (1, 5)) -> Metric:
    """`top1`, `top5` (fractions in 0..1) and `loss` (cross-entropy without smoothing, mean over samples).

    A sample counts for k if fewer than k classes score at least as high as the right one: ties count against
    the network, so constant or NaN logits score 0 and not by luck. A k that exceeds the number of classes is
    left out.
    """
    ks = tuple(k for k in ks if k <= classes)

    def update(predictions: dict[str, Any], batch: Batch) -> dict[str, Any]:
        logits, label, mask = predictions["logits"].astype(jnp.float32), batch["label"], batch["mask"]
        right = jnp.take_along_axis(logits, label[:, None], axis=-1)
        others = ~jax.nn.one_hot(label, logits.shape[-1], dtype=bool)
        rank = jnp.sum(~(logits < right) & others, axis=-1)
        sums = {f"top{k}": jnp.sum((rank < k) & mask) for k in ks}
        loss = softmax_cross_entropy(logits, label)
        return {**sums, "loss": jnp.sum(jnp.where(mask, loss, 0.0)), "count": jnp.sum(mask)}

    def finish(sums: dict[str, np.ndarray]) -> dict[str, float]:
        count = max(float(sums["count"]), 1.0)
        return {name: float(value) / count for name, value in sums.items() if name != "count"}

    return Metric(update, finish)
