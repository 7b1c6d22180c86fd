"""Two networks that shall agree on two views of an image; what BYOL, SimSiam and MoCo v3 have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvision.data.contract import InputContract
from jaxvision.ops import masked_mean
from jaxvision.task import Batch, PyTree, Task
from jaxvision.tasks.encoder import Encoder, check_share, encoder, momentum_at, moved, spread, views
from jaxvision.tasks.projector import Projector


def siamese(
    model: nn.Module,
    contract: InputContract,
    pair_loss: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    *,
    name: str,
    projector: Projector,
    predictor: Projector,
    momentum: float | None = None,
    total_steps: int = 0,
    stop_gradient: bool = True,
) -> Task:
    """Siamese learning: the loss is the mean over the images of pair_loss(p1, z2, mask) + pair_loss(p2, z1, mask).

    p: predictor(projector(features)) of the network that learns, for each of the two views; z: the target's
    projections. The target is the network itself (`momentum` None), or its average under extra["target"], which
    `after_step` moves with a momentum that rises from `momentum` to 1. No gradient flows into z; `stop_gradient` False
    is the ablation that collapses: z are then the projections of the network itself, with their gradient.
    """
    if momentum is not None:
        check_share(f"{name} momentum", momentum)
    averaged = momentum is not None
    online = encoder(model, contract, projector=projector, predictor=predictor)
    target = encoder(model, contract, projector=projector)

    def init(key: jax.Array, batch: Batch, given: dict[str, Any] | None = None) -> tuple[PyTree, PyTree]:
        params, extra = online.init(key, batch["image"], given)
        if averaged:
            extra = {**extra, "target": _copy(params, extra)}
        return params, extra

    def loss(params: PyTree, extra: PyTree, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple:
        images, mask = views(batch, name), batch["mask"]
        keys = jax.random.split(key, 4)
        made = []
        for k, image in enumerate(images):
            outputs, extra = online.train(params, extra, image, keys[k])
            made.append(outputs)
        goals = [outputs["projector"] for outputs in made]
        if averaged and stop_gradient:
            goals, extra = _through(target, extra, images, keys[2:])
        if stop_gradient:
            goals = [jax.lax.stop_gradient(z) for z in goals]
        first, second = (outputs["predictor"] for outputs in made)
        value = masked_mean(pair_loss(first, goals[1], mask) + pair_loss(second, goals[0], mask), mask)
        return value, (extra, spread(made[0]["projector"], mask))

    def after_step(params: PyTree, extra: PyTree, step: jax.Array) -> PyTree:
        if momentum is None:
            return extra
        own = {part: params[part] for part in ("model", "projector")}
        new = moved(extra["target"]["params"], own, momentum_at(momentum, step, total_steps))
        return {**extra, "target": {**extra["target"], "params": new}}

    def predict(params: PyTree, extra: PyTree, batch: Batch) -> dict[str, jax.Array]:
        return {"features": online.features(params, extra, batch["image"])}

    return Task(init, loss, predict, after_step)


def _copy(params: PyTree, extra: PyTree) -> PyTree:
    """The target at the start: copies, since the step donates its buffers and two leaves must not share one."""
    own = {"params": {part: params[part] for part in ("model", "projector")}}
    return jax.tree.map(jnp.copy, {**own, "model": extra["model"], "projector": extra["projector"]})


def _through(target: Encoder, extra: PyTree, images: list[jax.Array], keys: jax.Array) -> tuple[list, PyTree]:
    """The target's projections; it normalises by the batch's statistics too, and keeps its own."""
    own, goals = extra["target"], []
    for image, key in zip(images, keys):
        outputs, own = target.train(own["params"], own, image, key)
        goals.append(outputs["projector"])
    return goals, {**extra, "target": own}
