"""Fine-tuning that stays near the weights it starts from."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import traverse_util

from jaxvision.config.ranges import NotNegative
from jaxvision.task import Batch, PyTree, Task
from jaxvision.tasks.common import given_part


def l2_sp(task: Task, *, strength: NotNegative = 0.1, head_strength: NotNegative = 0.01) -> Task:
    """Adds strength / 2 * ||w - w0||^2 over the leaves that were loaded, head_strength / 2 * ||w||^2 over the others.

    L2-SP of Li et al. 2018, https://arxiv.org/abs/1802.01483, whose alpha and beta these are. w0 is what `init` loaded;
    the others are the head that starts afresh, and what lies beside the network. It takes the place of weight decay:
    set optim.weight_decay = 0. Logs the sum that it adds as `l2_sp`.

    extra["anchor"] holds {"start": w0, or 0 for what was not loaded, "loaded": bool[] a leaf}, both like `params`: it
    is saved with a checkpoint, so that a resumed run is drawn to the same place.

    Raises ValueError for a negative strength.
    """
    if strength < 0 or head_strength < 0:
        raise ValueError(f"l2_sp: strengths must be at least 0, got {strength=}, {head_strength=}")

    def init(key: jax.Array, batch: Batch, given: dict | None = None) -> tuple[PyTree, PyTree]:
        params, extra = task.init(key, batch, given)
        loaded = traverse_util.flatten_dict(given_part(given, "params"), sep="/")
        flat = traverse_util.flatten_dict(params, sep="/")
        # the structure must not depend on what was loaded: shapes are asked for without anything loaded
        start = {n: jnp.copy(leaf) if n in loaded else jnp.zeros_like(leaf) for n, leaf in flat.items()}
        known = {n: jnp.asarray(n in loaded) for n in flat}
        anchor = {
            "start": traverse_util.unflatten_dict(start, sep="/"),
            "loaded": traverse_util.unflatten_dict(known, sep="/"),
        }
        return params, {**extra, "anchor": anchor}

    def loss(params: PyTree, extra: PyTree, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple:
        value, (after, logs) = task.loss(params, extra, batch, key=key, step=step)

        def pull(w: jax.Array, start: jax.Array, loaded: jax.Array) -> jax.Array:
            return jnp.where(loaded, strength, head_strength) / 2 * jnp.sum(jnp.square(w - start))

        anchor = extra["anchor"]
        total = sum(jax.tree.leaves(jax.tree.map(pull, params, anchor["start"], anchor["loaded"])))
        return value + total, (after, {**logs, "l2_sp": total})

    return task._replace(init=init, loss=loss)
