"""One class an image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxvision import targets
from jaxvision.config.ranges import Exponent, NotNegative, Rate
from jaxvision.data.contract import InputContract
from jaxvision.losses import sigmoid_focal, softmax_cross_entropy, softmax_focal
from jaxvision.ops import at_least_float32
from jaxvision.task import PyTree, Task, declares
from jaxvision.tasks.common import agreement, check_choices, check_focal, check_smoothing, supervised


@declares(targets.class_)
def classification(
    model: nn.Module,
    contract: InputContract,
    *,
    loss: str = "softmax",
    label_smoothing: Rate = 0.0,
    target_threshold: Rate = 0.0,
    focal: Exponent = 0.0,
    class_weights: tuple[NotNegative, ...] | str = (),
    classes: int = 0,
    labels: Callable[[], np.ndarray] | None = None,
) -> Task:
    """Cross-entropy, mean over the samples; predicts "logits" f32[B, C], "features" f32[B, D].

    batch["label"] is int32[B], or soft float32[B, C] from a wrapper. Logs `loss` and `top1` (for soft labels:
    agreement with the largest).

    Args:
      loss: "softmax"; or "sigmoid", the binary cross-entropy of each class, mean over the classes, as "ResNet strikes
        back" trains (Wightman et al. 2021, https://arxiv.org/abs/2110.00476). It predicts "probabilities", too, which
        are then not the softmax of the logits.
      label_smoothing: share of the target that is spread evenly over all classes, for either loss.
      target_threshold: sigmoid: where it is above 0, targets above it are 1 and the others 0, so that of a mixture both
        classes are to be found (that paper's recipes take 0.2).
      focal: exponent gamma of the focal loss (Lin et al. 2017, https://arxiv.org/abs/1708.02002); 0 is none.
      class_weights: one number a class, how much its samples count (a mixture counts as its classes do, each by its
        share); or "balanced", N / (C * n) of a class with n of the N training samples: then all classes count as much,
        and the mean over the samples is 1.
      classes: number of classes; checked against class_weights.
      labels: gives those of the training data, int32[N]; asked only for "balanced".

    Raises ValueError for a value that makes no sense.
    """
    check_choices(loss=(loss, ("softmax", "sigmoid")))
    check_smoothing(label_smoothing)
    check_focal(focal)
    if not 0.0 <= target_threshold < 1.0 or (target_threshold and loss == "softmax"):
        raise ValueError(f'target_threshold is a number in [0, 1) and goes with loss="sigmoid", got {target_threshold}')
    weights = _class_weights(class_weights, classes, labels)

    def objective(params: PyTree, extra: PyTree, outputs: dict[str, jax.Array], label: jax.Array) -> tuple:
        if isinstance(weights, str):
            raise ValueError('class_weights="balanced" needs the training labels')
        logits = outputs["logits"]
        if loss == "sigmoid":
            value = _sigmoid(logits, _one_hot(label, logits))
        elif focal:
            value = softmax_focal(logits, label, gamma=focal, smoothing=label_smoothing)
        else:
            value = softmax_cross_entropy(logits, label, smoothing=label_smoothing)
        if len(weights):
            value = value * jnp.dot(_one_hot(label, logits), jnp.asarray(weights, jnp.float32), precision="highest")
        return value, {"top1": agreement(logits, label)}

    def _sigmoid(logits: jax.Array, target: jax.Array) -> jax.Array:
        target = (1.0 - label_smoothing) * target + label_smoothing / target.shape[-1]
        if target_threshold:
            target = (target > target_threshold).astype(jnp.float32)
        return jnp.mean(sigmoid_focal(logits, target, gamma=focal), -1)

    def predictions(params: PyTree, extra: PyTree, outputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
        predicted = {"logits": outputs["logits"]}
        if loss == "sigmoid":
            predicted["probabilities"] = jax.nn.sigmoid(at_least_float32(outputs["logits"]))
        return predicted

    return supervised(model, contract, objective, predictions)


def _one_hot(label: jax.Array, logits: jax.Array) -> jax.Array:
    return jax.nn.one_hot(label, logits.shape[-1], dtype=jnp.float32) if label.ndim == 1 else label


def _class_weights(weights: Any, classes: int, labels: Callable[[], np.ndarray] | None) -> Any:
    """One number a class; () for none; "balanced" where the labels are not known: in a network that only predicts."""
    if isinstance(weights, str):
        check_choices(class_weights=(weights, ("balanced",)))
        if labels is None:
            return weights
        counts = np.bincount(labels(), minlength=classes)
        if not counts.all():
            raise ValueError(f'class_weights="balanced": class {int(np.argmin(counts))} has no training sample')
        return counts.sum() / (len(counts) * counts)
    if len(weights) and classes and len(weights) != classes:
        raise ValueError(f"class_weights has {len(weights)} numbers, there are {classes} classes")
    if not all(isinstance(w, int | float) and w >= 0 for w in weights) or (len(weights) and not any(weights)):
        raise ValueError(f"class_weights must be numbers, none negative, not all 0, got {weights}")
    return weights
