"""MobileNetV2 and MobileNetV3.

Papers: Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks", https://arxiv.org/abs/1801.04381;
Howard et al. 2019, "Searching for MobileNetV3", https://arxiv.org/abs/1905.02244.
Origin: written for jaxvision after the architecture that torchvision's `models/mobilenetv2.py` and `mobilenetv3.py`
(BSD-3-Clause) publish weights for. Licence: Apache-2.0.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvision.config.ranges import Count, CountOrNone, Rate, Tiny, one_of
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
from jaxvision.ops import at_least_float32

__all__ = ["mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small"]

_ACTIVATIONS = {"relu": nn.relu, "relu6": nn.relu6, "hard_swish": nn.hard_swish}


class Row(NamedTuple):
    """An inverted residual; `squeeze`: a quarter of the expanded channels."""

    kernel: int
    expanded: int
    features: int
    squeeze: bool
    activation: str
    stride: int


class MobileNet(nn.Module):
    """Image f32[B, H, W, C] to "c2".."c5", "features" f32[B, D] and "logits" f32[B, classes].

    "c2" to "c4" are what the last block at 4, 8 and 16 px a cell gives, "c5" the last convolution, at 32.

    Attributes:
      classes: width of the last layer; 0: none, and no logits.
      rows: the blocks.
      stem, last: channels of the first and the last convolution.
      hidden: width of a dense layer before the last one (V3); 0: there is none.
      activation: of the first and last convolution and the dense layer.
      epsilon, momentum: of BatchNorm.
      dropout: before the last layer; torchvision trains with 0.2.
      drop_path: rate of stochastic depth at the last block, growing linearly from 0 at the first.
      remat: what the backward pass computes again in blocks instead of keeping it, see layers.REMAT.
      dtype: of the computation. Parameters, statistics, features and logits are float32.
    """

    classes: int
    rows: tuple[Row, ...]
    last: Count
    stem: Count = 16
    hidden: CountOrNone = 0
    activation: Annotated[str, one_of(*_ACTIVATIONS)] = "hard_swish"
    epsilon: Tiny = 1e-3
    momentum: Rate = 0.99
    dropout: Rate = 0.2
    drop_path: Rate = 0.0
    remat: str = ""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        norm = batch_norm(train, self.dtype, self.epsilon, self.momentum)
        conv = partial(Conv, dtype=self.dtype)
        act = _ACTIVATIONS[self.activation]
        make_block = recomputed(InvertedResidual, self.remat)
        x = act(norm(name="features_0_1")(conv(self.stem, 3, 2, name="features_0_0")(image)))
        outputs: dict[str, jax.Array] = {}
        level = 1
        for k, row in enumerate([Row(*row) for row in self.rows], 1):
            if row.stride == 2:
                outputs[f"c{level}"] = x
                level += 1
            x = make_block(
                row.features,
                row.expanded,
                row.kernel,
                row.stride,
                divisible(row.expanded / 4) if row.squeeze else 0,
                _ACTIVATIONS[row.activation],
                norm,
                train,
                self.dtype,
                squeeze_gate=nn.hard_sigmoid,
                drop_path=self.drop_path * (k - 1) / max(1, len(self.rows) - 1),
                name=f"features_{k}",
            )(x)
        place = len(self.rows) + 1
        x = act(conv_norm(x, conv(self.last, 1, name=f"features_{place}_0"), norm(name=f"features_{place}_1")))
        outputs[f"c{level}"] = x
        features = global_mean(x)
        if self.hidden:
            y = dense(self.hidden, features.shape[-1], "classifier_0", self.dtype)(features)
            features = at_least_float32(act(y))
        y = nn.Dropout(self.dropout, deterministic=not train)(features)
        head = dense(self.classes, features.shape[-1], "classifier_3" if self.hidden else "classifier_1")
        outputs.pop("c1", None)
        return classified({**outputs, "features": features}, self.classes, head, y)


def _v2_rows() -> tuple[Row, ...]:
    rows, width = [], 32
    for expand, features, depth, stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for k in range(depth):
            rows.append(Row(3, expand * width, features, False, "relu6", stride if k == 0 else 1))
            width = features
    return tuple(rows)


_LARGE = (
    Row(3, 16, 16, False, "relu", 1),
    Row(3, 64, 24, False, "relu", 2),
    Row(3, 72, 24, False, "relu", 1),
    Row(5, 72, 40, True, "relu", 2),
    *[Row(5, 120, 40, True, "relu", 1)] * 2,
    Row(3, 240, 80, False, "hard_swish", 2),
    Row(3, 200, 80, False, "hard_swish", 1),
    *[Row(3, 184, 80, False, "hard_swish", 1)] * 2,
    Row(3, 480, 112, True, "hard_swish", 1),
    Row(3, 672, 112, True, "hard_swish", 1),
    Row(5, 672, 160, True, "hard_swish", 2),
    *[Row(5, 960, 160, True, "hard_swish", 1)] * 2,
)
_SMALL = (
    Row(3, 16, 16, True, "relu", 2),
    Row(3, 72, 24, False, "relu", 2),
    Row(3, 88, 24, False, "relu", 1),
    Row(5, 96, 40, True, "hard_swish", 2),
    *[Row(5, 240, 40, True, "hard_swish", 1)] * 2,
    Row(5, 120, 48, True, "hard_swish", 1),
    Row(5, 144, 48, True, "hard_swish", 1),
    Row(5, 288, 96, True, "hard_swish", 2),
    *[Row(5, 576, 96, True, "hard_swish", 1)] * 2,
)
mobilenet_v2 = partial(MobileNet, rows=_v2_rows(), stem=32, last=1280, activation="relu6", epsilon=1e-5, momentum=0.9)
mobilenet_v3_large = partial(MobileNet, rows=_LARGE, last=960, hidden=1280)
mobilenet_v3_small = partial(MobileNet, rows=_SMALL, last=576, hidden=1024)


def _stages(model: MobileNet) -> dict[str, str]:
    ends = [k for k, row in enumerate(model.rows) if row.stride == 2][-3:]  # the block before each halving
    return {**{f"c{k + 2}": f"features.{end}" for k, end in enumerate(ends)}, "c5": f"features.{len(model.rows) + 1}"}


_PLACES = ((r"^(features|classifier)_(\d+)", r"\1.\2"), (r"^features\.(\d+)_", r"features.\1."))
ORIGINS = {
    "torchvision": [
        Origin(
            {"mobilenet_v2": "mobilenet_v2"},
            (
                *_PLACES,
                # the last convolution and its norm are one level higher than the others
                (r"^features\.1\.block_1_(\d)", lambda m: f"features.1.conv.{int(m[1]) + 1}"),
                (r"block_2_(\d)", lambda m: f"conv.{int(m[1]) + 2}"),
                (r"block_(\d)_(\d)", r"conv.\1.\2"),
            ),
            stages=_stages,
        ),
        Origin(
            {name: name for name in __all__[1:]},
            (*_PLACES, (r"block_(\d)_", r"block.\1."), (r"block_", "block.")),
            stages=_stages,
        ),
    ]
}
