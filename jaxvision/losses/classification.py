"""Losses over class scores."""

import jax
import jax.numpy as jnp
import optax

from jaxvision.ops import at_least_float32


def softmax_cross_entropy(logits: jax.Array, labels: jax.Array, *, smoothing: float = 0.0) -> jax.Array:
    """-sum_c t_c log softmax(logits)_c, where t = (1 - smoothing) * labels + smoothing / C.

    Args:
      logits: float[B, C]; computed on in float32 at least.
      labels: int32[B], or soft float32[B, C] whose rows sum to 1 (mixup, distillation).
      smoothing: share of the probability spread evenly over all C classes, the right one included.

    Returns:
      float32[B].

    Source: label smoothing, Szegedy et al. 2016, https://arxiv.org/abs/1512.00567, section 7.
    """
    logits = at_least_float32(logits)
    if labels.ndim == 1:
        labels = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)
    if smoothing:
        labels = (1.0 - smoothing) * labels + smoothing / logits.shape[-1]
    return optax.softmax_cross_entropy(logits, labels)
