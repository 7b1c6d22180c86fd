"""TrainState and the one train step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxvision.runtime import sharding
from jaxvision.task import Batch, PyTree, Task


@flax.struct.dataclass
class TrainState:
    """State that training carries from one step to the next, and that a checkpoint holds."""

    step: jax.Array  # i32[], optimiser steps done
    params: PyTree  # float32
    extra: PyTree
    opt_state: PyTree


def init_state(task: Task, tx: optax.GradientTransformation, key: jax.Array, batch: Batch, given: Any) -> TrainState:
    """A fresh state; the optimiser's is made after loading, so that it sees the loaded parameters."""
    params, extra = task.init(key, batch, given)
    return TrainState(step=jnp.int32(0), params=params, extra=extra, opt_state=tx.init(params))


def make_step(
    task: Task, tx: optax.GradientTransformation, *, seed: int, accumulate: int = 1
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """(TrainState, batch) -> (TrainState, logs), pure; jit it with the state donated.

    Everything random in it is fold_in(key(seed), step), then fold_in of the micro-batch: nothing random is
    stored. Micro-batch a of `accumulate` holds the rows i with i % accumulate == a, so that each device's rows
    stay where they are. Losses and gradients are means over the micro-batches; logs too. Statistics in `extra`
    pass through the micro-batches in turn.

    Logs, f32[]: the task's, `loss`, `grad_norm` (before clipping), `param_norm` (after the update).
    Raises ValueError when traced if the batch is not divisible by `accumulate`.
    """

    def gradients(state: TrainState, extra: PyTree, batch: Batch, key: jax.Array) -> tuple:
        (loss, (extra, logs)), grads = jax.value_and_grad(task.loss, has_aux=True)(
            state.params, extra, batch, key=key, step=state.step
        )
        return extra, grads, {**logs, "loss": loss}

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(jnp.asarray(seed, jnp.uint32)), state.step)
        if accumulate == 1:
            extra, grads, logs = gradients(state, state.extra, batch, jax.random.fold_in(key, 0))
        else:
            extra, grads, logs = _accumulated(gradients, state, batch, key, accumulate)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        extra = task.after_step(params, extra, state.step)
        logs = {**logs, "grad_norm": optax.global_norm(grads), "param_norm": optax.global_norm(params)}
        return TrainState(state.step + 1, params, extra, opt_state), logs

    return step


def abstract_state(
    task: Task, tx: optax.GradientTransformation, batch: Batch, mesh: Mesh, rules: sharding.Rules = ()
) -> TrainState:
    """A fresh state's shapes, and where each leaf lies on the mesh. `batch`: an example, may be abstract; `rules`: of
    `sharding.state_shardings`."""
    state = jax.eval_shape(lambda k, b: init_state(task, tx, k, b, None), jax.random.key(0), batch)
    return sharding.with_shardings(state, mesh, rules)


def lower_step(
    step: Callable[..., tuple[TrainState, dict[str, jax.Array]]], state: TrainState, batch: Batch, hyper: Any
) -> jax.stages.Lowered:
    """(state, batch, hyper) -> (state, logs), to be compiled for the shapes and shardings of all three, which may be
    abstract. Each call takes the state's buffers."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None)).lower(state, batch, hyper)


def _accumulated(gradients: Callable, state: TrainState, batch: Batch, key: jax.Array, count: int) -> tuple:
    """Extra after all micro-batches; mean gradients and logs over them."""

    def split(rows: jax.Array) -> jax.Array:
        if rows.shape[0] % count:
            raise ValueError(f"a batch of {rows.shape[0]} rows cannot be split into {count} micro-batches")
        return rows.reshape(rows.shape[0] // count, count, *rows.shape[1:])

    parts = jax.tree.map(split, batch)

    def one(carry: tuple, a: jax.Array) -> tuple[tuple, None]:
        extra, total = carry
        micro = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, a, 1, keepdims=False), parts)
        extra, grads, logs = gradients(state, extra, micro, jax.random.fold_in(key, a))
        return (extra, jax.tree.map(jnp.add, total, (grads, logs))), None

    abstract = jax.eval_shape(gradients, state, state.extra, jax.tree.map(lambda x: x[:, 0], parts), key)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract[1:])
    (extra, total), _ = jax.lax.scan(one, (state.extra, zeros), jnp.arange(count))
    grads, logs = jax.tree.map(lambda x: x / count, total)
    return extra, grads, logs
