"""Losses over classes that have an order: K - 1 questions, whether a label is above class k.

Cao et al. 2019, https://arxiv.org/abs/1901.07884 (CORAL), asks them with one score a sample and a bias a question.
"""

import jax
import jax.numpy as jnp

from jaxvision.losses.classification import sigmoid_cross_entropy
from jaxvision.ops import at_least_float32


def ordinal_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Sum over k of the binary cross-entropy of sigmoid(x_k), the probability that the label is above class k.

    Args:
      logits: float[B, K - 1]; computed on in float32 at least.
      labels: int32[B] in 0..K - 1, or soft float32[B, K] whose rows sum to 1 (mixup): then the target of
        question k is the share of the classes above it.

    Returns:
      float32[B].

    Source: Cao et al. 2019, https://arxiv.org/abs/1901.07884, equation 5 with all weights 1.
    """
    if labels.ndim == 1:
        above = labels[:, None] > jnp.arange(logits.shape[-1])
    else:
        above = 1.0 - jnp.cumsum(labels, -1)[:, :-1]
    return jnp.sum(sigmoid_cross_entropy(logits, above), -1)


def ordinal_log_probabilities(logits: jax.Array) -> jax.Array:
    """log P(class k) = log(sigmoid(x_(k-1)) - sigmoid(x_k)) of each of K classes.

    logits: float[B, K - 1] that never rise along the last axis; 1 and 0 stand for the sigmoids beyond its ends. Returns
    float32[B, K]. Two that are equal leave the class between them no probability: it gets that of a difference of
    1e-6, so that all is finite.
    """
    x = at_least_float32(logits)
    above, below = jax.nn.log_sigmoid(x), jax.nn.log_sigmoid(-x)
    # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - e^(b - a))
    between = above[:, :-1] + below[:, 1:] + jnp.log(-jnp.expm1(-jnp.maximum(x[:, :-1] - x[:, 1:], 1e-6)))
    return jnp.concatenate([below[:, :1], between, above[:, -1:]], -1)
