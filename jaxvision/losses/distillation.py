"""Losses between a network's class scores and its teacher's."""

import jax
import jax.numpy as jnp

from jaxvision.ops import at_temperature


def soft_target_divergence(logits: jax.Array, teacher: jax.Array, *, temperature: float = 1.0) -> jax.Array:
    """T^2 * KL(p || q) = T^2 * sum_c p_c (log p_c - log q_c), p = softmax(teacher / T), q = softmax(logits / T).

    T^2 keeps the gradients' size as T changes.

    Args:
      logits: float[B, C], computed on in float32 at least; so is `teacher`, of the same shape.
      temperature: T; above 1 the teacher's small probabilities count more.

    Returns:
      float32[B], at least 0 up to rounding.

    Source: Hinton et al. 2015, https://arxiv.org/abs/1503.02531, section 2.
    """
    log_p = jax.nn.log_softmax(at_temperature(teacher, temperature))
    log_q = jax.nn.log_softmax(at_temperature(logits, temperature))
    return temperature**2 * jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
