"""Adversarial training: learn on the worst images within epsilon of the real ones."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxvision.config.ranges import Depth, Epsilon, Positive
from jaxvision.task import Batch, PyTree, Task, needs


@needs("objective", "attacks what the task learns")
def adversarial(
    task: Task,
    *,
    epsilon: Epsilon = 4.0,
    steps: Depth = 1,
    step_size: Positive | None = None,
    random_start: bool = True,
) -> Task:
    """Replaces the images of the loss by adversarial ones; evaluation sees the real images. See `attack`."""
    check_attack(epsilon, steps, step_size)

    def loss(params: PyTree, extra: PyTree, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple:
        attacked = attack(
            task, params, extra, batch, jax.random.fold_in(key, 7),
            epsilon=epsilon, steps=steps, step_size=step_size, random_start=random_start,
        )  # fmt: skip
        return task.loss(params, extra, {**batch, "image": attacked}, key=key, step=step)

    return task._replace(loss=loss)


def attack(
    task: Task,
    params: PyTree,
    extra: PyTree,
    batch: Batch,
    key: jax.Array,
    *,
    epsilon: float,
    steps: int,
    step_size: float | None = None,
    random_start: bool = True,
) -> jax.Array:
    """Images float32[B, H, W, C] in 0..255 within epsilon of batch["image"] that raise the objective of `task.learns`.

    One step is FGSM (Goodfellow et al. 2015, https://arxiv.org/abs/1412.6572; with a random start, "fast"
    training of Wong et al. 2020, https://arxiv.org/abs/2001.03994), several are PGD (Madry et al. 2018,
    https://arxiv.org/abs/1706.06083). The gradient is taken through `task.predict`, in evaluation mode, so
    batch statistics neither move nor leak from one image to another.

    Args:
      epsilon: largest change of a pixel, in 255ths (4 is the "4/255" of the literature). Exactly kept for
        uint8 images; for float32 images up to the rounding of float32 (1.5e-5 of a level).
      steps: gradient steps.
      step_size: in 255ths; None means 1.25 * epsilon for one step with a random start (Wong et al.),
        epsilon for one step without, 2.5 * epsilon / steps for several (Madry et al.).
      random_start: start from a uniform point of the box, not from the image.
    """
    objective = task.learns.objective if task.learns else None
    if objective is None:
        raise ValueError(
            "an attack raises the objective of what the task learns, and this task learns nothing that has one"
        )
    # a multiple of 2^-15: then x - epsilon and x + epsilon of a uint8 x are exact in float32
    epsilon = math.floor(epsilon * 2**15) / 2**15
    if step_size is None:
        step_size = epsilon * (2.5 / steps if steps > 1 else 1.25 if random_start else 1.0)
    image = batch["image"].astype(jnp.float32)
    low, high = jnp.maximum(image - epsilon, 0.0), jnp.minimum(image + epsilon, 255.0)
    frozen = jax.lax.stop_gradient((params, extra))

    def goal(x: jax.Array) -> jax.Array:
        # a sum: each image's gradient is its own, whatever the batch holds
        return jnp.sum(objective(task.predict(*frozen, {**batch, "image": x}), batch))

    def ascend(x: jax.Array, _: Any) -> tuple[jax.Array, None]:
        return jnp.clip(x + step_size * jnp.sign(jax.grad(goal)(x)), low, high), None

    start = image
    if random_start:
        start = jnp.clip(image + jax.random.uniform(key, image.shape, minval=-epsilon, maxval=epsilon), low, high)
    attacked, _ = jax.lax.scan(ascend, start, length=steps)
    return jax.lax.stop_gradient(attacked)


def check_attack(epsilon: float, steps: int, step_size: float | None) -> None:
    if not 0.0 < epsilon <= 255.0:
        raise ValueError(f"epsilon is in 255ths of the pixel range and must be in (0, 255], got {epsilon}")
    if epsilon < 0.25:
        raise ValueError(
            f"epsilon is in 255ths of the pixel range: {epsilon:g} looks like a share of 0..1, give {255 * epsilon:g}"
        )
    if steps < 1:
        raise ValueError(f"an attack needs at least one step, got {steps}")
    if step_size is not None and step_size <= 0:
        raise ValueError(f"step_size must be positive, got {step_size}")
