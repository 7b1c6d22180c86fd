"""A trained network as one function of uint8 pixels, its weights and its input contract within."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxvision.config import as_config
from jaxvision.data.contract import InputContract
from jaxvision.deploy.inference import outputs_of
from jaxvision.errors import UserError
from jaxvision.ops.resize import evaluation_pixels
from jaxvision.training import build, restore

LARGEST = 2_000_000_000  # protobuf and flatbuffers count bytes in 32 bits, with a sign


def function(trained: restore.Trained, pixels: str) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """uint8 [B, H, W, C] -> the outputs that the task's kind of predictions has, as float32 [B, classes].

    In float32 whatever it was trained in, with averaged weights where the training kept some. `pixels`: of
    exported.INPUTS; for "crops" H and W are those of the contract. Raises UserError if a weight is not finite, or they
    are too many for a file.
    """
    own = as_config({**trained.config.to_dict(), "dtype": "float32"})
    task = build.task(own, len(trained.classes))
    params, extra = jax.tree.map(np.asarray, (jax.device_get(trained.params), jax.device_get(trained.extra)))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    if size > LARGEST:
        raise UserError(
            f"{trained.source} has {size / 1e9:.1f} GB of weights, and files of ONNX, StableHLO and LiteRT hold at "
            "most 2 GB: export safetensors, or use the workdir itself as --from"
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path({"params": params, "extra": extra}):
        if np.issubdtype(leaf.dtype, np.floating) and not np.isfinite(leaf).all():
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise UserError(f"{trained.source}: {name} holds values that are not finite: choose another --checkpoint")

    def run(images: jax.Array) -> dict[str, jax.Array]:
        made = evaluation_pixels(images, trained.contract) if pixels == "images" else images
        return outputs_of(task, task.predict(params, extra, {"image": made}))

    return run


def symbolic(trained: restore.Trained, pixels: str) -> Any:
    """The abstract input of `function`: any number of images, of any size where it resizes."""
    contract = trained.contract
    sides = "height, width" if pixels == "images" else f"{contract.height}, {contract.width}"
    return jax.ShapeDtypeStruct(jax.export.symbolic_shape(f"batch, {sides}, {contract.channels}"), np.uint8)


def one(contract: InputContract) -> Any:
    """The abstract input of a `function` of "crops": one image."""
    return jax.ShapeDtypeStruct((1, *contract.shape), np.uint8)
