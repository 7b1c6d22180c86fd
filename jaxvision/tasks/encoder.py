"""Common parts of the self-supervised tasks: a network without its last layer, heads behind it, views, averages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvision.data.contract import InputContract
from jaxvision.errors import UserError
from jaxvision.losses import normalised
from jaxvision.task import Batch, PyTree
from jaxvision.tasks.common import given_part, network, overlay


class Encoder(NamedTuple):
    """A network and its heads as functions of (params, extra), which have a part for each: "model", "projector", ...

    init: (key, images, given) -> (params, extra), loaded leaves put in place.
    train: (params, extra, images, key) -> (outputs, extra with new statistics); outputs: "features" and, by its name,
      what each head gives.
    features: (params, extra, images) -> float32[B, D], in evaluation mode.
    """

    init: Callable[..., tuple[PyTree, PyTree]]
    train: Callable[..., tuple[dict[str, jax.Array], PyTree]]
    features: Callable[..., jax.Array]


def encoder(model: nn.Module, contract: InputContract, **heads: nn.Module) -> Encoder:
    """The functions of a network and the heads behind it.

    `heads` follow one another: the first takes the features, each other what the one before it gives.

    A head is a module of float[B, D] with an attribute `train`.
    """
    net = network(model.clone(classes=0), contract)

    def init(key: jax.Array, image: jax.Array, given: dict[str, Any] | None = None) -> tuple[PyTree, PyTree]:
        image = image[:, 0] if image.ndim == 5 else image  # one of several views
        params, extra = {}, {}
        params["model"], extra["model"] = net.init(key, image)
        x = jax.eval_shape(net.apply, params["model"], extra["model"], image)["features"]
        for k, (name, head) in enumerate(heads.items()):
            x, variables = head.clone(train=False).init_with_output(
                jax.random.fold_in(key, k + 1), jnp.zeros(x.shape, x.dtype)
            )
            variables = dict(variables)
            params[name], extra[name] = variables.pop("params"), variables
        return (
            overlay(params, given_part(given, "params"), "params"),
            overlay(extra, given_part(given, "extra"), "extra"),
        )

    def train(params: PyTree, extra: PyTree, image: jax.Array, key: jax.Array) -> tuple[dict, PyTree]:
        outputs, stats = net.train(params["model"], extra["model"], image, key)
        made, new = {"features": outputs["features"]}, {**extra, "model": stats}
        x = outputs["features"]
        for name, head in heads.items():
            variables = {"params": params[name], **extra[name]}
            x, new[name] = head.clone(train=True).apply(variables, x, mutable=list(extra[name]))
            made[name] = x
        return made, new

    def features(params: PyTree, extra: PyTree, image: jax.Array) -> jax.Array:
        return net.apply(params["model"], extra["model"], image)["features"]

    return Encoder(init, train, features)


def without_drops(model: nn.Module) -> nn.Module:
    """The network without dropout and stochastic depth.

    A teacher's goals are not to be noisy.
    """
    drops: dict[str, Any] = {field: 0.0 for field in ("dropout", "drop_path") if hasattr(model, field)}
    return model.clone(**drops)


def views(batch: Batch, task: str, count: int = 2) -> list[jax.Array]:
    """The first `count` views, each [B, H, W, C], of a batch that ("multi_view", ...) made. Raises UserError."""
    image = batch["image"]
    made = image.shape[1] if image.ndim == 5 else 1
    if made < count:
        raise UserError(
            f"task {task} compares {count} views of an image, and data.transforms give {made}: "
            'end them with ("multi_view", {...})'
        )
    return [image[:, k] for k in range(count)]


def check_contrast(mask: jax.Array, task: str) -> None:
    """Raises UserError if there is nobody to be told apart from."""
    if len(mask) < 2:
        raise UserError(
            f"task {task} tells each image from the others of its batch, and batch_size / accumulate is {len(mask)}: "
            "make it at least 2 (hundreds are usual)"
        )


def momentum_at(base: float, step: jax.Array, total_steps: int) -> jax.Array:
    """Momentum of a teacher, from `base` to 1 over the run.

    1 - (1 - base) (cos(pi step / total) + 1) / 2 (BYOL, section 3.3); constant where the length of the run is not known
    (0).
    """
    if not total_steps:
        return jnp.float32(base)
    done = jnp.minimum(jnp.asarray(step, jnp.float32) * (1.0 / total_steps), 1.0)  # as in optim.schedule
    return 1 - (1 - base) * (jnp.cos(jnp.pi * done) + 1) / 2


def moved(average: PyTree, new: PyTree, momentum: jax.Array) -> PyTree:
    """momentum * average + (1 - momentum) * new, leaf by leaf."""
    return jax.tree.map(lambda a, b: momentum * a + (1 - momentum) * b, average, new)


def check_share(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must be in [0, 1], got {value}")


COLLAPSED = 0.1
LOW_RANK = 2.0


def spread(embedding: jax.Array, mask: jax.Array, *, std_below: float = COLLAPSED) -> dict[str, jax.Array]:
    """Whether embeddings float[B, D] of different images differ: logs, f32[].

    `feature_std`: standard deviation of the rows at length 1, mean over the dimensions, times sqrt(D): 1 for rows that
      point everywhere alike, 0 once all are the same (Chen and He 2020, https://arxiv.org/abs/2011.10566, section 4.1).
    `participation_ratio`: (sum of eigenvalues)^2 / sum of their squares, of the rows' covariance: how many dimensions
      they fill alike. It needs no decomposition. At most min(B - 1, D); 0 where all rows are the same. (The metrics of
      features measure the same by an entropy, `effective_rank`, which is larger.)
    `alarm_collapse`: 1 where feature_std is below `std_below`, or participation_ratio below LOW_RANK (and below a
      quarter of what it could be): a batch normalisation at the end keeps the deviation up while all rows come to lie
      on one line, "dimensional collapse" (Jing et al. 2021, https://arxiv.org/abs/2110.09348).
    """
    there = mask[:, None]
    rows = jnp.where(there, jax.lax.stop_gradient(normalised(embedding)), 0)
    count = jnp.maximum(jnp.sum(mask), 1)
    centred = jnp.where(there, rows - jnp.sum(rows, 0) / count, 0)
    variance = jnp.sum(centred**2, 0) / count
    std = jnp.mean(jnp.sqrt(variance)) * jnp.sqrt(jnp.float32(rows.shape[1]))
    gram = centred.T @ centred if rows.shape[1] <= rows.shape[0] else centred @ centred.T
    ratio = jnp.sum(centred**2) ** 2 / jnp.maximum(jnp.sum(gram**2), 1e-20)
    low = jnp.minimum(LOW_RANK, 0.25 * jnp.minimum(count - 1, rows.shape[1]))
    alarm = ((std < std_below) | (ratio < low)).astype(jnp.float32)
    return {"feature_std": std, "participation_ratio": ratio, "alarm_collapse": alarm}
