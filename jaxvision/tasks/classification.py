"""One class an image."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvision.data.contract import InputContract
from jaxvision.losses import softmax_cross_entropy
from jaxvision.ops import masked_mean
from jaxvision.task import Batch, PyTree, Task
from jaxvision.tasks.common import given_part, network, overlay


def classification(model: nn.Module, contract: InputContract, *, label_smoothing: float = 0.0) -> Task:
    """Softmax cross-entropy, mean over the samples; predicts "logits" f32[B, C], "features" f32[B, D].

    batch["label"] is int32[B], or soft float32[B, C] from a wrapper. Logs `loss` and `top1` (for soft labels:
    agreement with the largest). The mean is over samples, so accumulation changes it only through BatchNorm,
    whose statistics are those of the (micro-)batch.

    Raises ValueError if label_smoothing is not in [0, 1).
    """
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
    net = network(model, contract)

    def init(key: jax.Array, batch: Batch, given: dict[str, Any] | None = None) -> tuple[PyTree, PyTree]:
        params, extra = net.init(key, batch["image"])
        return (
            overlay({"model": params}, given_part(given, "params"), "params"),
            overlay({"model": extra}, given_part(given, "extra"), "extra"),
        )

    def loss(params: PyTree, extra: PyTree, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple:
        outputs, stats = net.train(params["model"], extra["model"], batch["image"], key)
        logits, label, mask = outputs["logits"], batch["label"], batch["mask"]
        value = masked_mean(softmax_cross_entropy(logits, label, smoothing=label_smoothing), mask)
        hard = label if label.ndim == 1 else jnp.argmax(label, -1)
        logs = {"top1": masked_mean((jnp.argmax(logits, -1) == hard).astype(jnp.float32), mask)}
        return value, ({**extra, "model": stats}, logs)

    def predict(params: PyTree, extra: PyTree, batch: Batch) -> dict[str, jax.Array]:
        outputs = net.apply(params["model"], extra["model"], batch["image"])
        return {name: outputs[name] for name in ("logits", "features")}

    return Task(init, loss, predict)
