"""MoCo v3: tell what an average of oneself sees in another view from what it sees in other images."""

from __future__ import annotations

import flax.linen as nn
import jax

from jaxvision.config.ranges import Counts, Norm, Share, Temperature
from jaxvision.data.contract import InputContract
from jaxvision.losses import info_nce
from jaxvision.task import Task, declares
from jaxvision.tasks.encoder import check_contrast
from jaxvision.tasks.projector import Projector
from jaxvision.tasks.siamese import siamese


@declares()
def moco(
    model: nn.Module,
    contract: InputContract,
    *,
    temperature: Temperature = 1.0,
    widths: Counts = (4096, 256),
    predictor_last_norm: bool = False,
    momentum: Share = 0.99,
    norm: Norm = "batch",
    total_steps: int = 0,
) -> Task:
    """MoCo v3 of Chen, Xie, He 2021, https://arxiv.org/abs/2104.02057.

    The loss is `losses.info_nce` for both orders of two views, added up.

    batch["image"] is uint8 [B, 2, H, W, C]. `widths`: of the projector; the predictor has the last two of them. `norm`:
    "batch" or "none" in both, also after the projector's last layer, and after the predictor's with
    `predictor_last_norm`, there without scale and offset. The authors take the defaults for a ResNet, and widths (4096,
    4096, 256), predictor_last_norm and temperature 0.2 for a ViT. `momentum` of the keys' network rises to 1 as a
    cosine. Everything else as in `siamese`. Predicts "features" f32[B, D].

    The negatives are the global (micro-)batch: accumulation gives each row fewer. A ViT's patch embedding stays random
    in the paper: config.optim.groups = (("conv_proj", 0.0),).

    Raises ValueError for a temperature that is not positive or a momentum outside [0, 1]; UserError, when compiled, for
    a batch without two views or of one image.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")

    def contrast(query: jax.Array, keys: jax.Array, mask: jax.Array) -> jax.Array:
        check_contrast(mask, "moco")
        return info_nce(query, keys, mask, temperature=temperature)

    last = "plain" if norm == "batch" else ""
    return siamese(
        model,
        contract,
        contrast,
        name="moco",
        projector=Projector(widths, norm, last),
        predictor=Projector(widths[-2:], norm, last if predictor_last_norm else ""),
        momentum=momentum,
        total_steps=total_steps,
    )
