"""ResNet v1.5, ResNeXt, Wide ResNet and the -D variants.

Papers: He et al. 2015, "Deep Residual Learning for Image Recognition", https://arxiv.org/abs/1512.03385; Xie et al.
2016 (ResNeXt), https://arxiv.org/abs/1611.05431; Zagoruyko and Komodakis 2016 (wide), https://arxiv.org/abs/1605.07146;
He et al. 2018 (-D), https://arxiv.org/abs/1812.01187.
Origin: written for jaxvision after the architecture that torchvision's `models/resnet.py` (BSD-3-Clause) and timm's
`models/resnet.py` (Apache-2.0, the -D variants) publish weights for: the stride of a bottleneck is on its 3x3
convolution ("v1.5"), every padding is given in pixels as torch does, and the modules carry torchvision's names, with
"_" for ".". Licence: Apache-2.0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvision.config.ranges import Count, Depths, Rate
from jaxvision.models.layers import (
    BatchNorm,
    Conv,
    DropPath,
    Initializer,
    Norm,
    batch_norm,
    classified,
    conv_norm,
    dense,
    global_mean,
    linear_rates,
    max_pool,
    norm_pool,
    recomputed,
)
from jaxvision.models.origin import Origin
from jaxvision.ops import Tail, finish, finish_and_narrow, relu, scale_shift

_PLAIN = [
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
]
_D = ["resnet18d", "resnet34d", "resnet50d", "resnet101d", "resnet152d"]
__all__ = [*_PLAIN, *_D]


_LAST_OF_STEM = {"imagenet": (7, 2, "conv1"), "deep": (3, 1, "conv1_6"), "small": (3, 1, "conv1")}


class Residual(nn.Module):
    """Base of the blocks of a ResNet: their sizes, and the shortcut."""

    channels: int
    stride: int
    conv: Callable[..., Conv]
    norm: Callable[..., Norm]
    zero_init: bool
    train: bool = False
    inner: int = 0  # channels of a bottleneck's 3x3 convolution; 0: `channels`
    groups: int = 1  # of that convolution
    mean_shortcut: bool = False  # a shortcut shrinks by a 2x2 mean, then a 1x1 convolution (-D)
    drop_path: float = 0.0

    def last_scale(self) -> Initializer:
        """Initialiser of the scale of the normalisation before the sum."""
        return nn.initializers.zeros if self.zero_init else nn.initializers.ones

    def shortcut(self, x: jax.Array, out: int) -> jax.Array:
        """x as it is, or where shapes differ through a 1x1 convolution to `out` channels, normalised."""
        s = self.stride
        if x.shape[-1] == out and s == 1:
            return x
        if self.mean_shortcut:
            x = _halved(x) if s != 1 else x
            return conv_norm(x, self.conv(out, 1, 1, name="downsample_1"), self.norm(name="downsample_2"))
        return conv_norm(x, self.conv(out, 1, s, name="downsample_0"), self.norm(name="downsample_1"))


class BasicBlock(Residual):
    """Two 3x3 convolutions, added to the shortcut."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        out = self.channels
        y = relu(self.norm(name="bn1")(self.conv(out, 3, self.stride, name="conv1")(x)))
        y = self.norm(name="bn2", scale_init=self.last_scale())(self.conv(out, 3, 1, name="conv2")(y))
        return relu(self.shortcut(x, out) + DropPath(self.drop_path)(y, train=self.train))


