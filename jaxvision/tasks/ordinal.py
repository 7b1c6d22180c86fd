"""One class an image, of classes that have an order."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxvision import targets
from jaxvision.data.contract import InputContract
from jaxvision.losses import ordinal_cross_entropy, ordinal_log_probabilities
from jaxvision.ops import at_least_float32
from jaxvision.task import PyTree, Task, declares
from jaxvision.tasks.common import agreement, supervised


@declares(targets.class_)
def ordinal(model: nn.Module, contract: InputContract, *, classes: int) -> Task:
    """CORAL: the network's one output plus K - 1 biases answer whether the label is above class 0, 1, ..., K - 2.

    batch["label"] is int32[B], or soft float32[B, K] from a wrapper; the classes count in the order that the source has
    them in, which is that of their names unless a class list says otherwise. Loss: ordinal_cross_entropy, mean over the
    samples. Predicts "logits" f32[B, K], the log-probabilities of the classes, and "features" f32[B, D]. Logs `loss`,
    `top1` and `mae`, the mean distance in ranks.

    The largest of the probabilities may lag behind the rank that half the questions decide, which `mae` and the metric
    `ordinal` judge: the biases part slowly.

    The biases fall by construction: params["thresholds"] f32[K - 1] holds the first and then, through softplus, the
    steps down from each to the next. (The paper proves that the best biases are in order; here all are, so the
    probabilities are never negative.) They begin where all classes are equally likely at an output of 0.

    Source: Cao et al. 2019, https://arxiv.org/abs/1901.07884. Raises ValueError for fewer than 3 classes.
    """
    if classes < 3:
        raise ValueError(f"ordinal is for 3 or more classes, there are {classes}: take binary or classification")
    odds = np.arange(classes - 1, 0, -1) / np.arange(1, classes)
    start = np.concatenate([np.log(odds[:1]), np.log(np.expm1(-np.diff(np.log(odds))))]).astype(np.float32)

    def questions(params: PyTree, outputs: dict[str, jax.Array]) -> jax.Array:
        """f32[B, K - 1]: log-odds that the label is above class k."""
        thresholds = params["thresholds"]
        down = jnp.cumsum(jax.nn.softplus(thresholds[1:]))
        biases = thresholds[0] - jnp.concatenate([jnp.zeros(1), down])
        return at_least_float32(outputs["logits"]) + biases

    def objective(params: PyTree, extra: PyTree, outputs: dict[str, jax.Array], label: jax.Array) -> tuple:
        logits = questions(params, outputs)
        hard = label if label.ndim == 1 else jnp.argmax(label, -1)
        distance = jnp.abs(jnp.sum(logits > 0, -1) - hard)
        return ordinal_cross_entropy(logits, label), {
            "top1": agreement(ordinal_log_probabilities(logits), label),
            "mae": distance,
        }

    def predictions(params: PyTree, extra: PyTree, outputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {"logits": ordinal_log_probabilities(questions(params, outputs))}

    return supervised(model.clone(classes=1), contract, objective, predictions, params={"thresholds": start})
