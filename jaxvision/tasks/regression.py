"""Numbers of an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxvision import targets
from jaxvision.config.ranges import Positive
from jaxvision.data.contract import InputContract
from jaxvision.losses import absolute_error, huber, squared_error
from jaxvision.ops import at_least_float32
from jaxvision.task import PyTree, Task, declares
from jaxvision.tasks.common import check_choices, supervised

LOSSES = {"mse": squared_error, "huber": huber, "mae": absolute_error}


@declares(targets.values)
def regression(
    model: nn.Module,
    contract: InputContract,
    *,
    loss: str = "mse",
    delta: Positive = 1.0,
    classes: int = 1,
    labels: Callable[[], np.ndarray] | None = None,
) -> Task:
    """Error of the standardised numbers, mean over them and over the samples.

    batch["label"] is float32[B, K]. The network learns (label - mean) / std, with mean and std of the training labels,
    so that the K numbers count alike whatever their units; both lie in extra["scale"] and are saved with the weights.
    Predicts "values" f32[B, K] in the labels' own units, and "features" f32[B, D]. Logs `loss`, and `mae` in the
    labels' units, mean over the K numbers.

    Args:
      loss: "mse", "huber" or "mae".
      delta: huber: the error, in standard deviations, from which on the loss is linear.
      classes: K.
      labels: gives those of the training data, float32[N, K]. Without them mean 0 and std 1 hold the places of what is
        loaded.

    Raises ValueError for a value that makes no sense.
    """
    check_choices(loss=(loss, tuple(LOSSES)))
    if not delta > 0:
        raise ValueError(f"delta must be above 0, got {delta}")
    error = (lambda x, t: huber(x, t, delta=delta)) if loss == "huber" else LOSSES[loss]

    def objective(params: PyTree, extra: PyTree, outputs: dict[str, jax.Array], label: jax.Array) -> tuple:
        mean, std = extra["scale"]["mean"], extra["scale"]["std"]
        value = jnp.mean(error(outputs["logits"], (label - mean) / std), -1)
        mae = jnp.mean(absolute_error(predictions(params, extra, outputs)["values"], label), -1)
        return value, {"mae": mae}

    def predictions(params: PyTree, extra: PyTree, outputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
        scale = extra["scale"]
        return {"values": at_least_float32(outputs["logits"]) * scale["std"] + scale["mean"]}

    def standalone(leaf: np.ndarray, leaves: Mapping[str, np.ndarray]) -> np.ndarray:
        return leaf * leaves["extra/scale/std"] + (leaf.ndim == 1) * leaves["extra/scale/mean"]

    extra = {"scale": _scale(classes, labels)}
    return supervised(model, contract, objective, predictions, extra=extra)._replace(standalone=standalone)


def _scale(count: int, labels: Callable[[], np.ndarray] | None) -> dict[str, np.ndarray]:
    """Mean and std of each number, float32[K]; std 1 where it does not vary."""
    if labels is None:
        return {"mean": np.zeros(count, np.float32), "std": np.ones(count, np.float32)}
    table = np.asarray(labels(), np.float64)
    std = table.std(0)
    return {"mean": table.mean(0).astype(np.float32), "std": np.where(std > 0, std, 1.0).astype(np.float32)}
