"""Metrics over numbers."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxvision import targets
from jaxvision.task import Batch, Metric


def regression(*, classes: int, names: tuple[str, ...] = ()) -> Metric:
    """`mse`, `mae` and `r2`, in the labels' units, each the mean over the K numbers; and `mae/NAME` of each if K > 1.

    `r2` = 1 - sum (y - x)^2 / sum (y - mean y)^2. For a number that does not vary it is 1 if it is predicted exactly,
    else 0; of fewer than two samples it is NaN (both as in scikit-learn).
    """
    names = names or tuple(map(str, range(classes)))

    def update(predictions: dict[str, Any], batch: Batch) -> dict[str, Any]:
        return {"values": predictions["values"].astype(jnp.float32), "label": batch["label"]}

    def finish(rows: dict[str, np.ndarray]) -> dict[str, float]:
        values, labels = np.asarray(rows["values"], np.float64), np.asarray(rows["label"], np.float64)
        error = values - labels
        squared, spread = np.square(error).sum(0), np.square(labels - labels.mean(0)).sum(0)
        r2 = np.where(spread > 0, 1 - squared / np.where(spread > 0, spread, 1), (squared == 0).astype(float))
        mae = np.abs(error).mean(0)
        return {
            "mse": float(np.square(error).mean()),
            "mae": float(mae.mean()),
            "r2": float(r2.mean()) if len(labels) > 1 else float("nan"),
            **({f"mae/{name}": float(v) for name, v in zip(names, mae)} if classes > 1 else {}),
        }

    parts = (f"mae/{name}" for name in names) if classes > 1 else ()
    return Metric(update, finish, gather=True, names=("mse", "mae", "r2", *parts), compares=targets.values)
