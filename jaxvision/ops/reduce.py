"""Reductions that know about padding."""

import jax
import jax.numpy as jnp


def at_least_float32(x: jax.Array) -> jax.Array:
    """bfloat16 and float16 to float32; float64 stays (tests that need more digits than float32 has)."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def at_temperature(x: jax.Array, temperature: float | jax.Array) -> jax.Array:
    """(x - max x) / temperature along the last axis, in at least float32: its softmax is that of x / temperature.

    The difference comes first: 1e4 / 0.001 has a rounding error of 0.5 in float32, and a softmax shows it.
    """
    x = at_least_float32(x)
    return (x - jax.lax.stop_gradient(jnp.max(x, -1, keepdims=True))) / temperature


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of values[B] over the rows where mask[B] is True; 0 if there is none.

    `where` and not a product: a padded row may hold NaN, and NaN * 0 is NaN.
    """
    total = jnp.sum(jnp.where(mask, values, 0))
    return total / jnp.maximum(jnp.sum(mask), 1)
