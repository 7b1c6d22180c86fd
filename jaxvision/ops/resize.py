"""The evaluation pixels of a contract, computed where the network is: what an exported file does to a photo."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxvision.data.contract import InputContract

# To whole levels: halves up, as Pillow. The thousandth part lifts what is a half but for the order of a sum above it,
# so that a compiler that sums in another order rounds it the same way.
ROUNDING = 0.5 + 1e-4


def evaluation_pixels(images: jax.Array, contract: InputContract) -> jax.Array:
    """uint8 [B, H, W, C] to float32 [B, size, size, C], whole numbers in 0..255: `data.transforms.preprocess`.

    The shorter side is resized to `contract.resize` by Pillow's antialiased filter and the centre cut out. H and W may
    be symbolic (`jax.export.symbolic_shape`). As in Pillow each pass is rounded to whole levels and the columns come
    first. Pillow weighs in fixed point, so in photos a pixel in a thousand or fewer differs by one level; and Pillow 13
    takes the rows first where an image is more than twice as high as wide, so there one in five does. Only what is in
    the crop is computed, as two products with H x size and W x size weights.
    """
    height, width = (jnp.asarray(side, jnp.int32) for side in images.shape[1:3])
    scaled = [_longer(contract.resize, side, other) for side, other in ((height, width), (width, height))]
    x = images.astype(jnp.float32).transpose(0, 3, 1, 2)
    for side, length, new in ((2, width, scaled[1]), (2, height, scaled[0])):
        weights = _weights(x.shape[3], length, new, contract)
        x = jnp.floor(jnp.dot(x, weights, precision=jax.lax.Precision.HIGHEST) + ROUNDING)
        x = jnp.clip(x, 0.0, 255.0).swapaxes(side, 3)
    return x.transpose(0, 2, 3, 1)


def _longer(resize: int, side: jax.Array, other: jax.Array) -> jax.Array:
    """What `side` becomes when the shorter one becomes `resize`; the longer is rounded down, as torchvision does."""
    return jnp.where(side <= other, resize, jax.lax.div(resize * side, other))


def _weights(count: int, length: jax.Array, new: jax.Array, contract: InputContract) -> jax.Array:
    """float32 [count, size]: how much of each old pixel is in the new ones of the crop. `length` is `count` as a value.

    A new pixel's centre lies at (o + 0.5) length / new of the old ones, and the filter is stretched by length / new
    where that is above 1. Distances are fractions of whole numbers, which are exact here.
    """
    spare = new - contract.size
    first = jax.lax.div(spare, 2)
    first = first + (jax.lax.rem(spare, 2) & jax.lax.rem(first, 2))  # halves to even, as torchvision
    o = first + jnp.arange(contract.size, dtype=jnp.int32)
    x = jnp.arange(count, dtype=jnp.int32)
    distance = (2 * x[:, None] + 1) * new - (2 * o[None, :] + 1) * length
    near = jnp.abs(distance.astype(jnp.float32) / (2 * jnp.maximum(length, new)).astype(jnp.float32))
    weights = jnp.maximum(1.0 - near, 0.0) if contract.filter == "bilinear" else _catmull_rom(near)
    return weights / jnp.sum(weights, axis=0, keepdims=True)


def _catmull_rom(near: jax.Array) -> jax.Array:
    """The cubic convolution kernel with a = -0.5 (Keys 1981), which Pillow calls bicubic."""
    inner = (1.5 * near - 2.5) * near * near + 1.0
    outer = ((-0.5 * near + 2.5) * near - 4.0) * near + 2.0
    return jnp.where(near < 1.0, inner, jnp.where(near < 2.0, outer, 0.0))
