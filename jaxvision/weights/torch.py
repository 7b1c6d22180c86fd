"""Flax variables to torch state dicts and back, by the rules of a `models.origin.Origin`. Numpy only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxvision.models.origin import Origin

_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "mean": "running_mean", "var": "running_var"}
_COUNTER = "num_batches_tracked"


def torch_name(leaf: str, origin: Origin) -> str:
    """torch's name of our "params/layer1_0/conv1/kernel" or "batch_stats/layer1_0/bn1/mean"."""
    *path, last = leaf.split("/")[1:]
    name = ".".join([*path, _LEAVES.get(last, last)])
    for pattern, replacement in origin.rules:
        name = re.sub(pattern, replacement, name)
    return name


def to_torch(leaf: str, array: np.ndarray, origin: Origin) -> np.ndarray:
    """The array in torch's layout, contiguous."""
    if leaf.endswith("/kernel"):
        array = array.transpose((3, 2, 0, 1)) if array.ndim == 4 else array.transpose()
    name = torch_name(leaf, origin)
    for pattern, shape in origin.shapes:
        if re.search(pattern, name):
            array = array.reshape(shape)
    return np.ascontiguousarray(array)


def torch_shape(leaf: str, shape: tuple[int, ...], origin: Origin) -> tuple[int, ...]:
    """The shape of a leaf there."""
    return to_torch(leaf, np.broadcast_to(np.float32(0), shape), origin).shape


def to_flax(leaf: str, array: np.ndarray, shape: tuple[int, ...], origin: Origin) -> np.ndarray:
    """The inverse of `to_torch`; `shape` is ours, or None in the places that may differ (there: as theirs)."""
    if any(re.search(pattern, torch_name(leaf, origin)) for pattern, _ in origin.shapes):
        array = array.reshape(shape)
    if leaf.endswith("/kernel"):
        array = array.transpose((2, 3, 1, 0)) if array.ndim == 4 else array.transpose()
    return np.ascontiguousarray(array)


class Converted(NamedTuple):
    """A state dict, taken apart. Every tensor of it is in one of the three."""

    leaves: dict[str, np.ndarray]  # ours: arrays in our layout, of whatever size the file has
    unused: list[str]  # theirs, that no leaf of ours wants
    regenerated: list[str]  # theirs, counters and index buffers: made again when they are wanted


def from_state_dict(state: Mapping[str, np.ndarray], want: Mapping[str, Any], origin: Origin, model: Any) -> Converted:
    """Leaves of ours, made from a state dict.

    Args:
      state: name there to array.
      want: our leaves, "params/..." and "batch_stats/...", to something with a `shape`.
    """
    buffers = origin.buffers(model) if origin.buffers else {}
    leaves, used = {}, set()
    for leaf, spec in want.items():
        name = torch_name(leaf, origin)
        if name in state:
            leaves[leaf] = to_flax(leaf, np.asarray(state[name]), tuple(spec.shape), origin)
            used.add(name)
    rest = sorted(state.keys() - used)
    regenerated = [name for name in rest if name in buffers or name.endswith("." + _COUNTER)]
    return Converted(leaves, [name for name in rest if name not in regenerated], regenerated)


def to_state_dict(leaves: Mapping[str, np.ndarray], origin: Origin, model: Any) -> dict[str, np.ndarray]:
    """State dict of our leaves, counters (0) and index buffers included."""
    state: dict[str, np.ndarray] = {}
    for leaf, array in leaves.items():
        name = torch_name(leaf, origin)
        if name in state:
            raise ValueError(f"two leaves are called {name} there, one of them is {leaf}")
        state[name] = to_torch(leaf, np.asarray(array), origin)
        if name.endswith(".running_mean"):
            state[name.removesuffix("running_mean") + _COUNTER] = np.zeros((), np.int64)
    return {**state, **(origin.buffers(model) if origin.buffers else {})}
