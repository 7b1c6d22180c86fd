"""What the factories share: a network as pure functions, pixels normalised, loaded leaves put in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from jaxvision.data.contract import InputContract
from jaxvision.task import PyTree


class Network(NamedTuple):
    """A flax module with its input contract, as functions of (params["model"], extra["model"], images)."""

    init: Callable[[jax.Array, jax.Array], tuple[PyTree, PyTree]]
    train: Callable[..., tuple[dict[str, jax.Array], PyTree]]  # also returns the new extra["model"]
    apply: Callable[..., dict[str, jax.Array]]  # evaluation mode


def network(model: nn.Module, contract: InputContract) -> Network:
    """Images come as uint8, or float32 in 0..255; they are normalised here, inside the compiled step."""

    def init(key: jax.Array, image: jax.Array) -> tuple[PyTree, PyTree]:
        variables = dict(model.init({"params": key, "dropout": key}, normalise(image, contract), train=False))
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
