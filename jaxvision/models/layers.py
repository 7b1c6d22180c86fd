"""Layers that several families share: torch's geometry, initialisers, normalisation, stochastic depth, pooling.

Everything that is compiled into every network passes through here, so that what makes a step faster is done once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxvision.errors import nearest
from jaxvision.ops import (
    at_least_float32,
    batch_statistics,
    conv,
    folded,
    pointwise,
    scale_shift,
    shift,
)
from jaxvision.ops import max_pool as max_pool  # families take it from here

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

    def __call__(self, x: jax.Array) -> jax.Array:
        """The convolution of x [B, H, W, C], in `dtype`."""
        kernel, bias = self.leaves(x.shape[-1])
        pad = (self.kernel - 1) // 2 if self.padding is None else self.padding
        pads = ((pad, pad), (pad, pad)) if isinstance(pad, int) else tuple(pad)
        x = conv(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, pads, self.groups)
        return x if bias is None else x + bias.astype(self.dtype)

    @nn.compact
    def leaves(self, width: int) -> tuple[jax.Array, jax.Array | None]:
        """The kernel that an x [B, H, W, width] is convolved with, and the bias, if there is one, as stored."""
        shape = (self.kernel, self.kernel, width // self.groups, self.features)
        kernel = self.prepared(self.param("kernel", self.kernel_init, shape))
        return kernel, self.param("bias", self.bias_init, (self.features,)) if self.bias else None

    def prepared(self, kernel: jax.Array) -> jax.Array:
        """The kernel that is convolved with, of the one that is learnt."""
        return kernel

    def matrix(self, width: int) -> jax.Array:
        """The kernel of a 1x1 convolution of x [B, H, W, width], as [width, features]."""
        return self.leaves(width)[0][0, 0]

    def widens(self, width: int) -> bool:
        """Whether this is a plain 1x1 convolution that gives at least twice `width` channels."""
        return self.kernel == self.groups == 1 and not self.padding and not self.bias and self.features >= 2 * width


class _Affine(NamedTuple):
    """The leaves of a `BatchNorm`."""

    scale: jax.Array
    bias: jax.Array
    mean: nn.Variable[jax.Array]
    var: nn.Variable[jax.Array]


class BatchNorm(nn.Module):
    """Normalisation by the statistics of the global batch in training, else by those stored; as torch's BatchNorm2d.

    Leaves: scale, bias, and in the collection batch_stats mean and var, float32 [C]. `momentum` is 1 - torch's; the
    stored variance is the biased one, as flax and TensorFlow have it (torch stores n / (n - 1) times as much).
    """

    train: bool
    dtype: Any = jnp.float32
    epsilon: float = 1e-5
    momentum: float = 0.9
    scale_init: Initializer = nn.initializers.ones

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] normalised, in `dtype`."""
        # A copy (no code is made of it) adds the gradients of both uses first, whoever else uses x, as DenseNet does.
        x = jnp.copy(x) if self.train else x
        times, plus = self.affine(x)
        return scale_shift(x, times, plus).astype(self.dtype)

    def affine(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Factors and summands, float32 [C] each, that normalise x [B, H, W, C] (`ops.scale_shift`)."""
        leaves = self._leaves(x.shape[-1])
        mean, var = batch_statistics(x) if self.train else (leaves.mean.value, leaves.var.value)
        self._store(leaves, mean, var)
        times = jax.lax.rsqrt(var + self.epsilon) * leaves.scale
        return times, leaves.bias - mean * times

    def pooled(self, x: jax.Array, pool: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """pool(self(x)) for a maximum over windows of x [B, H, W, C], without writing the large map a second time.

        The maximum is taken before, of x, which gives the same since a normalised channel rises or falls with x.
        """
        leaves = self._leaves(x.shape[-1])
        sign = jnp.where(leaves.scale < 0, -1, 1)  # so that the largest stays the largest
        x = x * jnp.asarray(sign, x.dtype)
        mean, var = batch_statistics(x) if self.train else (leaves.mean.value * sign, leaves.var.value)
        self._store(leaves, mean * sign, var)
        times = jax.lax.rsqrt(var + self.epsilon) * leaves.scale * sign
        plus = leaves.bias - mean * times
        return scale_shift(pool(x), times, plus).astype(self.dtype)

    def folded(self, x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        """self(x convolved with a 1x1 kernel) as another kernel and a bias (`ops.folded`); in training only.

        Args:
          x: [B, H, W, I].
          kernel: float32 [I, O].

        Returns:
          kernel float32 [I, O] and bias float32 [O].
        """
        leaves = self._leaves(kernel.shape[-1])
        times, plus, mean, var = folded(x, kernel, leaves.scale, leaves.bias, self.epsilon)
        self._store(leaves, mean, var)
        return times, plus

    @nn.compact
    def _leaves(self, width: int) -> _Affine:
        return _Affine(
            self.param("scale", self.scale_init, (width,)),
            self.param("bias", nn.initializers.zeros, (width,)),
            self.variable("batch_stats", "mean", jnp.zeros, (width,)),
            self.variable("batch_stats", "var", jnp.ones, (width,)),
        )

    def _store(self, leaves: _Affine, mean: jax.Array, var: jax.Array) -> None:
        """Statistics of a batch, averaged into those stored; in training only."""
        if self.train and not self.is_initializing():
            leaves.mean.value = self.momentum * leaves.mean.value + (1 - self.momentum) * mean
            leaves.var.value = self.momentum * leaves.var.value + (1 - self.momentum) * var


Norm = Callable[[jax.Array], jax.Array]  # a BatchNorm, or what stands for one in a network without


def conv_norm(x: jax.Array, conv: Conv, norm: Norm) -> jax.Array:
    """norm(conv(x)) of x [B, H, W, C]; in training, where a 1x1 convolution widens, by `folded_conv_norm`."""
    if isinstance(norm, BatchNorm) and norm.train and conv.widens(x.shape[-1]):
        return folded_conv_norm(x, conv, norm)
    return norm(conv(x))


def folded_conv_norm(x: jax.Array, conv: Conv, norm: BatchNorm) -> jax.Array:
    """norm(conv(x)) of x [B, H, W, C] for a 1x1 convolution in training, without what is normalised (`ops.folded`).

    Equal up to rounding. Where the convolution does not widen, this costs more than it saves.
    """
    x = x.astype(conv.dtype)
    if conv.stride > 1:  # what is left out is not read again; without the barrier it would be, each time
        x = jax.lax.optimization_barrier(x[:, :: conv.stride, :: conv.stride])
    kernel, bias = norm.folded(x, conv.matrix(x.shape[-1]))
    return shift(pointwise(x, kernel), bias).astype(norm.dtype)


def norm_pool(x: jax.Array, norm: Norm, pool: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """pool(norm(x)) of x [B, H, W, C] for a maximum over windows; with BatchNorm by `BatchNorm.pooled`."""
    return norm.pooled(x, pool) if isinstance(norm, BatchNorm) else pool(norm(x))


def batch_norm(train: bool, dtype: Any, epsilon: float = 1e-5, momentum: float = 0.9) -> Callable[..., BatchNorm]:
    """`norm(name=..., scale_init=...)` of a `BatchNorm`."""
    return partial(BatchNorm, train=train, momentum=momentum, epsilon=epsilon, dtype=dtype)


def layer_norm(dtype: Any, epsilon: float = 1e-6) -> Callable[..., nn.Module]:
    """`norm(name=...)`: over the channels, statistics in float32."""
    return partial(nn.LayerNorm, epsilon=epsilon, dtype=dtype)


class DropPath(nn.Module):
    """Stochastic depth: a sample's branch is dropped with chance `rate`, else divided by 1 - rate.

    Huang et al. 2016, https://arxiv.org/abs/1603.09382; torchvision's `StochasticDepth(mode="row")`.
    """

    rate: float

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        keep = self.keep(x.shape[0], train=train)
        if keep is None:
            return x
        return jnp.where(keep.reshape(-1, *(1,) * (x.ndim - 1)), x / (1.0 - self.rate), jnp.zeros((), x.dtype))

    def keep(self, samples: int, *, train: bool) -> jax.Array | None:
        """bool[samples], False for those whose branch is dropped; None: none is."""
        if not train or self.rate == 0.0:
            return None
        return jax.random.bernoulli(self.make_rng("dropout"), 1.0 - self.rate, (samples,))


def linear_rates(rate: float, blocks: int) -> list[float]:
    """Rates of stochastic depth that grow linearly from 0 at the first block to `rate` at the last."""
    return [rate * k / max(1, blocks - 1) for k in range(blocks)]


def _is_product(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name in ("dot_general", "conv_general_dilated")


# What a block keeps of itself for the backward pass besides its input, by name.
REMAT: dict[str, Callable[..., bool]] = {
    "full": jax.checkpoint_policies.nothing_saveable,  # nothing: a forward pass more, the least memory
    "products": _is_product,  # what convolutions and matrix products gave: the rest costs few FLOPs to compute again
}


def recomputed(module: type[nn.Module], policy: str) -> type[nn.Module]:
    """The module, computed again in the backward pass as REMAT says; unchanged where the policy is "".

    Chen et al. 2016, https://arxiv.org/abs/1604.06174. Raises ValueError for a name that is none.
    """
    if not policy:
        return module
    if policy not in REMAT:
        raise ValueError(f"unknown remat: {nearest(str(policy), tuple(REMAT))}")
    return nn.remat(module, policy=REMAT[policy])


class SqueezeExcite(nn.Module):
    """Squeeze and excitation: channels scaled by a gate that sees their means.

    Hu et al. 2017, https://arxiv.org/abs/1709.01507.

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


def global_mean(x: jax.Array) -> jax.Array:
    """[B, H, W, C] to float32 [B, C] (float64 stays)."""
    return jnp.mean(at_least_float32(x), axis=(1, 2))


def channels_first(x: jax.Array) -> jax.Array:
    """[B, H, W, C] to [B, C * H * W] in torch's order, so that a dense layer after it has torch's kernel."""
    return x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)


