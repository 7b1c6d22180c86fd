"""Losses over numbers."""

import jax
import jax.numpy as jnp

from jaxvision.ops import at_least_float32


def squared_error(values: jax.Array, labels: jax.Array) -> jax.Array:
    """(x - t)^2: float[...] and float[...] to float32[...]."""
    return jnp.square(at_least_float32(values) - labels)


def absolute_error(values: jax.Array, labels: jax.Array) -> jax.Array:
    """|x - t|: float[...] and float[...] to float32[...]."""
    return jnp.abs(at_least_float32(values) - labels)


def huber(values: jax.Array, labels: jax.Array, *, delta: float = 1.0) -> jax.Array:
    """d^2 / 2 where |d| <= delta, else delta (|d| - delta / 2), with d = x - t: outliers pull with a constant force.

    float[...] and float[...] to float32[...]. Source: Huber 1964, https://doi.org/10.1214/aoms/1177703732.
    """
    error = absolute_error(values, labels)
    near = jnp.minimum(error, delta)
    return near * (error - near / 2)
