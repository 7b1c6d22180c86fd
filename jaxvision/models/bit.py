"""BiT: ResNet-v2 with GroupNorm and standardised weights.

Papers: Kolesnikov et al. 2019, "Big Transfer (BiT)", https://arxiv.org/abs/1912.11370; He et al. 2016 (activations
before convolutions), https://arxiv.org/abs/1603.05027; Qiao et al. 2019 (weight standardisation),
https://arxiv.org/abs/1903.10520.
Origin: written for jaxvision after the architecture of the `_bit` variants in timm's `models/resnetv2.py` (Apache-2.0),
for which timm publishes weights. Licence: Apache-2.0.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvision.config.ranges import Count, Depths, Positive, Rate
from jaxvision.models.layers import Conv, DropPath, classified, global_mean, linear_rates, max_pool, recomputed
from jaxvision.models.origin import Origin

__all__ = [
    *("resnetv2_50x1_bit", "resnetv2_50x3_bit", "resnetv2_101x1_bit", "resnetv2_101x3_bit"),
    *("resnetv2_152x2_bit", "resnetv2_152x4_bit"),
]


class StandardisedConv(Conv):
    """A convolution whose kernel has mean 0 and variance 1 for each output channel, whatever is learnt."""

    def prepared(self, kernel: jax.Array) -> jax.Array:
        mean = kernel.mean((0, 1, 2), keepdims=True)
        return (kernel - mean) * jax.lax.rsqrt(kernel.var((0, 1, 2), keepdims=True) + 1e-8)


class Block(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, each after a norm and a ReLU; added to what came in."""

    features: int
    stride: int
    groups: int
    drop_path: float
    train: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = _norm(self.groups, self.dtype)
        conv = partial(StandardisedConv, dtype=self.dtype)
        y = nn.relu(norm(name="norm1")(x))
        if x.shape[-1] != self.features or self.stride != 1:
            x = conv(self.features, 1, self.stride, name="downsample_conv")(y)
        y = nn.relu(norm(name="norm2")(conv(self.features // 4, 1, name="conv1")(y)))
        y = nn.relu(norm(name="norm3")(conv(self.features // 4, 3, self.stride, name="conv2")(y)))
        y = conv(self.features, 1, name="conv3")(y)
        return x + DropPath(self.drop_path)(y, train=self.train)


def _norm(groups: int, dtype: Any) -> Any:
    return partial(nn.GroupNorm, num_groups=groups, epsilon=1e-5, dtype=dtype, use_fast_variance=False)


class BiT(nn.Module):
    """Image f32[B, H, W, C] to "c2".."c5" (sums, before a norm), "features" f32[B, D] and "logits" f32[B, classes].

    Attributes:
      classes: width of the last layer; 0: none, and no logits.
      depths: blocks of each stage.
      width: factor of all channels; 1 has 64 in the stem and 256 in the first stage.
      groups: of GroupNorm.
      dropout: before the last layer.
      drop_path: rate of stochastic depth at the last block, growing linearly from 0 at the first.
      remat: what the backward pass computes again in blocks instead of keeping it, see layers.REMAT.
      dtype: of the computation. Parameters, features and logits are float32.
    """

    classes: int
    depths: Depths
    width: Positive = 1
    groups: Count = 32
    dropout: Rate = 0.0
    drop_path: Rate = 0.0
    remat: str = ""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        x = StandardisedConv(round(64 * self.width), 7, 2, dtype=self.dtype, name="stem_conv")(image)
        # Padded with zeros, not with nothing as a pooling pads: what comes in may be negative.
        x = max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), 3, 2)
        make_block = recomputed(Block, self.remat)
        rates = iter(linear_rates(self.drop_path, sum(self.depths)))
        outputs = {}
        for stage, depth in enumerate(self.depths):
            features = round(256 * 2**stage * self.width)
            for k in range(depth):
                stride = 2 if stage > 0 and k == 0 else 1
                x = make_block(
                    features, stride, self.groups, next(rates), train, self.dtype, name=f"stages_{stage}_blocks_{k}"
                )(x)
            outputs[f"c{stage + 2}"] = x
        pooled = global_mean(nn.relu(_norm(self.groups, self.dtype)(name="norm")(x)))
        y = nn.Dropout(self.dropout, deterministic=not train)(pooled)[:, None, None]
        head = Conv(self.classes, bias=True, kernel_init=nn.initializers.zeros, dtype=pooled.dtype, name="head_fc")
        return classified({**outputs, "features": pooled}, self.classes, lambda y: head(y)[:, 0, 0], y)


_50 = partial(BiT, depths=(3, 4, 6, 3))
_101 = partial(BiT, depths=(3, 4, 23, 3))
_152 = partial(BiT, depths=(3, 8, 36, 3))

resnetv2_50x1_bit = partial(_50, width=1)
resnetv2_50x3_bit = partial(_50, width=3)
resnetv2_101x1_bit = partial(_101, width=1)
resnetv2_101x3_bit = partial(_101, width=3)
resnetv2_152x2_bit = partial(_152, width=2)
resnetv2_152x4_bit = partial(_152, width=4)

ORIGINS = {
    "timm": [
        Origin(
            {name: name for name in __all__},
            (
                (r"^stages_(\d)_blocks_(\d+)", r"stages.\1.blocks.\2"),
                (r"(stem|downsample)_conv", r"\1.conv"),
                (r"^head_fc", "head.fc"),
            ),
            stages={f"c{k + 2}": f"stages.{k}" for k in range(4)},
        )
    ]
}
