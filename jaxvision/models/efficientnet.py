"""EfficientNet and EfficientNetV2.

Papers: Tan and Le 2019, "EfficientNet: Rethinking Model Scaling", https://arxiv.org/abs/1905.11946, and 2021,
"EfficientNetV2: Smaller Models and Faster Training", https://arxiv.org/abs/2104.00298.
Origin: written for jaxvision after the architecture that torchvision's `models/efficientnet.py` (BSD-3-Clause) and, for
B0 to B4, timm's `models/efficientnet.py` (Apache-2.0) publish weights for; timm's B5 to B7 have another epsilon in
BatchNorm, and its `tf_` variants pad otherwise. Licence: Apache-2.0.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvision.config.ranges import Count, Rate, Tiny
from jaxvision.models.layers import (
    Conv,
    InvertedResidual,
    batch_norm,
    classified,
    conv_norm,
    dense,
    divisible,
    global_mean,
    recomputed,
)
from jaxvision.models.origin import Origin

_TIMM = ["efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3", "efficientnet_b4"]
__all__ = [*_TIMM, "efficientnet_b5", "efficientnet_b6", "efficientnet_b7", "efficientnet_v2_s", "efficientnet_v2_m"]


class Stage(NamedTuple):
    fused: bool
    expand: int
    kernel: int
    stride: int
    features: int
    depth: int


class EfficientNet(nn.Module):
    """Image f32[B, H, W, C] to "c2".."c5", "features" f32[B, D] and "logits" f32[B, classes].

    "c2" to "c5" are what the last blocks at 4, 8, 16 and 32 px a cell give.

    Attributes:
      classes: width of the last layer; 0: none, and no logits.
      stages: of blocks.
      stem, last: channels of the first and the last convolution.
      epsilon, momentum: of BatchNorm.
      dropout: before the last layer; the papers train with 0.2 to 0.5, more for larger networks.
      drop_path: rate of stochastic depth, growing linearly from 0 at the first block to almost this at the last; the
        papers train with 0.2.
      remat: what the backward pass computes again in blocks instead of keeping it, see layers.REMAT.
      dtype: of the computation. Parameters, statistics, features and logits are float32.
    """

    classes: int
    stages: tuple[Stage, ...]
    stem: Count
    last: Count
    epsilon: Tiny = 1e-5
    momentum: Rate = 0.9
    dropout: Rate = 0.2
    drop_path: Rate = 0.0
    remat: str = ""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        norm = batch_norm(train, self.dtype, self.epsilon, self.momentum)
        conv = partial(Conv, dtype=self.dtype)
        make_block = recomputed(InvertedResidual, self.remat)
        x = nn.silu(norm(name="features_0_1")(conv(self.stem, 3, 2, name="features_0_0")(image)))
        outputs: dict[str, jax.Array] = {}
        level, done, total = 1, 0, sum(Stage(*stage).depth for stage in self.stages)
        for k, stage in enumerate([Stage(*stage) for stage in self.stages], 1):
            if stage.stride == 2:
                outputs[f"c{level}"] = x
                level += 1
            for j in range(stage.depth):
                width = x.shape[-1]
                x = make_block(
                    stage.features,
                    divisible(width * stage.expand),
                    stage.kernel,
                    stage.stride if j == 0 else 1,
                    0 if stage.fused else max(1, width // 4),
                    nn.silu,
                    norm,
                    train,
                    self.dtype,
                    fused=stage.fused,
                    squeeze_activation=nn.silu,
                    drop_path=self.drop_path * done / total,
                    name=f"features_{k}_{j}",
                )(x)
                done += 1
        outputs[f"c{level}"] = x
        place = len(self.stages) + 1
        x = nn.silu(conv_norm(x, conv(self.last, 1, name=f"features_{place}_0"), norm(name=f"features_{place}_1")))
        features = global_mean(x)
        y = nn.Dropout(self.dropout, deterministic=not train)(features)
        outputs.pop("c1", None)
        return classified(
            {**outputs, "features": features}, self.classes, dense(self.classes, self.last, "classifier_1"), y
        )


def _scaled(width: float, depth: float, dropout: float, **options: Any) -> partial[EfficientNet]:
    """EfficientNet: the first paper's B0 with more channels and blocks."""
    stages = tuple(
        Stage(False, expand, kernel, stride, divisible(features * width), math.ceil(count * depth))
        for expand, kernel, stride, features, count in (
            (1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3),
            (6, 5, 1, 112, 3), (6, 5, 2, 192, 4), (6, 3, 1, 320, 1),
        )
    )  # fmt: skip
    last = 4 * stages[-1].features
    return partial(EfficientNet, stages=stages, stem=divisible(32 * width), last=last, dropout=dropout, **options)


