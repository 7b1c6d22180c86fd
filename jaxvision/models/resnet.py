"""ResNet v1.5.

Paper: He et al. 2015, "Deep Residual Learning for Image Recognition", https://arxiv.org/abs/1512.03385.
Origin: written for jaxvision after the architecture that torchvision's `models/resnet.py` (BSD-3-Clause)
publishes weights for: the stride of a bottleneck is on its 3x3 convolution ("v1.5"), every padding is given
in pixels as torch does ("SAME" would pad differently when the stride is 2), and the modules carry
torchvision's names, with "_" for ".". Licence: Apache-2.0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvision.ops import at_least_float32

# He et al. 2015, https://arxiv.org/abs/1502.01852, with the fan that torchvision takes.
kaiming_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def _torch_uniform(fan_in: int) -> Callable[..., jax.Array]:
    """torch.nn.Linear's default for weight and bias: uniform in +-1 / sqrt(fan_in)."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        bound = fan_in**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Block(nn.Module):
    """Two 3x3 convolutions (`BasicBlock`), or 1x1, 3x3, 1x1 with four times the channels (`Bottleneck`)."""

    channels: int
    stride: int
    bottleneck: bool
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    zero_init: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, s = self.channels, self.stride
        last = nn.initializers.zeros if self.zero_init else nn.initializers.ones
        if self.bottleneck:
            out = 4 * c
            y = nn.relu(self.norm(name="bn1")(self.conv(c, 1, 1, name="conv1")(x)))
            y = nn.relu(self.norm(name="bn2")(self.conv(c, 3, s, name="conv2")(y)))
            y = self.norm(name="bn3", scale_init=last)(self.conv(out, 1, 1, name="conv3")(y))
        else:
            out = c
            y = nn.relu(self.norm(name="bn1")(self.conv(c, 3, s, name="conv1")(x)))
            y = self.norm(name="bn2", scale_init=last)(self.conv(c, 3, 1, name="conv2")(y))
        if x.shape[-1] != out or s != 1:
            x = self.norm(name="downsample_1")(self.conv(out, 1, s, name="downsample_0")(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """ResNet v1.5; image f32[B, H, W, C] to "c2".."c5", "features" f32[B, D] and "logits" f32[B, classes].

    Attributes:
      classes: width of the last layer.
      depths: blocks of each stage.
      bottleneck: which block, see `Block`.
      width: channels of the stem and of the first stage; doubled in each further stage.
      stem: "imagenet" (7x7 stride 2, then max-pooling) or "small" (3x3 stride 1, for images of 8 to 64 px).
      norm: "batch", or "none": neither normalisation nor statistics (for tests, and as a base to build on).
      zero_init: the last normalisation of each block starts at 0, so that blocks start as the identity
        (Goyal et al. 2017, https://arxiv.org/abs/1706.02677). torchvision's default is off.
      dtype: of the computation. Parameters, statistics, features and logits are float32.
    """

    classes: int
    depths: tuple[int, ...]
    bottleneck: bool
    width: int = 64
    stem: str = "imagenet"
    norm: str = "batch"
    zero_init: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        if self.stem not in ("imagenet", "small") or self.norm not in ("batch", "none"):
            raise ValueError(
                f"ResNet: stem {self.stem!r} must be 'imagenet' or 'small', norm {self.norm!r} 'batch' or 'none'"
            )

        def conv(channels: int, kernel: int, stride: int, name: str) -> nn.Conv:
            pad = kernel // 2
            return nn.Conv(
                channels,
                (kernel, kernel),
                strides=(stride, stride),
                padding=((pad, pad), (pad, pad)),
                use_bias=self.norm == "none",
                kernel_init=kaiming_fan_out,
                dtype=self.dtype,
                name=name,
            )

        if self.norm == "batch":
            norm: Any = partial(
                nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype
            )
        else:
            norm = _no_norm

        x = image.astype(self.dtype)
        if self.stem == "imagenet":
            x = nn.relu(norm(name="bn1")(conv(self.width, 7, 2, name="conv1")(x)))
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        else:
            x = nn.relu(norm(name="bn1")(conv(self.width, 3, 1, name="conv1")(x)))

        outputs = {}
        for stage, depth in enumerate(self.depths):
            for block in range(depth):
                x = Block(
                    channels=self.width * 2**stage,
                    stride=2 if stage > 0 and block == 0 else 1,
                    bottleneck=self.bottleneck,
                    conv=conv,
                    norm=norm,
                    zero_init=self.zero_init,
                    name=f"layer{stage + 1}_{block}",
                )(x)
            outputs[f"c{stage + 2}"] = x

        features = jnp.mean(at_least_float32(x), axis=(1, 2))
        logits = nn.Dense(
            self.classes,
            kernel_init=_torch_uniform(features.shape[-1]),
            bias_init=_torch_uniform(features.shape[-1]),
            name="fc",
        )(features)
        return {**outputs, "features": features, "logits": logits}


def _no_norm(name: str, scale_init: Any = None) -> Callable[[jax.Array], jax.Array]:
    return lambda x: x


resnet18 = partial(ResNet, depths=(2, 2, 2, 2), bottleneck=False)
resnet34 = partial(ResNet, depths=(3, 4, 6, 3), bottleneck=False)
resnet50 = partial(ResNet, depths=(3, 4, 6, 3), bottleneck=True)
resnet101 = partial(ResNet, depths=(3, 4, 23, 3), bottleneck=True)
resnet152 = partial(ResNet, depths=(3, 8, 36, 3), bottleneck=True)