class Bottleneck(Residual):
    """1x1, 3x3 and 1x1 convolutions, the last with four times the channels, added to the shortcut.

    In training with BatchNorm, without stochastic depth and `remat`, `FusedBottleneck` runs in its place.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        out, inner = 4 * self.channels, self.inner or self.channels
        y = relu(self.norm(name="bn1")(self.conv(inner, 1, 1, name="conv1")(x)))
        y = relu(self.norm(name="bn2")(self.conv(inner, 3, self.stride, groups=self.groups, name="conv2")(y)))
        y = conv_norm(y, self.conv(out, 1, 1, name="conv3"), self.norm(name="bn3", scale_init=self.last_scale()))
        return relu(self.shortcut(x, out) + DropPath(self.drop_path)(y, train=self.train))


class FusedBottleneck(Residual):
    """`Bottleneck` in training, with BatchNorm and without stochastic depth, for few passes over the wide activations.

    The leaves are the same, the values and gradients too, up to rounding. A block stops before its last convolution and
    gives a Tail; the next block, or `ops.finish`, does that convolution and the sum. See `ops.bottleneck`.
    """

    norm: Callable[..., BatchNorm]

    @nn.compact
    def __call__(self, x: jax.Array | Tail) -> Tail:
        out, inner = 4 * self.channels, self.inner or self.channels
        conv1, conv3 = self.conv(inner, 1, 1, name="conv1"), self.conv(out, 1, 1, name="conv3")
        if isinstance(x, Tail):
            x, y = finish_and_narrow(x, conv1.matrix(x.shortcut.shape[-1]))
        else:
            y = conv1(x)
        y = relu(self.norm(name="bn1")(y))
        y = self.conv(inner, 3, self.stride, groups=self.groups, name="conv2")(y)
        a, b = self.norm(name="bn2").affine(y)
        z = relu(scale_shift(y, a, b).astype(y.dtype))
        kernel, bias = self.norm(name="bn3", scale_init=self.last_scale()).folded(z, conv3.matrix(inner))
        return Tail(z, y, a, b, self.shortcut(x, out), kernel, bias)


def _halved(x: jax.Array) -> jax.Array:
    """Means of 2x2 pixels; at an odd border of those that are there (timm's ceil_mode without padding)."""
    pad = ((0, x.shape[1] % 2), (0, x.shape[2] % 2))
    return nn.avg_pool(x, (2, 2), strides=(2, 2), padding=pad, count_include_pad=False)


class ResNet(nn.Module):
    """ResNet v1.5; image f32[B, H, W, C] to "c2".."c5", "features" f32[B, D] and "logits" f32[B, classes].

    Attributes:
      classes: width of the last layer; 0: none, and no logits.
      depths: blocks of each stage.
      bottleneck: the blocks are `Bottleneck`, else `BasicBlock`.
      width: channels of the stem and of the first stage; doubled in each further stage.
      groups, group_width: of a bottleneck's 3x3 convolution: channels * group_width / 64 * groups channels in so many
        groups. (32, 4) is ResNeXt 32x4d, (1, 128) Wide ResNet 2.
      stem: "imagenet" (7x7 stride 2, then max-pooling), "deep" (three 3x3, then max-pooling; -D) or "small" (3x3
        stride 1, for images of 8 to 64 px).
      mean_shortcut: shortcuts shrink by a mean before their convolution (-D).
      norm: "batch", or "none": neither normalisation nor statistics (for tests, and as a base to build on).
      zero_init: the last normalisation of each block starts at 0, so that blocks start as the identity
        (Goyal et al. 2017, https://arxiv.org/abs/1706.02677). torchvision's default is off.
      drop_path: rate of stochastic depth at the last block, growing linearly from 0 at the first.
      dropout: before the last layer.
      remat: what the backward pass computes again in blocks instead of keeping it, see layers.REMAT.
      dtype: of the computation. Parameters, statistics, features and logits are float32.
    """

    classes: int
    depths: Depths
    bottleneck: bool
    width: Count = 64
    groups: Count = 1
    group_width: Count = 64
    stem: str = "imagenet"
    mean_shortcut: bool = False
    norm: str = "batch"
    zero_init: bool = True
    drop_path: Rate = 0.0
    dropout: Rate = 0.0
    remat: str = ""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        if self.stem not in _LAST_OF_STEM or self.norm not in ("batch", "none"):
            raise ValueError(
                f"ResNet: stem {self.stem!r} must be 'imagenet', 'deep' or 'small', "
                f"norm {self.norm!r} 'batch' or 'none'"
            )
        if not self.bottleneck and (self.groups, self.group_width) != (1, 64):
            raise ValueError("ResNet: groups and group_width are those of bottlenecks, and these blocks are basic ones")
        conv = partial(_conv, bias=self.norm == "none", dtype=self.dtype)
        norm: Callable[..., Norm] = batch_norm(train, self.dtype) if self.norm == "batch" else _no_norm

        x = image.astype(self.dtype)
        if self.stem == "deep":
            x = relu(norm(name="conv1_1")(conv(self.width // 2, 3, 2, name="conv1_0")(x)))
            x = relu(norm(name="conv1_4")(conv(self.width // 2, 3, 1, name="conv1_3")(x)))
        kernel, stride, name = _LAST_OF_STEM[self.stem]
        x = conv(self.width, kernel, stride, name=name)(x)
        if self.stem == "small":
            x = relu(norm(name="bn1")(x))
        else:  # as good as the maximum after the ReLU
            x = relu(norm_pool(x, norm(name="bn1"), partial(max_pool, kernel=3, stride=2, padding=1)))

        plain = recomputed(Bottleneck if self.bottleneck else BasicBlock, self.remat)
        make_block = FusedBottleneck if self._fusible(train) else plain
        rates = iter(linear_rates(self.drop_path, sum(self.depths)))
        outputs = {}
        for stage, depth in enumerate(self.depths):
            channels = self.width * 2**stage
            for block in range(depth):
                x = make_block(
                    channels=channels,
                    stride=2 if stage > 0 and block == 0 else 1,
                    conv=conv,
                    norm=norm,
                    zero_init=self.zero_init,
                    train=train,
                    inner=channels * self.group_width // 64 * self.groups,
                    groups=self.groups,
                    mean_shortcut=self.mean_shortcut,
                    drop_path=next(rates),
                    name=f"layer{stage + 1}_{block}",
                )(x)
            last = finish(x) if isinstance(x, Tail) else x
            outputs[f"c{stage + 2}"] = last

        features = global_mean(last)
        y = nn.Dropout(self.dropout, deterministic=not train)(features)
        return classified(
            {**outputs, "features": features}, self.classes, dense(self.classes, features.shape[-1], "fc"), y
        )

    def _fusible(self, train: bool) -> bool:
        """Whether `FusedBottleneck` can stand for the blocks, and gains by it: the last convolution widens twice."""
        fits = self.bottleneck and train and self.norm == "batch" and not self.drop_path and not self.remat
        return fits and 2 * self.group_width * self.groups <= 4 * 64


def _conv(channels: int, kernel: int, stride: int, *, bias: bool, dtype: Any, name: str, groups: int = 1) -> Conv:
    return Conv(channels, kernel, stride, groups=groups, bias=bias, dtype=dtype, name=name)


def _no_norm(name: str, scale_init: Any = None) -> Norm:
    return lambda x: x


resnet18 = partial(ResNet, depths=(2, 2, 2, 2), bottleneck=False)
resnet34 = partial(ResNet, depths=(3, 4, 6, 3), bottleneck=False)
resnet50 = partial(ResNet, depths=(3, 4, 6, 3), bottleneck=True)
resnet101 = partial(ResNet, depths=(3, 4, 23, 3), bottleneck=True)
resnet152 = partial(ResNet, depths=(3, 8, 36, 3), bottleneck=True)
resnext50_32x4d = partial(resnet50, groups=32, group_width=4)
resnext101_32x8d = partial(resnet101, groups=32, group_width=8)
resnext101_64x4d = partial(resnet101, groups=64, group_width=4)
wide_resnet50_2 = partial(resnet50, group_width=128)
wide_resnet101_2 = partial(resnet101, group_width=128)
resnet18d = partial(resnet18, stem="deep", mean_shortcut=True)
resnet34d = partial(resnet34, stem="deep", mean_shortcut=True)
resnet50d = partial(resnet50, stem="deep", mean_shortcut=True)
resnet101d = partial(resnet101, stem="deep", mean_shortcut=True)
resnet152d = partial(resnet152, stem="deep", mean_shortcut=True)

_RULES = ((r"layer(\d)_(\d+)", r"layer\1.\2"), (r"downsample_", "downsample."), (r"^conv1_", "conv1."))
_STAGES = {f"c{k + 1}": f"layer{k}" for k in range(1, 5)}
ORIGINS = {
    "torchvision": [Origin({name: name for name in _PLAIN}, _RULES, stages=_STAGES)],
    "timm": [Origin({name: name for name in __all__}, _RULES, stages=_STAGES)],
}
