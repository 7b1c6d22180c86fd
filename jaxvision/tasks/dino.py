"""DINO: learn what an average of oneself makes of another crop of the image."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvision.config.durations import FORMS, Length
from jaxvision.config.ranges import Count, Norm, NotNegative, Share, Steps, Temperature
from jaxvision.data.contract import InputContract
from jaxvision.losses import dino_cross_entropy
from jaxvision.ops import at_temperature, masked_mean
from jaxvision.task import Batch, PyTree, Task, declares
from jaxvision.tasks.encoder import check_share, encoder, momentum_at, moved, spread, views, without_drops
from jaxvision.tasks.projector import Prototypes

# Below this share of what it could be, outputs say nothing about which image they are of.
UNINFORMED = 0.02


@declares(averages=True)
def dino(
    model: nn.Module,
    contract: InputContract,
    *,
    outputs: Count = 65536,
    hidden: Count = 2048,
    bottleneck: Count = 256,
    norm: Norm = "none",
    student_temperature: Temperature = 0.1,
    teacher_temperature: Temperature = 0.04,
    teacher_temperature_start: Temperature = 0.04,
    teacher_warmup_steps: Steps = 0,
    teacher_warmup_epochs: NotNegative = 0.0,
    teacher_warmup_share: Share = 0.0,
    momentum: Share = 0.996,
    centre_momentum: Share = 0.9,
    total_steps: int = 0,
    steps_per_epoch: float = 0.0,
) -> Task:
    """DINO of Caron et al. 2021, https://arxiv.org/abs/2104.14294.

    The loss is `losses.dino_cross_entropy` of every student's view with each teacher's view but the same one, the mean
    over the pairs.

    batch["image"] is uint8 [B, 2, H, W, C]: the global views, which both see; batch["local"] uint8 [B, L, h, w, C],
    if there, are smaller crops that the student alone sees (multi-crop).

    The teacher is an average of the student, without dropout or stochastic depth. It is kept under extra["ema"] as the
    wrapper `ema` keeps one, so what predicts, is saved and is fine-tuned is the teacher. Its momentum rises from
    `momentum` to 1 as a cosine. Its outputs are centred by their running mean (`centre_momentum`; 1.0 is the ablation
    without centring, which collapses) and sharpened by `teacher_temperature`, which rises linearly from
    `teacher_temperature_start` over the duration `teacher_warmup`, given in one of its forms. `outputs`, `hidden`,
    `bottleneck`, `norm`: of the head, see `Prototypes`; its last layer stays as it is in the first epoch with
    config.optim.unfreeze_epochs = (("projector/last", 1),).

    Logs: those of `spread`, of the student's features; `output_information`, the mutual information of image and
    teacher's output, over its maximum, the log of the smaller of B and `outputs`: it is 0 when all images have one
    output, be that one entry or all alike. `alarm_collapse` is 1 where it is below UNINFORMED. Predicts "features"
    f32[B, D], the teacher's.

    Raises ValueError for a temperature that is not positive or a share outside [0, 1]; UserError, when compiled, for a
    batch without two views.
    """
    for name, value in (("student_temperature", student_temperature), ("teacher_temperature", teacher_temperature),
                        ("teacher_temperature_start", teacher_temperature_start)):  # fmt: skip
        if value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")
    for name, value in (
        ("momentum", momentum),
        ("centre_momentum", centre_momentum),
        ("teacher_warmup_share", teacher_warmup_share),
    ):
        check_share(name, value)
    forms = zip(FORMS, (teacher_warmup_steps, teacher_warmup_epochs, teacher_warmup_share), strict=True)
    form, duration = next(((form, value) for form, value in forms if value), ("share", 0.0))
    warm = Length(total_steps, steps_per_epoch).steps(form, duration) if total_steps else 0
    head = Prototypes(outputs, hidden, bottleneck=bottleneck, norm=norm)
    net = encoder(model, contract, projector=head)
    calm = encoder(without_drops(model), contract, projector=head)

    def init(key: jax.Array, batch: Batch, given: dict[str, Any] | None = None) -> tuple[PyTree, PyTree]:
        params, extra = net.init(key, batch["image"], given)
        # copies, since the step donates its buffers and two leaves must not share one
        teacher = jax.tree.map(jnp.copy, {"params": params, **extra})
        return params, {**extra, "ema": teacher, "centre": jnp.zeros((outputs,), jnp.float32)}

    def temperature(step: jax.Array) -> jax.Array:
        done = jnp.minimum(step / max(warm, 1), 1.0) if warm else jnp.float32(1)
        return teacher_temperature_start + (teacher_temperature - teacher_temperature_start) * done

    def loss(params: PyTree, extra: PyTree, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple:
        mask, count = batch["mask"], 2
        both = jnp.stack(views(batch, "dino"), 1)  # image by image, so that each device keeps its rows
        keys = jax.random.split(key, 3)
        taught, teacher = calm.train(extra["ema"]["params"], extra["ema"], both.reshape(-1, *both.shape[2:]), keys[0])
        goals = jax.lax.stop_gradient(_by_view(taught["projector"], count))
        seen, extra = net.train(params, extra, both.reshape(-1, *both.shape[2:]), keys[1])
        guesses = _by_view(seen["projector"], count)
        if "local" in batch:  # crops of another size are another batch
            local = batch["local"]
            made, extra = net.train(params, extra, local.reshape(-1, *local.shape[2:]), keys[2])
            guesses += _by_view(made["projector"], local.shape[1])

        warmth = temperature(step)
        losses: list[jax.Array] = [
            dino_cross_entropy(
                guess, goal, extra["centre"], student_temperature=student_temperature, teacher_temperature=warmth
            )
            for g, goal in enumerate(goals)
            for v, guess in enumerate(guesses)
            if v != g
        ]
        value = masked_mean(jnp.mean(jnp.stack(losses), 0), mask)
        mean = sum(jnp.sum(jnp.where(mask[:, None], goal, 0), 0) for goal in goals) / (
            count * jnp.maximum(jnp.sum(mask), 1)
        )
        centre = moved(extra["centre"], mean, jnp.float32(centre_momentum))
        sharp = jax.nn.softmax(at_temperature(goals[0] - extra["centre"], warmth))
        information = _information(sharp, mask)
        logs = {
            **spread(seen["features"][0::2], mask),
            "output_information": information,
            "alarm_collapse": (information < UNINFORMED).astype(jnp.float32),
        }
        return value, ({**extra, "ema": teacher, "centre": centre}, logs)

    def after_step(params: PyTree, extra: PyTree, step: jax.Array) -> PyTree:
        new = moved(extra["ema"]["params"], params, momentum_at(momentum, step, total_steps))
        return {**extra, "ema": {**extra["ema"], "params": new}}

    def predict(params: PyTree, extra: PyTree, batch: Batch) -> dict[str, jax.Array]:
        teacher = extra["ema"]
        return {"features": net.features(teacher["params"], teacher, batch["image"])}

    return Task(init, loss, predict, after_step)


def _by_view(rows: jax.Array, count: int) -> list[jax.Array]:
    """[B * count, K], image by image, as `count` arrays [B, K]."""
    return [rows[k::count] for k in range(count)]


def _information(probabilities: jax.Array, mask: jax.Array) -> jax.Array:
    """H(mean over the images) - mean over the images of H, over its maximum, the log of the smaller of B and K."""
    logs = jnp.log(jnp.maximum(probabilities, 1e-12))
    own = masked_mean(-jnp.sum(probabilities * logs, -1), mask)
    mean = jnp.sum(jnp.where(mask[:, None], probabilities, 0), 0) / jnp.maximum(jnp.sum(mask), 1)
    together = -jnp.sum(mean * jnp.log(jnp.maximum(mean, 1e-12)))
    return (together - own) / jnp.log(jnp.float32(max(min(probabilities.shape), 2)))
