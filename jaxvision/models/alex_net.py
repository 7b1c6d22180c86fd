"""AlexNet.

Paper: Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks",
https://arxiv.org/abs/1404.5997: the network of Krizhevsky, Sutskever and Hinton 2012 in one tower, without local
response normalisation.
Origin: written for jaxvision after the architecture that torchvision's `models/alexnet.py` (BSD-3-Clause) publishes
weights for. Licence: Apache-2.0.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvision.config.ranges import Count, Rate
from jaxvision.models.layers import Conv, adaptive_mean_pool, channels_first, classified, dense, max_pool, recomputed
from jaxvision.models.origin import Origin
from jaxvision.ops import at_least_float32

__all__ = ["alexnet"]


class AlexNet(nn.Module):
    """Image f32[B, H, W, C] to "c2".."c5", "features" f32[B, 4096] and "logits" f32[B, classes].

    "c2" and "c3" are what the first and second convolution give (4 and 8 px a cell), "c4" what the fifth gives (16 px),
    "c5" that after pooling (32 px). Images of 63 px at least.

    Attributes:
      classes: width of the last layer; 0: none, and no logits.
      width: channels of the first convolution; the others are multiples of it.
      hidden: width of the two dense layers.
      dropout: before the first and second dense layer; the paper and torchvision train with 0.5.
      remat: what the backward pass computes again in convolutions instead of keeping it, see layers.REMAT.
      dtype: of the computation. Parameters, features and logits are float32.
    """

    classes: int
    width: Count = 64
    hidden: Count = 4096
    dropout: Rate = 0.5
    remat: str = ""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        if min(image.shape[1:3]) < 63:
            raise ValueError(f"AlexNet: images must have 63 pixels at least, not {image.shape[1:3]}")
        make_conv = recomputed(Conv, self.remat)
        conv = partial(make_conv, bias=True, kernel_init=nn.initializers.he_uniform(), dtype=self.dtype)
        drop = nn.Dropout(self.dropout, deterministic=not train)
        w = self.width
        c2 = nn.relu(conv(w, 11, 4, 2, name="features_0")(image.astype(self.dtype)))
        c3 = nn.relu(conv(3 * w, 5, 1, 2, name="features_3")(max_pool(c2, 3, 2)))
        x = nn.relu(conv(6 * w, 3, name="features_6")(max_pool(c3, 3, 2)))
        x = nn.relu(conv(4 * w, 3, name="features_8")(x))
        c4 = nn.relu(conv(4 * w, 3, name="features_10")(x))
        c5 = max_pool(c4, 3, 2)
        x = channels_first(adaptive_mean_pool(c5, 6))
        x = nn.relu(dense(self.hidden, x.shape[-1], "classifier_1", self.dtype)(drop(x)))
        x = nn.relu(dense(self.hidden, self.hidden, "classifier_4", self.dtype)(drop(x)))
        features = at_least_float32(x)
        outputs = {"c2": c2, "c3": c3, "c4": c4, "c5": c5, "features": features}
        return classified(outputs, self.classes, dense(self.classes, self.hidden, "classifier_6"), features)


alexnet = partial(AlexNet)

ORIGINS = {
    "torchvision": [
        Origin(
            {"alexnet": "alexnet"},
            ((r"_(\d+)\.", r".\1."),),
            stages={"c2": "features.1", "c3": "features.4", "c4": "features.11", "c5": "features.12"},
        )
    ]
}
