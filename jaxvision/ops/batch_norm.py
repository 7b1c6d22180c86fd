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


@jax.custom_vjp
def batch_statistics(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and (biased) variance of x [B, H, W, C] over all but the channels, at least float32, in one pass."""
    count = x.size // x.shape[-1]
    total, squares = pixel_sums(lambda x: (x, x * x), x)
    mean = total / count
    return mean, jnp.maximum(squares / count - mean * mean, 0)


def _batch_statistics_forward(x: jax.Array) -> tuple:
    mean, var = batch_statistics(x)
    return (mean, var), (x, mean, var)


def _batch_statistics_backward(kept: tuple, cotangents: tuple) -> tuple[jax.Array]:
    x, mean, var = kept
    count = x.size // x.shape[-1]
    through_mean, through_var = cotangents[0] / count, jnp.where(var > 0, cotangents[1], 0) * (2 / count)
    return ((through_mean + (at_least_float32(x) - mean) * through_var).astype(x.dtype),)


batch_statistics.defvjp(_batch_statistics_forward, _batch_statistics_backward)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def normalise(
    x: jax.Array, mean: jax.Array, var: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> jax.Array:
    """(x - mean) / sqrt(var + epsilon) * scale + bias, in at least float32."""
    return (at_least_float32(x) - mean) * (jax.lax.rsqrt(var + epsilon) * scale) + bias


def _normalise_forward(
    x: jax.Array, mean: jax.Array, var: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple:
    return normalise(x, mean, var, scale, bias, epsilon), (x, mean, jax.lax.rsqrt(var + epsilon), scale, bias)


def _normalise_backward(epsilon: float, kept: tuple, g: jax.Array) -> tuple:
    x, mean, inverse, scale, bias = kept
    factor = inverse * scale
    sum_g, sum_gx = pixel_sums(lambda g, x: (g, g * x), g, x)
    through_factor = sum_gx - mean * sum_g
    return (
        (g * factor).astype(x.dtype),
        (-factor * sum_g).astype(mean.dtype),
        (through_factor * scale * inverse**3 * -0.5).astype(inverse.dtype),
        (through_factor * inverse).astype(scale.dtype),
        sum_g.astype(bias.dtype),
    )


normalise.defvjp(_normalise_forward, _normalise_backward)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def conv_batch_norm(
    x: jax.Array, kernel: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A 1x1 convolution and the batch normalisation of its output, which is never written before it is normalised.

    The output y = x W is linear in x, so what normalisation needs of it follows from matrices as small as W: its mean
    is E[x] W, its variance that of diag(W' Cov[x] W), the sum of g y in the backward pass that of the columns of
    W * (x' g), and x' g is what the gradient of W is made of. So y is neither kept nor read again. It costs a product
    x' x a pixel, a quarter of the convolution where it widens four times; see `Conv` for where it is used.

    Args:
      x: [B, H, W, I].
      kernel: float32 [I, O].
      scale, bias: float32 [O].
      epsilon: added to the variance.

    Returns:
      [B, H, W, O] in the dtype of x; mean and biased variance of the convolution's output, float32 [O], which have no
      gradient.
    """
    return _forward(x, kernel, scale, bias, epsilon)[0]


def _forward(x: jax.Array, kernel: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> tuple:
    rounded = kernel.astype(x.dtype)
    w = at_least_float32(rounded)
    count = x.size // x.shape[-1]
    mean_x = pixel_sums(lambda x: (x,), x)[0] / count
    gram = pixel_product(x, x) / count
    mean = _exact("i,io->o", mean_x, w)
    var = jnp.maximum(jnp.sum(w * _exact("ij,jo->io", gram, w), 0) - mean * mean, 0)
    y = normalise(conv(x, rounded[None, None]), mean, var, scale, bias, epsilon).astype(x.dtype)
    return (y, mean, var), (x, kernel, scale, mean_x, gram, mean, jax.lax.rsqrt(var + epsilon))


def _backward(epsilon: float, kept: tuple, cotangents: tuple) -> tuple:
    x, kernel, scale, mean_x, gram, mean, inverse = kept
    g = cotangents[0]
    w = at_least_float32(kernel.astype(x.dtype))
    count = x.size // x.shape[-1]
    (sum_g,) = pixel_sums(lambda g: (g,), g)
    cross = pixel_product(x, g)
    grad_scale = inverse * (jnp.sum(w * cross, 0) - mean * sum_g)
    # the gradient of y is a g + b y + c, channel by channel, and y = x W
    a = scale * inverse
    b = -a * inverse * grad_scale / count
    c = -a * sum_g / count - b * mean
    through_g, through_y = (w * a).T, _exact("io,o,jo->ij", w, b, w)
    grad_x = at_least_float32(conv(g, through_g.astype(x.dtype)[None, None]))
    grad_x += at_least_float32(conv(x, through_y.astype(x.dtype)[None, None])) + _exact("io,o->i", w, c)
    grad_w = a * cross + count * (b * _exact("ij,jo->io", gram, w) + jnp.outer(mean_x, c))
    return (
        grad_x.astype(x.dtype),
        grad_w.astype(kernel.dtype),
        grad_scale.astype(scale.dtype),
        sum_g.astype(scale.dtype),
    )


conv_batch_norm.defvjp(_forward, _backward)
