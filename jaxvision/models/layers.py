"""What two families share: torch's geometry, initialisers, normalisation, stochastic depth, pooling.

Everything that is compiled into every network passes through here, so that what makes a step faster is done once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvision.ops import at_least_float32

Initializer = Callable[..., jax.Array]

# He et al. 2015, https://arxiv.org/abs/1502.01852, with the fan that torchvision takes.
kaiming_fan_out: Initializer = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def truncated_normal(std: float = 0.02) -> Initializer:
    """N(0, std) cut at +-2 (not at 2 std): torch's `trunc_normal_`, for which 0.02 is as good as uncut."""
    return nn.initializers.truncated_normal(std, lower=-2.0 / std, upper=2.0 / std)


def torch_uniform(fan_in: int) -> Initializer:
    """torch.nn.Linear's default for weight and bias: uniform in +-1 / sqrt(fan_in)."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        bound = fan_in**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Conv(nn.Module):
    """A 2-D convolution, NHWC, with torch's padding: (kernel - 1) // 2 pixels on each side unless given.

    "SAME" would pad otherwise where the stride is 2. Leaves: kernel f32[h, w, in / groups, out], bias f32[out].
    """

    features: int
    kernel: int = 1
    stride: int = 1
    padding: int | Sequence[tuple[int, int]] | None = None
    groups: int = 1
    bias: bool = False
    kernel_init: Initializer = kaiming_fan_out
    bias_init: Initializer = nn.initializers.zeros
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel, self.kernel, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        pad = (self.kernel - 1) // 2 if self.padding is None else self.padding
        x = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.stride, self.stride),
            ((pad, pad), (pad, pad)) if isinstance(pad, int) else pad,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.groups,
        )
        if self.bias:
            x = x + self.param("bias", self.bias_init, (self.features,)).astype(self.dtype)
        return x


def batch_norm(train: bool, dtype: Any, epsilon: float = 1e-5, momentum: float = 0.9) -> Callable[..., nn.Module]:
    """`norm(name=..., scale_init=...)`: nn.BatchNorm over the global batch; `momentum` is 1 - torch's."""
    return partial(nn.BatchNorm, use_running_average=not train, momentum=momentum, epsilon=epsilon, dtype=dtype)


def layer_norm(dtype: Any, epsilon: float = 1e-6) -> Callable[..., nn.Module]:
    """`norm(name=...)`: over the channels, statistics in float32."""
    return partial(nn.LayerNorm, epsilon=epsilon, dtype=dtype)


class DropPath(nn.Module):
    """Stochastic depth: a sample's branch is dropped with chance `rate`, else divided by 1 - rate.

    Huang et al. 2016, https://arxiv.org/abs/1603.09382; torchvision's `StochasticDepth(mode="row")`.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if not train or self.rate == 0.0:
            return x
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1.0 - self.rate, (x.shape[0],) + (1,) * (x.ndim - 1))
        return jnp.where(keep, x / (1.0 - self.rate), jnp.zeros((), x.dtype))


def linear_rates(rate: float, blocks: int) -> list[float]:
    """Rates of stochastic depth that grow linearly from 0 at the first block to `rate` at the last."""
    return [rate * k / max(1, blocks - 1) for k in range(blocks)]


class SqueezeExcite(nn.Module):
    """Channels scaled by a gate that sees their means. Hu et al. 2017, https://arxiv.org/abs/1709.01507.

    Leaves: fc1 and fc2, 1x1 convolutions with bias.
    """

    reduced: int
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    gate: Callable[[jax.Array], jax.Array] = nn.sigmoid
    dtype: Any = jnp.float32
    names: tuple[str, str] = ("fc1", "fc2")

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = partial(Conv, kernel=1, bias=True, dtype=self.dtype)
        y = jnp.mean(at_least_float32(x), axis=(1, 2), keepdims=True).astype(self.dtype)
        y = self.activation(conv(self.reduced, name=self.names[0])(y))
        return x * self.gate(conv(x.shape[-1], name=self.names[1])(y))


def max_pool(x: jax.Array, kernel: int, stride: int, padding: int = 0) -> jax.Array:
    return nn.max_pool(x, (kernel, kernel), strides=(stride, stride), padding=((padding, padding),) * 2)


def global_mean(x: jax.Array) -> jax.Array:
    """[B, H, W, C] to float32 [B, C] (float64 stays)."""
    return jnp.mean(at_least_float32(x), axis=(1, 2))


def gelu(x: jax.Array) -> jax.Array:
    """The exact one, as torch's default."""
    return nn.gelu(x, approximate=False)


def dense(features: int, fan_in: int, name: str) -> nn.Dense:
    """A last layer, in float32, as torch.nn.Linear starts it."""
    init = torch_uniform(fan_in)
    return nn.Dense(features, kernel_init=init, bias_init=init, name=name)


def rematerialised(block: Any, on: bool) -> Any:
    """A block class whose activations are computed again in the backward pass, if `on`; its parameters keep their
    names. `train` must be an attribute or a keyword of the block that is a Python bool."""
    return nn.remat(block) if on else block
