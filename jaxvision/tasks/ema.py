"""Evaluate with an exponential moving average of the weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxvision.config.ranges import Rate
from jaxvision.task import Batch, PyTree, Task


def ema(task: Task, *, decay: Rate = 0.9999, warmup: bool = True) -> Task:
    """Keeps average = d * average + (1 - d) * new, once an optimiser step, and predicts with it.

    Averaged are the parameters and extra["model"] (batch statistics), both under extra["ema"] in float32.
    With `warmup`, d = min(decay, (1 + step) / (10 + step)), so that the random start is forgotten at once
    (the rule of TensorFlow's ExponentialMovingAverage with num_updates). The counter is the step itself:
    a resumed run goes on exactly. Wrap adversarial training in ema, not ema in adversarial training: an
    attack must see the weights that learn.

    Raises ValueError if decay is not in [0, 1), and in `init` if the task has an extra["ema"] of its own.
    """
    if not 0.0 <= decay < 1.0:
        raise ValueError(f"ema decay must be in [0, 1), got {decay}")

    def init(key: jax.Array, batch: Batch, given: dict | None = None) -> tuple[PyTree, PyTree]:
        params, extra = task.init(key, batch, given)
        if "ema" in extra:
            raise ValueError("ema: the task averages its weights itself")
        # copies, since the step donates its buffers and two leaves must not share one
        average = jax.tree.map(jnp.copy, {"params": params, "model": extra["model"]})
        return params, {**extra, "ema": average}

    def after_step(params: PyTree, extra: PyTree, step: jax.Array) -> PyTree:
        extra = task.after_step(params, extra, step)
        rate = jnp.minimum(decay, (1.0 + step) / (10.0 + step)) if warmup else jnp.float32(decay)
        now = {"params": params, "model": extra["model"]}
        average = jax.tree.map(lambda a, b: rate * a + (1.0 - rate) * b, extra["ema"], now)
        return {**extra, "ema": average}

    def predict(params: PyTree, extra: PyTree, batch: Batch) -> dict[str, jax.Array]:
        return task.predict(extra["ema"]["params"], {**extra, "model": extra["ema"]["model"]}, batch)

    return task._replace(init=init, after_step=after_step, predict=predict)
