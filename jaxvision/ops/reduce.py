"""Reductions that know about padding."""

import jax
import jax.numpy as jnp


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of values[B] over the rows where mask[B] is True; 0 if there is none.

    `where` and not a product: a padded row may hold NaN, and NaN * 0 is NaN.
    """
    total = jnp.sum(jnp.where(mask, values, 0))
    return total / jnp.maximum(jnp.sum(mask), 1)
