"""Batch normalisation that reads and writes activations less often; the same values, up to rounding.

On an accelerator a step of a convolutional network is bound by the memory traffic of its activations, and most of that
is normalisation: what is written before it, read for its statistics, and read again in the backward pass.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from jaxvision.ops.reduce import at_least_float32

_PIXELS = (0, 1, 2)
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


def batch_statistics(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and (biased) variance of x [B, H, W, C] over all but the channels, at least float32, in one pass."""
    x = at_least_float32(x)
    mean = jnp.mean(x, _PIXELS)
    return mean, jnp.maximum(jnp.mean(x * x, _PIXELS) - mean * mean, 0)


def folded(
    x: jax.Array, kernel: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The batch normalisation of a 1x1 convolution's output y = x W, without the output: as another kernel and a bias.

    y is linear in x, so its mean is E[x] W and its variance the diagonal of W' Cov[x] W; with the scale folded into W,
    the backward pass needs of y only what the gradient of W is made of. So y is not written before it is normalised,
    and neither kept nor read again. It costs a product x' x a pixel, a quarter of the convolution where that widens
    four times; see `models.layers.Conv` for where it is used.

    Args:
      x: [B, H, W, I].
      kernel: float32 [I, O].
      scale, bias: float32 [O].
      epsilon: added to the variance.

    Returns:
      kernel float32 [I, O] and bias float32 [O], with which `pointwise` gives the normalised output; mean and biased
      variance of y, float32 [O].
    """
    mean_x = jnp.mean(at_least_float32(x), _PIXELS)
    gram = _gram(x) / (x.size // x.shape[-1])
    mean = _exact("i,io->o", mean_x, kernel)
    var = jnp.maximum(jnp.sum(kernel * _exact("ij,jo->io", gram, kernel), 0) - mean * mean, 0)
    by = jax.lax.rsqrt(var + epsilon) * scale
    return kernel * by, bias - mean * by, mean, var


@jax.custom_vjp
def _gram(x: jax.Array) -> jax.Array:
    """x' x over all pixels, at least float32 [I, I]; its own gradient is one product instead of two."""
    return jnp.einsum("bhwi,bhwj->ij", x, x, preferred_element_type=at_least_float32(x[0, 0, 0]).dtype)


_gram.defvjp(lambda x: (_gram(x), x), lambda x, g: (pointwise(x, g + g.T),))


@jax.custom_vjp
def pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 1x1 convolution of x [B, H, W, I] by kernel float32 [I, O], in the dtype of x.

    The gradient of the kernel is float32 throughout, where a cast before the convolution would round it.
    """
    # as a convolution and not as a product, so that the compiler lays x out as its neighbours do
    return jax.lax.conv_general_dilated(
        x, kernel[None, None].astype(x.dtype), (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _pointwise_forward(x: jax.Array, kernel: jax.Array) -> tuple:
    return pointwise(x, kernel), (x, kernel)


def _pointwise_backward(kept: tuple, g: jax.Array) -> tuple:
    x, kernel = kept
    return pointwise(g, kernel.T), jnp.einsum("bhwi,bhwo->io", x, g, preferred_element_type=kernel.dtype)


pointwise.defvjp(_pointwise_forward, _pointwise_backward)
