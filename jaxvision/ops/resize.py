"""The evaluation pixels of a contract, computed where the network is: what an exported file does to a photo."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxvision.data.contract import InputContract

# To whole levels: halves up, as Pillow. The thousandth part lifts what is a half but for the order of a sum above it,
# so that a compiler that sums in another order rounds it the same way.
ROUNDING = 0.5 + 1e-4


def evaluation_pixels(images: jax.Array, contract: InputContract) -> jax.Array:
    """uint8 [B, H, W, C] to float32 [B, height, width, C], whole numbers in 0..255: `data.transforms.preprocess`.

    Resized and put on the canvas as `contract.fit` says. H and W may be symbolic (`jax.export.symbolic_shape`). By an
    antialiased filter each pass is rounded to whole levels and the columns come first, as in Pillow. Pillow and OpenCV
    weigh in fixed point, so in photos a pixel in a thousand or fewer differs by one level; and Pillow 13 takes the rows
    first where an image is more than twice as high as wide, so there one in five does. Only what is on the canvas is
    computed, as two products with H x height and W x width weights. What no image covers is exact.
    """
    height, width = (jnp.asarray(side, jnp.int32) for side in images.shape[1:3])
    new_height, new_width = _fitted(height, width, contract)
    x = images.astype(jnp.float32).transpose(0, 3, 1, 2)
    passes = ((2, width, new_width, contract.width), (2, height, new_height, contract.height))
    for place, (side, length, new, count) in enumerate(passes):
        weights = _weights(x.shape[3], length, new, count, contract)
        x = jnp.dot(x, weights, precision=jax.lax.Precision.HIGHEST)
        if contract.filter != "linear" or place == 1:  # OpenCV rounds once, at the end
            x = jnp.clip(jnp.floor(x + ROUNDING), 0.0, 255.0)
        x = x.swapaxes(side, 3)
    x = x.transpose(0, 2, 3, 1)
    if contract.fit in ("crop", "stretch"):
        return x
    rows, columns = (_covered(new, side) for new, side in ((new_height, contract.height), (new_width, contract.width)))
    inside = rows[:, None, None] * columns[None, :, None]  # 1 or 0: products, since they are exact
    return x * inside + jnp.asarray(contract.fill, jnp.float32) * (1.0 - inside)


def _fitted(height: jax.Array, width: jax.Array, contract: InputContract) -> tuple[jax.Array, jax.Array]:
    """`contract.fitted`, of sides that are values of the program."""
    if contract.fit == "stretch":
        return jnp.int32(contract.height), jnp.int32(contract.width)
    short, long = jnp.minimum(height, width), jnp.maximum(height, width)
    bounds = [] if contract.fit == "crop" else [(contract.height, height), (contract.width, width)]
    bounds += [(contract.resize, short)] if contract.resize else []
    bounds += [(contract.longest, long)] if contract.longest else []
    new, old = jnp.int32(bounds[0][0]), bounds[0][1]
    for side, of in bounds[1:]:
        smaller = side * old < new * of
        new, old = jnp.where(smaller, jnp.int32(side), new), jnp.where(smaller, of, old)
    return jnp.maximum(jax.lax.div(height * new, old), 1), jnp.maximum(jax.lax.div(width * new, old), 1)


def _covered(new: jax.Array, side: int) -> jax.Array:
    """float32 [side]: 1 where an image of `new` pixels lies, else 0."""
    return jnp.clip(new - jnp.arange(side, dtype=jnp.int32), 0, 1).astype(jnp.float32)


def _weights(count: int, length: jax.Array, new: jax.Array, side: int, contract: InputContract) -> jax.Array:
    """float32 [count, side]: how much of each old pixel is in the new ones on the canvas. `length` is `count` as a
    value.

    A new pixel's centre lies at (o + 0.5) length / new of the old ones, and the filter is stretched by length / new
    where that is above 1, unless it is "linear". Distances are fractions of whole numbers, which are exact here.
    """
    o = jnp.arange(side, dtype=jnp.int32)
    if contract.fit == "crop":
        spare = new - side
        first = jax.lax.div(spare, 2)
        o = o + first + (jax.lax.rem(spare, 2) & jax.lax.rem(first, 2))  # halves to even, as torchvision
    else:
        o = jnp.minimum(o, new - 1)  # beyond the image whatever it is, so long as it is a number
    x = jnp.arange(count, dtype=jnp.int32)
    distance = (2 * x[:, None] + 1) * new - (2 * o[None, :] + 1) * length
    reach = new if contract.filter == "linear" else jnp.maximum(length, new)
    near = jnp.abs(distance.astype(jnp.float32) / (2 * reach).astype(jnp.float32))
    weights = _catmull_rom(near) if contract.filter == "bicubic" else jnp.maximum(1.0 - near, 0.0)
    return weights / jnp.sum(weights, axis=0, keepdims=True)


def _catmull_rom(near: jax.Array) -> jax.Array:
    """The cubic convolution kernel with a = -0.5 (Keys 1981), which Pillow calls bicubic."""
    inner = (1.5 * near - 2.5) * near * near + 1.0
    outer = ((-0.5 * near + 2.5) * near - 4.0) * near + 2.0
    return jnp.where(near < 1.0, inner, jnp.where(near < 2.0, outer, 0.0))
