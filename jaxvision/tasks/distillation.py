"""Learn what a trained network says."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvision import targets
from jaxvision.config.ranges import NotNegative, Temperature
from jaxvision.data.contract import InputContract
from jaxvision.losses import soft_target_divergence, softmax_cross_entropy
from jaxvision.ops import masked_mean
from jaxvision.task import Batch, PyTree, Task, declares
from jaxvision.tasks.classification import classification
from jaxvision.tasks.common import agreement, network


@declares(targets.class_)
def distillation(
    model: nn.Module,
    contract: InputContract,
    teaching: Task | None = None,
    *,
    teacher: str = "",
    temperature: Temperature = 1.0,
    alpha: NotNegative = 0.0,
) -> Task:
    """Distillation from a teacher: the loss is T^2 * KL(teacher || student) at `temperature` T.

    To it is added `alpha` times cross-entropy with the labels. Both are means over the samples. Predicts "logits"
    f32[B, C] and "features" f32[B, D] of the student, as `classification`.

    The defaults are Beyer et al. 2021, "a good teacher is patient and consistent" (https://arxiv.org/abs/2106.05237):
    the teacher sees the very pixels that the student sees, so the same crop and, with the wrapper, the same mixup; the
    labels do not count. Hinton et al. 2015 (https://arxiv.org/abs/1503.02531): temperature=4.0, alpha=1.0, for example.
    The teacher runs in evaluation mode and normalises the pixels by its own mean and std.

    Logs `loss`, `divergence` (the T^2 * KL), `top1` (the student's), and `agreement`: the share of samples on which
    student and teacher name the same class.

    Args:
      teaching: the trained task whose "logits" are learnt. Its weights are extra["teacher"] = {"params", "extra"},
        which `given` brings; they are sharded and saved with every checkpoint, so that a resumed run has the same
        teacher even if `teacher` now names other weights. None where nothing is trained: evaluation, prediction and
        export have no teacher, read none of its leaves and need none of its files.
      teacher: where its weights come from, whatever config.init takes; the program loads them.

    Raises ValueError if `teacher` is empty, temperature is not positive or alpha is negative.
    """
    if not teacher:
        raise ValueError('name a teacher, as config.init takes it: task.teacher = "runs/large"')
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if alpha < 0:
        raise ValueError(f"alpha must be at least 0, got {alpha}")
    net, student = network(model, contract), classification(model, contract)

    def init(key: jax.Array, batch: Batch, given: dict[str, Any] | None = None) -> tuple[PyTree, PyTree]:
        given = given or {}
        loaded = {k: v for k, v in given.get("extra", {}).items() if k != "teacher"}
        params, extra = student.init(key, batch, {"params": given.get("params", {}), "extra": loaded})
        if teaching is None:
            return params, extra
        weights, rest = teaching.init(jax.random.fold_in(key, 1), batch, given.get("extra", {}).get("teacher"))
        return params, {**extra, "teacher": {"params": weights, "extra": rest}}

    def loss(params: PyTree, extra: PyTree, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple:
        if teaching is None:
            raise ValueError("distillation: there is no loss without the teacher, which was not loaded")
        outputs, stats = net.train(params["model"], extra["model"], batch["image"], key)
        logits, label, mask = outputs["logits"], batch["label"], batch["mask"]
        theirs = teaching.predict(extra["teacher"]["params"], extra["teacher"]["extra"], batch)["logits"]
        theirs = jax.lax.stop_gradient(theirs)
        divergence = masked_mean(soft_target_divergence(logits, theirs, temperature=temperature), mask)
        value = divergence
        if alpha:
            value = value + alpha * masked_mean(softmax_cross_entropy(logits, label), mask)
        logs = {
            "divergence": divergence,
            "top1": masked_mean(agreement(logits, label).astype(jnp.float32), mask),
            "agreement": masked_mean(agreement(logits, theirs).astype(jnp.float32), mask),
        }
        return value, ({**extra, "model": stats}, logs)

    return Task(init, loss, student.predict)
