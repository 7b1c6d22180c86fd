"""Linear evaluation: how good are features that do not move?"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvision import targets
from jaxvision.data.contract import InputContract
from jaxvision.losses import softmax_cross_entropy
from jaxvision.ops import at_least_float32, masked_mean
from jaxvision.task import Batch, PyTree, Task, declares
from jaxvision.tasks.common import agreement, given_part, network, overlay

_EPSILON, _MOMENTUM = 1e-6, 0.9


@declares(targets.class_)
def linear_probe(model: nn.Module, contract: InputContract, *, classes: int, norm: bool = False) -> Task:
    """A linear layer on the network's "features"; predicts "logits" f32[B, C], "features" f32[B, D].

    The network, without a head of its own, runs in evaluation mode and never moves: no gradient, no decay, no batch
    statistics. It lies under params["model"] as everywhere, so that it loads, is evaluated and shared as any other;
    `Task.frozen` keeps the optimiser from it. The layer is params["head"]: kernel f32[D, C] from N(0, 0.01), bias 0.

    norm: features are first normalised by the batch's statistics, without scale and offset, as He et al. 2021 (MAE,
      https://arxiv.org/abs/2111.06377, appendix A.1) do; evaluation takes the running ones, extra["head"]. They are
      those of the (micro-)batch, biased.

    batch["label"] is int32[B], or soft float32[B, C] from a wrapper. Logs `loss` and `top1`.
    """
    net = network(model.clone(classes=0), contract)

    def init(key: jax.Array, batch: Batch, given: dict[str, Any] | None = None) -> tuple[PyTree, PyTree]:
        params, extra = net.init(key, batch["image"])
        width = jax.eval_shape(net.apply, params, extra, batch["image"])["features"].shape[-1]
        kernel = 0.01 * jax.random.normal(jax.random.fold_in(key, 1), (width, classes))
        params = {"model": params, "head": {"kernel": kernel, "bias": jnp.zeros(classes)}}
        extra = {"model": extra}
        if norm:
            extra["head"] = {"mean": jnp.zeros(width), "var": jnp.ones(width)}
        return (
            overlay(params, given_part(given, "params"), "params"),
            overlay(extra, given_part(given, "extra"), "extra"),
        )

    def features_of(params: PyTree, extra: PyTree, batch: Batch) -> jax.Array:
        return at_least_float32(net.apply(params["model"], extra["model"], batch["image"])["features"])

    def linear(params: PyTree, features: jax.Array, statistics: PyTree) -> jax.Array:
        if statistics is not None:
            features = (features - statistics["mean"]) * jax.lax.rsqrt(statistics["var"] + _EPSILON)
        return features @ params["head"]["kernel"] + params["head"]["bias"]

    def loss(params: PyTree, extra: PyTree, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple:
        label, mask = batch["label"], batch["mask"]
        features = jax.lax.stop_gradient(features_of(params, extra, batch))
        statistics = _statistics(features, mask) if norm else None
        logits = linear(params, features, statistics)
        if norm:
            moved = jax.tree.map(lambda a, b: _MOMENTUM * a + (1 - _MOMENTUM) * b, extra["head"], statistics)
            extra = {**extra, "head": moved}
        value = masked_mean(softmax_cross_entropy(logits, label), mask)
        return value, (extra, {"top1": masked_mean(agreement(logits, label).astype(jnp.float32), mask)})

    def predict(params: PyTree, extra: PyTree, batch: Batch) -> dict[str, jax.Array]:
        features = features_of(params, extra, batch)
        return {"logits": linear(params, features, extra.get("head")), "features": features}

    return Task(init, loss, predict, frozen=("^model/",))


def _statistics(features: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Mean and biased variance f32[D] over the rows that are no padding."""
    count = jnp.maximum(jnp.sum(mask), 1)
    mean = jnp.sum(jnp.where(mask[:, None], features, 0), 0) / count
    var = jnp.sum(jnp.where(mask[:, None], jnp.square(features - mean), 0), 0) / count
    return {"mean": mean, "var": var}
