"""Common parts of the factories: a network as pure functions, pixels normalised, loaded leaves put in place."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from jaxvision.data.contract import InputContract
from jaxvision.errors import nearest
from jaxvision.ops import masked_mean
from jaxvision.task import Batch, PyTree, Task


class Network(NamedTuple):
    """A flax module with its input contract, as functions of (params["model"], extra["model"], images)."""

    init: Callable[[jax.Array, jax.Array], tuple[PyTree, PyTree]]
    train: Callable[..., tuple[dict[str, jax.Array], PyTree]]  # also returns the new extra["model"]
    apply: Callable[..., dict[str, jax.Array]]  # evaluation mode


def network(model: nn.Module, contract: InputContract) -> Network:
    """The functions of a flax module with its input contract.

    Images come as uint8, or float32 in 0..255; they are normalised here, inside the compiled step.
    """

    def init(key: jax.Array, image: jax.Array) -> tuple[PyTree, PyTree]:
        variables = dict(_fresh(model, key, normalise(image, contract)))
        return variables.pop("params"), variables

    def train(params: PyTree, extra: PyTree, image: jax.Array, key: jax.Array) -> tuple[dict, PyTree]:
        outputs, new = model.apply(
            {"params": params, **extra},
            normalise(image, contract),
            train=True,
            mutable=list(extra),
            rngs={"dropout": key},
        )
        return outputs, new

    def apply(params: PyTree, extra: PyTree, image: jax.Array) -> Any:
        return model.apply({"params": params, **extra}, normalise(image, contract), train=False)

    return Network(init, train, apply)


def supervised(
    model: nn.Module,
    contract: InputContract,
    objective: Callable[..., tuple[jax.Array, dict[str, jax.Array]]],
    predictions: Callable[..., dict[str, jax.Array]],
    *,
    params: PyTree | None = None,
    extra: PyTree | None = None,
) -> Task:
    """The task of one network that learns what its labels say; the loss is the mean over the samples.

    So accumulation changes it only through BatchNorm, whose statistics are those of the (micro-)batch.

    Args:
      objective: (params, extra, outputs of the network, label [B, ...]) -> (loss [B], logs: dict[str, [B]]).
      predictions: (params, extra, outputs of the network) -> dict[str, array [B, ...]].
      params, extra: what the task has beside the network, as it begins.
    """
    net = network(model, contract)
    beside = {"params": params or {}, "extra": extra or {}}

    def init(key: jax.Array, batch: Batch, given: dict[str, Any] | None = None) -> tuple[PyTree, PyTree]:
        fresh = dict(zip(("params", "extra"), net.init(key, batch["image"])))
        both = {part: {"model": fresh[part], **jax.tree.map(jnp.array, beside[part])} for part in fresh}
        made = {part: overlay(both[part], given_part(given, part), part) for part in both}
        return made["params"], made["extra"]

    def loss(params: PyTree, extra: PyTree, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple:
        outputs, stats = net.train(params["model"], extra["model"], batch["image"], key)
        value, logs = objective(params, extra, outputs, batch["label"])
        mask = batch["mask"]
        logs = {name: masked_mean(rows.astype(jnp.float32), mask) for name, rows in logs.items()}
        return masked_mean(value, mask), ({**extra, "model": stats}, logs)

    def predict(params: PyTree, extra: PyTree, batch: Batch) -> dict[str, jax.Array]:
        outputs = net.apply(params["model"], extra["model"], batch["image"])
        return {**predictions(params, extra, outputs), "features": outputs["features"]}

    return Task(init, loss, predict)


def agreement(logits: jax.Array, label: jax.Array) -> jax.Array:
    """bool[B]: whether the largest of the logits [B, C] is the label, int32[B] (of soft ones [B, C] the largest)."""
    return jnp.argmax(logits, -1) == (label if label.ndim == 1 else jnp.argmax(label, -1))


def check_choices(**options: tuple[str, tuple[str, ...]]) -> None:
    """ValueError unless each option, name=(value, what there is), has a value that there is."""
    for name, (value, known) in options.items():
        if value not in known:
            raise ValueError(f"{name} is {value!r}: {nearest(str(value), known)}")


def check_smoothing(value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1), got {value}")


def check_focal(value: float) -> None:
    if not value >= 0.0:
        raise ValueError(f"focal is the exponent of the focal loss, 0 for none: it must be at least 0, got {value}")


@partial(jax.jit, static_argnums=0, inline=True)
def _fresh(model: nn.Module, key: jax.Array, image: jax.Array) -> PyTree:
    """Compiled form of `init`, of which jax remembers the trace.

    A command asks for a network's shapes several times, before it loads weights and after, and tracing a deep one takes
    seconds.
    """
    return model.init({"params": key, "dropout": key}, image, train=False)


def normalise(image: jax.Array, contract: InputContract) -> jax.Array:
    """(pixel / 255 - mean) / std of the contract; uint8 or float32 [B, H, W, C] to float32."""
    mean = 255.0 * jnp.asarray(contract.mean, jnp.float32)
    std = 255.0 * jnp.asarray(contract.std, jnp.float32)
    return (image.astype(jnp.float32) - mean) / std


def overlay(fresh: PyTree, given: PyTree, where: str) -> PyTree:
    """`fresh` with the leaves that `given` has. ValueError on a leaf that does not fit: nothing is cast or cut."""
    flat = traverse_util.flatten_dict(fresh, sep="/", keep_empty_nodes=True)
    for name, leaf in traverse_util.flatten_dict(given, sep="/").items():
        if name not in flat:
            raise ValueError(f"loaded leaf {where}/{name} has no place in this task")
        if flat[name].shape != leaf.shape or flat[name].dtype != leaf.dtype:
            raise ValueError(
                f"loaded leaf {where}/{name} is {leaf.dtype}{list(leaf.shape)}, "
                f"the network has {flat[name].dtype}{list(flat[name].shape)}"
            )
        flat[name] = jnp.asarray(leaf)
    return traverse_util.unflatten_dict(flat, sep="/")


def given_part(given: dict[str, Any] | None, part: str) -> PyTree:
    return (given or {}).get(part, {})
