"""Multi-label classification: any number of classes an image."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvision import targets
from jaxvision.config.ranges import Exponent, Positive, Rate
from jaxvision.data.contract import InputContract
from jaxvision.losses import sigmoid_focal
from jaxvision.ops import at_least_float32
from jaxvision.task import PyTree, Task, declares
from jaxvision.tasks.common import check_focal, check_smoothing, supervised


@declares(targets.tags)
def multilabel(
    model: nn.Module,
    contract: InputContract,
    *,
    label_smoothing: Rate = 0.0,
    focal: Exponent = 0.0,
    pos_weight: Positive | tuple[Positive, ...] = 1.0,
    classes: int = 0,
) -> Task:
    """Binary cross-entropy of each class, mean over the classes and the samples.

    batch["label"] is float32[B, K] of 0 and 1, NaN where it is unknown, or between them from a wrapper that mixes. The
    loss of a sample is the mean over its known labels, 0 if it has none: the partial binary cross-entropy of Durand et
    al. 2019 (https://arxiv.org/abs/1902.09720), divided by the share that is known. Predicts "logits" f32[B, K],
    "probabilities" f32[B, K] (each class by itself) and "features" f32[B, D]. Logs `loss` and `accuracy`, the share of
    the known labels that are predicted right at a probability of 1/2.

    Args:
      label_smoothing: moves each target towards 1/2.
      focal: exponent gamma of the focal loss (Lin et al. 2017, https://arxiv.org/abs/1708.02002); 0 is none.
      pos_weight: how much a positive counts, one number or one a class.
      classes: number of classes; checked against pos_weight.

    Raises ValueError for a value that makes no sense.
    """
    check_smoothing(label_smoothing)
    check_focal(focal)
    numbers = pos_weight if isinstance(pos_weight, tuple) else (pos_weight,)
    if isinstance(pos_weight, tuple) and classes and len(numbers) != classes:
        raise ValueError(f"pos_weight has {len(numbers)} numbers, there are {classes} classes")
    if not all(isinstance(w, int | float) and w > 0 for w in numbers):
        raise ValueError(f"pos_weight must be above 0, one number or one a class, got {pos_weight!r}")

    def objective(params: PyTree, extra: PyTree, outputs: dict[str, jax.Array], label: jax.Array) -> tuple:
        logits, weight = outputs["logits"], jnp.asarray(numbers, jnp.float32)
        value = sigmoid_focal(logits, label, gamma=focal, smoothing=label_smoothing, pos_weight=weight)
        known = ~jnp.isnan(label)
        right = ((logits > 0) == (label > 0.5)) & known
        count = jnp.maximum(jnp.sum(known, -1), 1)
        return jnp.sum(value, -1) / count, {"accuracy": jnp.sum(right, -1) / count}

    def predictions(params: PyTree, extra: PyTree, outputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {
            "logits": outputs["logits"],
            "probabilities": jax.nn.sigmoid(at_least_float32(outputs["logits"])),
        }

    return supervised(model, contract, objective, predictions)
