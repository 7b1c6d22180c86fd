"""Rotation prediction: by how many quarter turns was the image turned?"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvision.data.contract import InputContract
from jaxvision.losses import softmax_cross_entropy
from jaxvision.ops import masked_mean
from jaxvision.task import Batch, PyTree, Task, declares
from jaxvision.tasks.common import agreement
from jaxvision.tasks.encoder import encoder, spread
from jaxvision.tasks.projector import Projector


@declares()
def rotation(model: nn.Module, contract: InputContract) -> Task:
    """Rotation prediction of Gidaris et al. 2018, https://arxiv.org/abs/1803.07728.

    Each image comes in all four turns; the loss is the cross-entropy over the four.

    batch["image"] is [B, H, W, C] with H = W; the network sees 4 B images. A linear layer on the features, under
    params["head"], is dropped afterwards. Predicts "features" f32[B, D]. Logs: those of `spread`, of the features as
    they are, and `rotation_top1`.

    Worthless for images that look the same when turned, or that were taken from all sides.
    """
    net = encoder(model, contract, head=Projector((4,)))

    def init(key: jax.Array, batch: Batch, given: dict[str, Any] | None = None) -> tuple[PyTree, PyTree]:
        return net.init(key, batch["image"], given)

    def loss(params: PyTree, extra: PyTree, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple:
        image, mask = batch["image"], batch["mask"]
        turned = jnp.stack([jnp.rot90(image, k, axes=(1, 2)) for k in range(4)], 1)  # image by image: see simclr
        made, extra = net.train(params, extra, turned.reshape(-1, *image.shape[1:]), key)
        label = jnp.tile(jnp.arange(4), len(image))
        mask = jnp.repeat(mask, 4)
        logs = {"rotation_top1": masked_mean(agreement(made["head"], label).astype(jnp.float32), mask)}
        value = masked_mean(softmax_cross_entropy(made["head"], label), mask)
        return value, (extra, {**logs, **spread(made["features"][::4], batch["mask"])})

    def predict(params: PyTree, extra: PyTree, batch: Batch) -> dict[str, jax.Array]:
        return {"features": net.features(params, extra, batch["image"])}

    return Task(init, loss, predict)
