"""ConvNeXt.

Paper: Liu et al. 2022, "A ConvNet for the 2020s", https://arxiv.org/abs/2201.03545.
Origin: written for jaxvision after the architecture that torchvision's `models/convnext.py` (BSD-3-Clause) and timm's
`models/convnext.py` (Apache-2.0) publish weights for. Licence: Apache-2.0.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvision.config.ranges import Counts, Depths, Exponent, Rate
from jaxvision.models.layers import (
    Conv,
    DropPath,
    classified,
    global_mean,
    layer_norm,
    linear_rates,
    recomputed,
    truncated_normal,
)
from jaxvision.models.origin import Origin
from jaxvision.ops import gelu

__all__ = ["convnext_base", "convnext_large", "convnext_small", "convnext_tiny"]


class Block(nn.Module):
    """A 7x7 convolution of each channel by itself, then two dense layers, added to what came in."""

    layer_scale: float
    drop_path: float
    train: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        dense = partial(nn.Dense, kernel_init=truncated_normal(), dtype=self.dtype)
        y = Conv(width, 7, groups=width, bias=True, kernel_init=truncated_normal(), dtype=self.dtype, name="conv")(x)
        y = dense(4 * width, name="fc1")(layer_norm(self.dtype)(name="norm")(y))
        y = dense(width, name="fc2")(gelu(y))
        scale = self.param("layer_scale", nn.initializers.constant(self.layer_scale), (width,))
        return x + DropPath(self.drop_path)(y * scale.astype(y.dtype), train=self.train)


class ConvNeXt(nn.Module):
    """Image f32[B, H, W, C] to "c2".."c5", "features" f32[B, D] and "logits" f32[B, classes].

    Attributes:
      classes: width of the last layer; 0: none, and no logits.
      depths, widths: blocks and channels of each stage.
      layer_scale: what the learnt factors of the branches begin at.
      dropout: before the last layer.
      drop_path: rate of stochastic depth at the last block, growing linearly from 0 at the first. The paper trains
        with 0.1 (tiny), 0.4 (small) and 0.5 (base, large).
      remat: what the backward pass computes again in blocks instead of keeping it, see layers.REMAT.
      dtype: of the computation. Parameters, features and logits are float32.
    """

    classes: int
    depths: Depths
    widths: Counts
    layer_scale: Exponent = 1e-6
    dropout: Rate = 0.0
    drop_path: Rate = 0.0
    remat: str = ""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        norm = layer_norm(self.dtype)
        conv = partial(Conv, padding=0, bias=True, kernel_init=truncated_normal(), dtype=self.dtype)
        make_block = recomputed(Block, self.remat)
        rates = iter(linear_rates(self.drop_path, sum(self.depths)))
        x, outputs = image, {}
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            if stage == 0:
                x = norm(name="down0_norm")(conv(width, 4, 4, name="down0_conv")(x))
            else:
                x = conv(width, 2, 2, name=f"down{stage}_conv")(norm(name=f"down{stage}_norm")(x))
            for k in range(depth):
                x = make_block(self.layer_scale, next(rates), train, self.dtype, name=f"stage{stage}_{k}")(x)
            outputs[f"c{stage + 2}"] = x
        features = layer_norm(jnp.float32)(name="norm")(global_mean(x))
        y = nn.Dropout(self.dropout, deterministic=not train)(features)
        head = nn.Dense(self.classes, kernel_init=truncated_normal(), name="head")
        return classified({**outputs, "features": features}, self.classes, head, y)


convnext_tiny = partial(ConvNeXt, depths=(3, 3, 9, 3), widths=(96, 192, 384, 768))
convnext_small = partial(ConvNeXt, depths=(3, 3, 27, 3), widths=(96, 192, 384, 768))
convnext_base = partial(ConvNeXt, depths=(3, 3, 27, 3), widths=(128, 256, 512, 1024))
convnext_large = partial(ConvNeXt, depths=(3, 3, 27, 3), widths=(192, 384, 768, 1536))

_NAMES = {name: name for name in __all__}
ORIGINS = {
    "torchvision": [
        Origin(
            _NAMES,
            (
                *((rf"^stage{k}_(\d+)\.", rf"features.{2 * k + 1}.\1.block.") for k in range(4)),
                (r"block\.layer_scale", "layer_scale"),
                (r"\.conv\.", ".0."),
                (r"\.norm\.", ".2."),
                (r"\.fc1\.", ".3."),
                (r"\.fc2\.", ".5."),
                (r"^down0_conv", "features.0.0"),
                (r"^down0_norm", "features.0.1"),
                *((rf"^down{k}_norm", f"features.{2 * k}.0") for k in (1, 2, 3)),
                *((rf"^down{k}_conv", f"features.{2 * k}.1") for k in (1, 2, 3)),
                (r"^norm", "classifier.0"),
                (r"^head", "classifier.2"),
            ),
            shapes=((r"layer_scale$", (-1, 1, 1)),),
            stages={f"c{k + 2}": f"features.{2 * k + 1}" for k in range(4)},
        )
    ],
    "timm": [
        Origin(
            _NAMES,
            (
                (r"^stage(\d)_(\d+)\.", r"stages.\1.blocks.\2."),
                (r"\.conv\.", ".conv_dw."),
                (r"\.fc(\d)\.", r".mlp.fc\1."),
                (r"layer_scale$", "gamma"),
                (r"^down0_conv", "stem.0"),
                (r"^down0_norm", "stem.1"),
                (r"^down(\d)_norm", r"stages.\1.downsample.0"),
                (r"^down(\d)_conv", r"stages.\1.downsample.1"),
                (r"^norm", "head.norm"),
                (r"^head\.(weight|bias)", r"head.fc.\1"),
            ),
            stages={f"c{k + 2}": f"stages.{k}" for k in range(4)},
        )
    ],
}
