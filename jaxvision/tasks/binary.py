"""One of two classes an image, by one score."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxvision import targets
from jaxvision.config.ranges import Exponent, Positive, Rate
from jaxvision.data.contract import InputContract
from jaxvision.losses import sigmoid_focal
from jaxvision.ops import at_least_float32
from jaxvision.task import PyTree, Task, declares
from jaxvision.tasks.common import agreement, check_choices, check_focal, check_smoothing, supervised


@declares(targets.class_)
def binary(
    model: nn.Module,
    contract: InputContract,
    *,
    label_smoothing: Rate = 0.0,
    focal: Exponent = 0.0,
    pos_weight: Positive | str = 1.0,
    classes: int = 2,
    labels: Callable[[], np.ndarray] | None = None,
) -> Task:
    """Binary cross-entropy of the network's one output, the log-odds of the second class (the positive one).

    batch["label"] is int32[B] of 0 and 1, or soft float32[B, 2] from a wrapper. Predicts "logits" f32[B, 2], 0 and the
    log-odds, whose softmax are the probabilities of the two classes, so that all works that works with classes; and
    "features" f32[B, D]. Logs `loss` and `top1`.

    Args:
      label_smoothing: moves the target towards 1/2.
      focal: exponent gamma of the focal loss; 0 is none.
      pos_weight: how much a sample of the second class counts; or "balanced": as often as there are samples of the
        first for one of the second.
      classes: number of classes, 2.
      labels: gives those of the training data, int32[N]; asked only for "balanced".

    Raises ValueError for a value that makes no sense, and for data with more or fewer than two classes.
    """
    if classes != 2:
        raise ValueError(f"binary is for data with 2 classes, there are {classes}: take classification")
    check_smoothing(label_smoothing)
    check_focal(focal)
    weight = _pos_weight(pos_weight, labels)

    def objective(params: PyTree, extra: PyTree, outputs: dict[str, jax.Array], label: jax.Array) -> tuple:
        if isinstance(weight, str):
            raise ValueError('pos_weight="balanced" needs the training labels')
        target = label if label.ndim == 1 else label[:, 1]
        odds = outputs["logits"][:, 0]
        value = sigmoid_focal(odds, target, gamma=focal, smoothing=label_smoothing, pos_weight=weight)
        return value, {"top1": agreement(predictions(params, extra, outputs)["logits"], label)}

    def predictions(params: PyTree, extra: PyTree, outputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
        odds = at_least_float32(outputs["logits"][:, 0])
        return {"logits": jnp.stack([jnp.zeros_like(odds), odds], -1)}

    def standalone(leaf: np.ndarray, leaves: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([np.zeros_like(leaf), leaf], -1)

    return supervised(model.clone(classes=1), contract, objective, predictions)._replace(standalone=standalone)


def _pos_weight(weight: float | str, labels: Callable[[], np.ndarray] | None) -> float | str:
    """A number; "balanced" where the labels are not known, as in a network that only predicts."""
    if isinstance(weight, str):
        check_choices(pos_weight=(weight, ("balanced",)))
        if labels is None:
            return weight
        negative, positive = np.bincount(labels(), minlength=2)
        if not negative or not positive:
            raise ValueError(f'pos_weight="balanced": class {int(positive == 0)} has no training sample')
        return float(negative / positive)
    if not weight > 0:
        raise ValueError(f"pos_weight must be above 0, got {weight}")
    return weight
