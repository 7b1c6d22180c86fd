"""BYOL: predict what a slowly moving average of oneself sees in another view."""

from __future__ import annotations

import flax.linen as nn

from jaxvision.config.ranges import Count, Norm, Share
from jaxvision.data.contract import InputContract
from jaxvision.losses import negative_cosine
from jaxvision.task import Task, declares
from jaxvision.tasks.projector import Projector
from jaxvision.tasks.siamese import siamese


@declares()
def byol(
    model: nn.Module,
    contract: InputContract,
    *,
    hidden: Count = 4096,
    width: Count = 256,
    momentum: Share = 0.996,
    norm: Norm = "batch",
    stop_gradient: bool = True,
    total_steps: int = 0,
) -> Task:
    """BYOL of Grill et al. 2020, https://arxiv.org/abs/2006.07733.

    The loss is 2 - 2 cos(p, z') for both orders of two views, added up.

    batch["image"] is uint8 [B, 2, H, W, C]. `hidden`, `width`: of projector and predictor, two layers each; `norm`:
    "batch" or "none" in them. `momentum`: of the target network at the start; it rises to 1 as a cosine. Everything
    else as in `siamese`. Predicts "features" f32[B, D].

    Raises ValueError for a momentum outside [0, 1]; UserError, when compiled, for a batch without two views.
    """
    return siamese(
        model,
        contract,
        lambda p, z, mask: 2 + 2 * negative_cosine(p, z),
        name="byol",
        projector=Projector((hidden, width), norm),
        predictor=Projector((hidden, width), norm),
        momentum=momentum,
        total_steps=total_steps,
        stop_gradient=stop_gradient,
    )
