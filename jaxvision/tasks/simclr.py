"""SimCLR: find the other view of an image among all views of the batch."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvision.config.ranges import Counts, Norm, Temperature
from jaxvision.data.contract import InputContract
from jaxvision.losses import nt_xent
from jaxvision.ops import masked_mean
from jaxvision.task import Batch, PyTree, Task, declares
from jaxvision.tasks.encoder import check_contrast, encoder, spread, views
from jaxvision.tasks.projector import Projector


@declares()
def simclr(
    model: nn.Module,
    contract: InputContract,
    *,
    temperature: Temperature = 0.1,
    widths: Counts = (2048, 128),
    norm: Norm = "batch",
) -> Task:
    """SimCLR of Chen et al. 2020, https://arxiv.org/abs/2002.05709: `losses.nt_xent` of the projections of two views.

    batch["image"] is uint8 [B, 2, H, W, C]; both views pass the network as one batch, as in the authors' code.
    `widths`: of the projector; `norm`: "batch" or "none" in it. Predicts "features" f32[B, D], those before the
    projector. Logs: those of `spread`, of the projections.

    The negatives are the global (micro-)batch: accumulation gives each row fewer.

    Raises ValueError for a temperature that is not positive; UserError, when compiled, for a batch without two views or
    of one image.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    net = encoder(model, contract, projector=Projector(widths, norm, "batch" if norm == "batch" else ""))

    def init(key: jax.Array, batch: Batch, given: dict[str, Any] | None = None) -> tuple[PyTree, PyTree]:
        return net.init(key, batch["image"], given)

    def loss(params: PyTree, extra: PyTree, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple:
        check_contrast(batch["mask"], "simclr")
        both = jnp.stack(views(batch, "simclr"), 1)  # image by image, so that each device keeps its rows
        made, extra = net.train(params, extra, both.reshape(-1, *both.shape[2:]), key)
        one, two = made["projector"][0::2], made["projector"][1::2]
        mask = batch["mask"]
        value = masked_mean(nt_xent(one, two, mask, temperature=temperature), mask)
        return value, (extra, spread(one, mask))

    def predict(params: PyTree, extra: PyTree, batch: Batch) -> dict[str, jax.Array]:
        return {"features": net.features(params, extra, batch["image"])}

    return Task(init, loss, predict)
