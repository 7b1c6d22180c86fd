"""DenseNet.

Paper: Huang et al. 2016, "Densely Connected Convolutional Networks", https://arxiv.org/abs/1608.06993.
Origin: written for jaxvision after the architecture that torchvision's `models/densenet.py` (BSD-3-Clause) and timm's
`models/densenet.py` (Apache-2.0) publish weights for. Licence: Apache-2.0.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvision.config.ranges import Count, Depths, Rate
from jaxvision.models.layers import Conv, batch_norm, classified, dense, global_mean, max_pool, norm_pool, recomputed
from jaxvision.models.origin import Origin
from jaxvision.ops import relu

__all__ = ["densenet121", "densenet161", "densenet169", "densenet201"]


class Layer(nn.Module):
    """`growth` new channels of all before them: norm, 1x1 convolution, norm, 3x3 convolution."""

    growth: int
    bottleneck: int
    dropout: float
    train: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = batch_norm(self.train, self.dtype)
        conv = partial(Conv, kernel_init=nn.initializers.he_normal(), dtype=self.dtype)
        y = conv(self.bottleneck * self.growth, 1, name="conv1")(relu(norm(name="norm1")(x)))
        y = conv(self.growth, 3, name="conv2")(relu(norm(name="norm2")(y)))
        return nn.Dropout(self.dropout, deterministic=not self.train)(y)


class DenseNet(nn.Module):
    """Image f32[B, H, W, C] to "c2".."c5" (after each block), "features" f32[B, D] and "logits" f32[B, classes].

    Attributes:
      classes: width of the last layer; 0: none, and no logits.
      depths: layers of each block.
      growth: channels that a layer adds.
      width: channels of the stem.
      bottleneck: channels between the two convolutions of a layer, in multiples of `growth`.
      dropout: after each layer.
      remat: what the backward pass computes again in layers instead of keeping it, see layers.REMAT.
      dtype: of the computation. Parameters, statistics, features and logits are float32.
    """

    classes: int
    depths: Depths
    growth: Count = 32
    width: Count = 64
    bottleneck: Count = 4
    dropout: Rate = 0.0
    remat: str = ""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        norm = batch_norm(train, self.dtype)
        conv = partial(Conv, kernel_init=nn.initializers.he_normal(), dtype=self.dtype)
        make_layer = recomputed(Layer, self.remat)
        pool = partial(max_pool, kernel=3, stride=2, padding=1)
        x = relu(norm_pool(conv(self.width, 7, 2, name="conv0")(image), norm(name="norm0"), pool))
        outputs = {}
        for block, depth in enumerate(self.depths, 1):
            for k in range(1, depth + 1):
                layer = make_layer(
                    self.growth, self.bottleneck, self.dropout, train, self.dtype, name=f"denseblock{block}_{k}"
                )
                x = jnp.concatenate([x, layer(x)], -1)
            outputs[f"c{block + 1}"] = x
            if block < len(self.depths):
                x = relu(norm(name=f"transition{block}_norm")(x))
                x = conv(x.shape[-1] // 2, 1, name=f"transition{block}_conv")(x)
                x = nn.avg_pool(x, (2, 2), strides=(2, 2))
        features = global_mean(relu(norm(name="norm5")(x)))
        head = dense(self.classes, features.shape[-1], "classifier")
        return classified({**outputs, "features": features}, self.classes, head, features)


densenet121 = partial(DenseNet, depths=(6, 12, 24, 16))
densenet161 = partial(DenseNet, depths=(6, 12, 36, 24), growth=48, width=96)
densenet169 = partial(DenseNet, depths=(6, 12, 32, 32))
densenet201 = partial(DenseNet, depths=(6, 12, 48, 32))

_ORIGIN = Origin(
    {name: name for name in __all__},
    (
        (r"^denseblock(\d)_(\d+)\.", r"denseblock\1.denselayer\2."),
        (r"^transition(\d)_", r"transition\1."),
        (r"^(?!classifier)", "features."),
    ),
    stages={f"c{k + 1}": f"features.denseblock{k}" for k in (1, 2, 3, 4)},
)
ORIGINS = {"torchvision": [_ORIGIN], "timm": [_ORIGIN]}