def adaptive_mean_pool(x: jax.Array, size: int) -> jax.Array:
    """Mean pooling of [B, H, W, C] to [B, size, size, C], as torch.nn.AdaptiveAvgPool2d.

    Bins go from floor(i n / size) to ceil((i + 1) n / size), which overlap where n is no multiple.
    """

    def bins(n: int) -> np.ndarray:
        weights = np.zeros((size, n), np.float32)
        for i in range(size):
            start, stop = i * n // size, -(-(i + 1) * n // size)
            weights[i, start:stop] = 1 / (stop - start)
        return weights

    if x.shape[1:3] == (size, size):
        return x
    rows, columns = jnp.asarray(bins(x.shape[1]), x.dtype), jnp.asarray(bins(x.shape[2]), x.dtype)
    return jnp.einsum("ih,bhwc,jw->bijc", rows, x, columns)


def dense(features: int, fan_in: int, name: str, dtype: Any = None) -> nn.Dense:
    """Dense layer, initialised as torch.nn.Linear is; a last layer in float32, unless `dtype` says otherwise."""
    init = torch_uniform(fan_in)
    return nn.Dense(features, kernel_init=init, bias_init=init, dtype=dtype, name=name)


def classified(
    outputs: dict[str, jax.Array], classes: int, head: Callable[[jax.Array], jax.Array], x: jax.Array
) -> dict[str, jax.Array]:
    """`outputs` with "logits" = head(x). With 0 classes the network has no head: what self-supervision trains."""
    return {**outputs, "logits": head(x)} if classes else outputs


