"""mixup and cutmix: train on mixtures of two images and of their labels."""

from __future__ import annotations

from collections.abc import Callable

import jax

from jaxvision.config.ranges import NotNegative, Positive, Share
from jaxvision.ops import cutmix_images, mixup_images
from jaxvision.task import Batch, PyTree, Task, needs


@needs("soft", "mixes images and their labels")
def mixup(
    task: Task, *, classes: int, alpha: Positive = 0.2, probability: Share = 1.0, cutmix_alpha: NotNegative = 0.0
) -> Task:
    """Blend pairs of images; see `ops.mixup_images`. `probability`: share of (micro-)batches that are mixed.

    With `cutmix_alpha` above 0, half of those are mixed by `ops.cutmix_images` instead, as timm's `Mixup` has it, and
    with it DeiT, ConvNeXt, "ResNet strikes back" and MAE's fine-tuning.
    """
    if cutmix_alpha < 0:
        raise ValueError(f"mixup cutmix_alpha must be positive, or 0 for none, got {cutmix_alpha}")
    if not cutmix_alpha:
        return _mixing(task, mixup_images, "mixup", classes, alpha, probability)

    def either(key: jax.Array, images: jax.Array, mask: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
        key_mixup, key_cutmix, key_which = jax.random.split(key, 3)
        pasted = cutmix_images(key_cutmix, images, mask, cutmix_alpha)
        blended = mixup_images(key_mixup, images, mask, alpha)
        paste = jax.random.bernoulli(key_which)
        return jax.tree.map(lambda a, b: jax.numpy.where(paste, a, b), pasted, blended)

    return _mixing(task, either, "mixup", classes, alpha, probability)


@needs("soft", "mixes images and their labels")
def cutmix(task: Task, *, classes: int, alpha: Positive = 1.0, probability: Share = 1.0) -> Task:
    """Paste a box from the partner; see `ops.cutmix_images`. For batches that get this or mixup, see `mixup`."""
    return _mixing(task, cutmix_images, "cutmix", classes, alpha, probability)


def _mixing(task: Task, mix: Callable, name: str, classes: int, alpha: float, probability: float) -> Task:
    if alpha <= 0:
        raise ValueError(f"{name} alpha must be positive, got {alpha}")
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"{name} probability must be in [0, 1], got {probability}")
    soft = task.learns.soft if task.learns else None
    if soft is None:
        raise ValueError(f"{name}: the task learns no labels that can be mixed")

    def loss(params: PyTree, extra: PyTree, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple:
        # folded by name, so that two mixing wrappers around one task draw independently
        key_mix, key_use = jax.random.split(jax.random.fold_in(key, sum(map(ord, name))))
        labels = soft(batch["label"], classes)
        plain = batch["image"].astype("float32")
        mixed, own = mix(key_mix, plain, batch["mask"], alpha)
        use = jax.random.uniform(key_use) < probability
        image = jax.numpy.where(use, mixed, plain)
        own = jax.numpy.where(use, own, 1.0)[:, None]
        # what is not mixed keeps its labels, even if the partner's are unknown: 0 * NaN is NaN
        labels = jax.numpy.where(own == 1.0, labels, own * labels + (1.0 - own) * labels[::-1])
        mixture = {**batch, "image": image, "label": labels}
        return task.loss(params, extra, mixture, key=key, step=step)

    return task._replace(loss=loss)
