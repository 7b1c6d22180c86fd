"""Mixing pairs of images: row i with row B - 1 - i of the batch, one ratio for the whole batch (as timm does).

A row whose partner is padding stays as it is, so padding never reaches a real sample.
"""

import jax
import jax.numpy as jnp


def mixup_images(key: jax.Array, images: jax.Array, mask: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """ratio * x_i + (1 - ratio) * x_j with ratio ~ Beta(alpha, alpha).

    Args:
      key: random key.
      images: uint8 or float32 [B, H, W, C], in 0..255.
      mask: bool[B], False marks padding.
      alpha: > 0; both parameters of the Beta distribution.

    Returns:
      images float32[B, H, W, C] and float32[B], the weight of each row's own label.

    Source: Zhang et al. 2018, https://arxiv.org/abs/1710.09412.
    """
    ratio = _beta(key, alpha)
    own = jnp.where(mask[::-1], ratio, 1.0)
    images = images.astype(jnp.float32)
    weight = own[:, None, None, None]
    return weight * images + (1 - weight) * images[::-1], own


def cutmix_images(key: jax.Array, images: jax.Array, mask: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """Paste a box of the partner's pixels, of area 1 - ratio before clipping, ratio ~ Beta(alpha, alpha).

    The centre of the box is uniform over the image and the box is clipped at the border; the weight of the
    label is the share of the pixels that stayed, counted after clipping. Shapes as `mixup_images`.

    Source: Yun et al. 2019, https://arxiv.org/abs/1905.04899, section 3 and algorithm A1.
    """
    height, width = images.shape[1:3]
    key_ratio, key_y, key_x = jax.random.split(key, 3)
    side = jnp.sqrt(1.0 - _beta(key_ratio, alpha))
    inside_y = _span(key_y, height, side)
    inside_x = _span(key_x, width, side)
    box = inside_y[:, None] & inside_x[None, :]
    paste = box[None] & mask[::-1][:, None, None]
    images = images.astype(jnp.float32)
    mixed = jnp.where(paste[..., None], images[::-1], images)
    return mixed, 1.0 - jnp.mean(paste.astype(jnp.float32), axis=(1, 2))


def _beta(key: jax.Array, alpha: float) -> jax.Array:
    """f32[] from Beta(alpha, alpha)."""
    both = jnp.float32(alpha)
    return jax.random.beta(key, both, both)


def _span(key: jax.Array, length: int, side: jax.Array) -> jax.Array:
    """bool[length]: pixels within side * length / 2 of a uniform centre."""
    centre = jax.random.randint(key, (), 0, length)
    half = (side * length / 2).astype(jnp.int32)
    position = jnp.arange(length)
    return (position >= centre - half) & (position < centre + half)
