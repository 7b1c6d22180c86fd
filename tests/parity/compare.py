"""The same weights and pixels through their network and ours: logits, every stage, and where they part."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxvision import models
from jaxvision.weights import torch
from tests.parity import torch_side

# Sums before a norm carry the float32 rounding of every layer before them: 1.65e-4 after the 150 of resnetv2_152x2,
# whose logits differ by 4e-5. What is wrong differs by 1e-1.
STAGES = 3e-4


def leaves_of(model, size: int) -> dict:
    """Abstract leaves by name."""
    image = jnp.zeros((1, size, size, 3))
    variables = jax.eval_shape(lambda key: model.init(key, image, train=False), jax.random.key(0))
    return traverse_util.flatten_dict(variables, sep="/")


def variables_of(leaves: dict) -> dict:
    return traverse_util.unflatten_dict(leaves, sep="/")


def convert(theirs, model, origin, size: int) -> dict:
    """Our leaves of their network's state dict; all of both must be accounted for."""
    want = leaves_of(model, size)
    got = torch.from_state_dict(torch_side.state(theirs), want, origin, model)
    assert not got.unused, f"of no use here: {got.unused}"
    assert got.leaves.keys() == want.keys(), f"missing there: {sorted(want.keys() - got.leaves.keys())}"
    wrong = {k: (v.shape, want[k].shape) for k, v in got.leaves.items() if v.shape != want[k].shape}
    assert not wrong, f"of another shape: {wrong}"
    return got.leaves


def check(library: str, name: str, size: int, options: dict | None = None, ours_options: dict | None = None) -> float:
    """The largest difference of the logits as a share of their scale; raises AssertionError above 1e-4, or above STAGES
    for a stage's output, with a report of the modules in their order. `options` go to their factory, `ours_options` to
    ours."""
    origin = models.origins(name)[library]
    theirs = torch_side.make(library, origin.names[name], **(options or {}))
    model = getattr(models, name)(classes=1000, **(ours_options or {}))
    stages = origin.stages(model) if callable(origin.stages) else origin.stages
    leaves = convert(theirs, model, origin, size)
    image = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
    want = torch_side.outputs(theirs, image, list(stages.values()))
    got = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables_of(leaves), image)
    got = {k: np.asarray(v) for k, v in got.items()}
    worst = {"logits": difference(got["logits"], want["logits"])}
    for ours, module in stages.items():
        assert module in want, f"{module} is no module of theirs, or gave no tensor"
        worst[ours] = difference(got[ours], like(want[module], got[ours], origin))
    if worst["logits"] > 1e-4 or max(worst.values()) > STAGES:
        raise AssertionError(f"{library} {name} at {size} px: {worst}\n{report(theirs, model, origin, leaves, image)}")
    return worst["logits"]


def like(theirs: np.ndarray, ours: np.ndarray, origin) -> np.ndarray:
    if theirs.ndim == 4 and not origin.channels_last:
        theirs = theirs.transpose(0, 2, 3, 1)
    return theirs.reshape(ours.shape) if theirs.size == ours.size else theirs


def difference(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape != b.shape:
        return float("inf")
    return float(np.abs(a - b).max() / np.abs(b).max())


def report(theirs, model, origin, leaves, image) -> str:
    """A line for each module of ours that has a counterpart, in the order in which they ran."""
    variables = variables_of(leaves)
    _, state = model.apply(variables, image, train=False, capture_intermediates=True, mutable=["intermediates"])
    mine = {
        "/".join(path[:-1]): np.asarray(value[0])
        for path, value in traverse_util.flatten_dict(state["intermediates"]).items()
        if isinstance(value[0], jax.Array)
    }
    names = {path: torch.torch_name(f"params/{path}/kernel", origin).removesuffix(".weight") for path in mine}
    seen = torch_side.outputs(theirs, image, list(names.values()))
    order = list(seen)
    lines = []
    for path, name in sorted(names.items(), key=lambda item: order.index(item[1]) if item[1] in seen else -1):
        if name in seen:
            other = like(seen[name], mine[path], origin)
            lines.append(f"{difference(mine[path], other):.2e}  {path} {mine[path].shape}  {name} {other.shape}")
    return "\n".join(lines)