def patches(width: int, patch: int, dtype: Any, name: str) -> Conv:
    """The embedding of square patches: a convolution whose stride is its kernel."""
    init = nn.initializers.lecun_normal()
    return Conv(width, patch, patch, 0, bias=True, kernel_init=init, dtype=dtype, name=name)


def divisible(channels: float, by: int = 8) -> int:
    """The nearest multiple, at least `by`, that is no more than a tenth smaller (MobileNetV2's rule)."""
    rounded = max(by, int(channels + by / 2) // by * by)
    return rounded if rounded >= 0.9 * channels else rounded + by


class InvertedResidual(nn.Module):
    """Inverted residual: 1x1 convolution to `expanded` channels, depthwise convolution, squeeze and excitation, 1x1
    back.

    The depthwise convolution treats each channel by itself. The last convolution goes to `features` channels. The
    result is added to what came in where the shapes agree. Sandler et al. 2018 (MobileNetV2).

    Convolutions and norms are called block_0_0, block_0_1, block_1_0 ... in their order, as torch numbers them; what is
    not there (no expansion, squeeze=0) has no number. `fused`: the first two convolutions are one full one (Tan and Le
    2021, EfficientNetV2).
    """

    features: int
    expanded: int
    kernel: int
    stride: int
    squeeze: int
    activation: Callable[[jax.Array], jax.Array]
    norm: Callable[..., BatchNorm]
    train: bool
    dtype: Any
    fused: bool = False
    squeeze_activation: Callable[[jax.Array], jax.Array] = nn.relu
    squeeze_gate: Callable[[jax.Array], jax.Array] = nn.sigmoid
    drop_path: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width, place = x.shape[-1], 0
        y = x

        def conv(y: jax.Array, features: int, kernel: int, stride: int, groups: int = 1) -> jax.Array:
            nonlocal place
            layer = Conv(features, kernel, stride, groups=groups, dtype=self.dtype, name=f"block_{place}_0")
            y = conv_norm(y, layer, self.norm(name=f"block_{place}_1"))
            place += 1
            return y

        if self.fused:
            if self.expanded == width:
                y = self.activation(conv(y, self.features, self.kernel, self.stride))
            else:
                y = self.activation(conv(y, self.expanded, self.kernel, self.stride))
                y = conv(y, self.features, 1, 1)
        else:
            if self.expanded != width:
                y = self.activation(conv(y, self.expanded, 1, 1))
            y = self.activation(conv(y, self.expanded, self.kernel, self.stride, self.expanded))
            if self.squeeze:
                y = SqueezeExcite(
                    self.squeeze, self.squeeze_activation, self.squeeze_gate, self.dtype, name=f"block_{place}"
                )(y)
                place += 1
            y = conv(y, self.features, 1, 1)
        if self.stride == 1 and width == self.features:
            return x + DropPath(self.drop_path)(y, train=self.train)
        return y
