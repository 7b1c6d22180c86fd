"""VGG, with and without BatchNorm.

Paper: Simonyan and Zisserman 2014, "Very Deep Convolutional Networks for Large-Scale Image Recognition",
https://arxiv.org/abs/1409.1556.
Origin: written for jaxvision after the architecture that torchvision's `models/vgg.py` (BSD-3-Clause) publishes weights
for. Licence: Apache-2.0. timm's weights have their dense layers as convolutions, and are torchvision's.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvision.config.ranges import Count, Depths, Rate
from jaxvision.models.layers import (
    Conv,
    adaptive_mean_pool,
    batch_norm,
    channels_first,
    classified,
    dense,
    max_pool,
    recomputed,
)
from jaxvision.models.origin import Origin
from jaxvision.ops import at_least_float32

_DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
__all__ = ["vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn"]


class VGG(nn.Module):
    """Image f32[B, H, W, C] to "c2".."c5" and "features" f32[B, 4096] and "logits" f32[B, classes].

    "c2" to "c5" are what the second to fifth pooling give, at 4, 8, 16 and 32 px a cell. Images of 32 px at least.

    Attributes:
      classes: width of the last layer; 0: none, and no logits.
      depths: convolutions before each of the five poolings.
      width: channels of the first stage; doubled in each further one, to eight times at most.
      hidden: width of the two dense layers.
      norm: whether BatchNorm follows each convolution.
      dropout: before the second and last dense layer; the paper and torchvision train with 0.5.
      remat: what the backward pass computes again in convolutions instead of keeping it, see layers.REMAT.
      dtype: of the computation. Parameters, statistics, features and logits are float32.
    """

    classes: int
    depths: Depths
    width: Count = 64
    hidden: Count = 4096
    norm: bool = False
    dropout: Rate = 0.5
    remat: str = ""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        if min(image.shape[1:3]) < 2 ** len(self.depths):
            raise ValueError(f"VGG: images must have {2 ** len(self.depths)} pixels at least, not {image.shape[1:3]}")
        make_conv = recomputed(Conv, self.remat)
        norm = batch_norm(train, self.dtype)
        drop = nn.Dropout(self.dropout, deterministic=not train)
        x, outputs, place = image.astype(self.dtype), {}, 0
        for stage, depth in enumerate(self.depths):
            for _ in range(depth):
                channels = self.width * min(8, 2**stage)
                x = make_conv(channels, 3, bias=True, dtype=self.dtype, name=f"features_{place}")(x)
                x = norm(name=f"features_{place + 1}")(x) if self.norm else x
                x = nn.relu(x)
                place += 3 if self.norm else 2  # torch numbers the activations too
            x = max_pool(x, 2, 2)
            place += 1
            outputs[f"c{stage + 1}"] = x
        x = channels_first(adaptive_mean_pool(x, 7))
        x = drop(nn.relu(dense(self.hidden, x.shape[-1], "classifier_0", self.dtype)(x)))
        features = at_least_float32(nn.relu(dense(self.hidden, self.hidden, "classifier_3", self.dtype)(x)))
        del outputs["c1"]
        head = dense(self.classes, self.hidden, "classifier_6")
        return classified({**outputs, "features": features}, self.classes, head, drop(features))


vgg11 = partial(VGG, depths=_DEPTHS[11])
vgg13 = partial(VGG, depths=_DEPTHS[13])
vgg16 = partial(VGG, depths=_DEPTHS[16])
vgg19 = partial(VGG, depths=_DEPTHS[19])
vgg11_bn = partial(vgg11, norm=True)
vgg13_bn = partial(vgg13, norm=True)
vgg16_bn = partial(vgg16, norm=True)
vgg19_bn = partial(vgg19, norm=True)


def _stages(model: VGG) -> dict[str, str]:
    """Stage -> name of the layer of torchvision that ends it.

    torch numbers convolutions, norms, activations and poolings in one row.
    """
    lengths = [depth * (3 if model.norm else 2) + 1 for depth in model.depths]
    return {f"c{k + 1}": f"features.{sum(lengths[: k + 1]) - 1}" for k in (1, 2, 3, 4)}


ORIGINS = {"torchvision": [Origin({name: name for name in __all__}, ((r"_(\d+)\.", r".\1."),), stages=_stages)]}
