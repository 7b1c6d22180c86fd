"""SimSiam: predict one's own projection of another view."""

from __future__ import annotations

import flax.linen as nn

from jaxvision.config.ranges import Count, Norm
from jaxvision.data.contract import InputContract
from jaxvision.losses import negative_cosine
from jaxvision.task import Task, declares
from jaxvision.tasks.projector import Projector
from jaxvision.tasks.siamese import siamese


@declares()
def simsiam(
    model: nn.Module,
    contract: InputContract,
    *,
    width: Count = 2048,
    bottleneck: Count = 512,
    norm: Norm = "batch",
    stop_gradient: bool = True,
) -> Task:
    """SimSiam of Chen and He 2020, https://arxiv.org/abs/2011.10566.

    The loss is half of -cos(p, z) for both orders of two views, added up.

    batch["image"] is uint8 [B, 2, H, W, C]. The projector has three layers of `width`, the last normalised without
    scale and offset; the predictor two, of `bottleneck` and `width`. `norm`: "batch" or "none" in both. Without
    `stop_gradient` all embeddings become one (section 4.1). Predicts "features" f32[B, D].

    Raises UserError, when compiled, for a batch without two views.
    """
    return siamese(
        model,
        contract,
        lambda p, z, mask: negative_cosine(p, z) / 2,
        name="simsiam",
        projector=Projector((width, width, width), norm, "plain" if norm == "batch" else ""),
        predictor=Projector((bottleneck, width), norm),
        stop_gradient=stop_gradient,
    )