efficientnet_b0 = _scaled(1.0, 1.0, 0.2)
efficientnet_b1 = _scaled(1.0, 1.1, 0.2)
efficientnet_b2 = _scaled(1.1, 1.2, 0.3)
efficientnet_b3 = _scaled(1.2, 1.4, 0.3)
efficientnet_b4 = _scaled(1.4, 1.8, 0.4)
efficientnet_b5 = _scaled(1.6, 2.2, 0.4, epsilon=1e-3, momentum=0.99)
efficientnet_b6 = _scaled(1.8, 2.6, 0.5, epsilon=1e-3, momentum=0.99)
efficientnet_b7 = _scaled(2.0, 3.1, 0.5, epsilon=1e-3, momentum=0.99)
efficientnet_v2_s = partial(
    EfficientNet,
    stages=(
        Stage(True, 1, 3, 1, 24, 2), Stage(True, 4, 3, 2, 48, 4), Stage(True, 4, 3, 2, 64, 4),
        Stage(False, 4, 3, 2, 128, 6), Stage(False, 6, 3, 1, 160, 9), Stage(False, 6, 3, 2, 256, 15),
    ),
    stem=24, last=1280, epsilon=1e-3, dropout=0.2,
)  # fmt: skip
efficientnet_v2_m = partial(
    EfficientNet,
    stages=(
        Stage(True, 1, 3, 1, 24, 3), Stage(True, 4, 3, 2, 48, 5), Stage(True, 4, 3, 2, 80, 5),
        Stage(False, 4, 3, 2, 160, 7), Stage(False, 6, 3, 1, 176, 14), Stage(False, 6, 3, 2, 304, 18),
        Stage(False, 6, 3, 1, 512, 5),
    ),
    stem=24, last=1280, epsilon=1e-3, dropout=0.3,
)  # fmt: skip


def _stages(model: EfficientNet) -> dict[str, str]:
    ends = [k for k, stage in enumerate(model.stages) if stage.stride == 2][-3:]  # the stage before each halving
    return {f"c{k + 2}": f"features.{end}" for k, end in enumerate([*ends, len(model.stages)])}


ORIGINS = {
    "torchvision": [
        Origin(
            {name: name for name in __all__},
            (
                (r"^classifier_", "classifier."),
                (r"^features_(\d+)_(\d+)", r"features.\1.\2"),
                (r"block_(\d)_", r"block.\1."),
                (r"block_", "block."),
            ),
            stages=_stages,
        )
    ],
    "timm": [
        Origin(
            {name: name for name in _TIMM},
            (
                (r"^classifier_1", "classifier"),
                (r"^features_0_0", "conv_stem"),
                (r"^features_0_1", "bn1"),
                (r"^features_8_0", "conv_head"),
                (r"^features_8_1", "bn2"),
                # the first stage does not expand, so its places are one lower
                (r"^features_1_(\d+)\.block_0_0", r"blocks.0.\1.conv_dw"),
                (r"^features_1_(\d+)\.block_0_1", r"blocks.0.\1.bn1"),
                (r"^features_1_(\d+)\.block_1", r"blocks.0.\1.se"),
                (r"^features_1_(\d+)\.block_2_0", r"blocks.0.\1.conv_pw"),
                (r"^features_1_(\d+)\.block_2_1", r"blocks.0.\1.bn2"),
                (r"^features_(\d)_(\d+)", lambda m: f"blocks.{int(m[1]) - 1}.{m[2]}"),
                (r"block_0_0", "conv_pw"),
                (r"block_1_0", "conv_dw"),
                (r"block_3_0", "conv_pwl"),
                (r"block_(\d)_1", lambda m: f"bn{(1, 2, 0, 3)[int(m[1])]}"),
                (r"block_2", "se"),
                (r"\.fc1", ".conv_reduce"),
                (r"\.fc2", ".conv_expand"),
            ),
            stages=lambda model: {k: f"blocks.{int(v[9:]) - 1}" for k, v in _stages(model).items()},
        )
    ],
}
