"""Batch normalisation that reads and writes activations less often; the same values, up to rounding.

On an accelerator a step of a convolutional network is bound by the memory traffic of its activations, and most of that
is normalisation: what is written before it, read for its statistics, and read again in the backward pass.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from jaxvision.ops.convolution import conv, pixel_product, pixel_sums
from jaxvision.ops.reduce import at_least_float32

_exact = partial(jnp.einsum, precision="highest")  # of what is as small as the weights


@jax.custom_vjp
def relu(x: jax.Array) -> jax.Array:
    """max(x, 0). Its gradient looks at the output, which the next layer keeps anyway, not at the input."""
    return jnp.maximum(x, 0)


def _relu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    y = jnp.maximum(x, 0)
    return y, y


def _relu_backward(y: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    return (jnp.where(y > 0, g, jnp.zeros((), g.dtype)),)


relu.defvjp(_relu_forward, _relu_backward)


def _pixels(x: jax.Array) -> float:
    """Number of values of a channel.

    A float: over a pod they may be more than an int32 holds.
    """
    return float(x.size // x.shape[-1])


@jax.custom_vjp
def batch_statistics(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and (biased) variance of x [B, H, W, C] over all but the channels, at least float32, in one pass."""
    count = _pixels(x)
    total, squares = pixel_sums(lambda x: (x, x * x), x)
    mean = total / count
    return mean, jnp.maximum(squares / count - mean * mean, 0)


def _batch_statistics_forward(x: jax.Array) -> tuple:
    mean, var = batch_statistics(x)
    return (mean, var), (x, mean, var)


def _batch_statistics_backward(kept: tuple, cotangents: tuple) -> tuple[jax.Array]:
    x, mean, var = kept
    count = _pixels(x)
    through_mean, through_var = cotangents[0] / count, jnp.where(var > 0, cotangents[1], 0) * (2 / count)
    return ((through_mean + (at_least_float32(x) - mean) * through_var).astype(x.dtype),)


batch_statistics.defvjp(_batch_statistics_forward, _batch_statistics_backward)


@jax.custom_vjp
def pixel_sum(x: jax.Array) -> jax.Array:
    """x [B, H, W, C] summed to [C], in at least float32."""
    return pixel_sums(lambda x: (x,), x)[0]


pixel_sum.defvjp(lambda x: (pixel_sum(x), x), lambda x, g: (jnp.broadcast_to(g, x.shape).astype(x.dtype),))


@jax.custom_vjp
def scale_shift(x: jax.Array, times: jax.Array, plus: jax.Array) -> jax.Array:
    """x * times + plus of [B, H, W, C] and [C], in at least float32."""
    return at_least_float32(x) * times + plus


def _scale_shift_backward(kept: tuple, g: jax.Array) -> tuple:
    x, times = kept
    sum_g, sum_gx = pixel_sums(lambda g, x: (g, g * x), g, x)
    return (g * times).astype(x.dtype), sum_gx.astype(times.dtype), sum_g.astype(times.dtype)


scale_shift.defvjp(lambda x, times, plus: (scale_shift(x, times, plus), (x, times)), _scale_shift_backward)


@jax.custom_vjp
def shift(x: jax.Array, plus: jax.Array) -> jax.Array:
    """x + plus of [B, H, W, C] and [C], in at least float32."""
    return at_least_float32(x) + plus


# of kept arrays only what says the dtypes
shift.defvjp(
    lambda x, plus: (shift(x, plus), (x[:0], plus)),
    lambda kept, g: (g.astype(kept[0].dtype), pixel_sum(g).astype(kept[1].dtype)),
)


def folded(
    x: jax.Array, kernel: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The batch normalisation of a 1x1 convolution's output y = x W, without the output: as another kernel and a bias.

    y is linear in x, so its mean is E[x] W and its variance the diagonal of W' Cov[x] W; with the scale folded into W,
    the backward pass needs of y only what the gradient of W is made of. So y is not written before it is normalised,
    and neither kept nor read again. It costs a product x' x a pixel, a quarter of the convolution where that widens
    four times; see `models.layers.conv_norm` for where it is used.

    Args:
      x: [B, H, W, I].
      kernel: float32 [I, O].
      scale, bias: float32 [O].
      epsilon: added to the variance.

    Returns:
      kernel float32 [I, O] and bias float32 [O], with which `pointwise` gives the normalised output; mean and biased
      variance of y, float32 [O].
    """
    count = _pixels(x)
    mean_x = pixel_sum(x) / count
    gram = _gram(x) / count
    mean = _exact("i,io->o", mean_x, kernel)
    var = jnp.maximum(jnp.sum(kernel * _exact("ij,jo->io", gram, kernel), 0) - mean * mean, 0)
    by = jax.lax.rsqrt(var + epsilon) * scale
    return kernel * by, bias - mean * by, mean, var


@jax.custom_vjp
def pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 1x1 convolution of x [B, H, W, I] by kernel float32 [I, O], in the dtype of x.

    The gradient of the kernel is float32 throughout, where a cast before the convolution would round it.
    """
    # as a convolution and not as a product, so that the compiler lays x out as its neighbours do
    return conv(x, kernel[None, None].astype(x.dtype))


def _pointwise_backward(kept: tuple, g: jax.Array) -> tuple:
    x, kernel = kept
    return pointwise(g, kernel.T), pixel_product(x, g).astype(kernel.dtype)


pointwise.defvjp(lambda x, kernel: (pointwise(x, kernel), (x, kernel)), _pointwise_backward)


@jax.custom_vjp
def _gram(x: jax.Array) -> jax.Array:
    """x' x over all pixels, at least float32 [I, I]; its own gradient is one product instead of two."""
    return pixel_product(x, x)


_gram.defvjp(lambda x: (_gram(x), x), lambda x, g: (pointwise(x, g + g.T),))
