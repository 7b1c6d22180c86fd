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


def softmax_focal(logits: jax.Array, labels: jax.Array, *, gamma: float, smoothing: float = 0.0) -> jax.Array:
    """-sum_c t_c (1 - p_c)^gamma log p_c with p = softmax(logits): right and confident samples count less.

    Args:
      logits: float[B, C]; computed on in float32 at least.
      labels: int32[B], or soft float32[B, C] whose rows sum to 1.
      gamma: >= 0; 0 is softmax_cross_entropy.
      smoothing: as in softmax_cross_entropy.

    Returns:
      float32[B].

    Source: Lin et al. 2017, https://arxiv.org/abs/1708.02002, equation 4 for more than two classes.
    """
    log_p = jax.nn.log_softmax(at_least_float32(logits))
    if labels.ndim == 1:
        labels = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)
    if smoothing:
        labels = (1.0 - smoothing) * labels + smoothing / logits.shape[-1]
    # p below 1: the power's derivative at 0 is infinite for a gamma below 1
    log_rest = jnp.log(-jnp.expm1(jnp.minimum(log_p, -1e-7)))
    return -jnp.sum(labels * jnp.exp(gamma * log_rest) * log_p, -1)


def sigmoid_cross_entropy(
    logits: jax.Array, labels: jax.Array, *, smoothing: float = 0.0, pos_weight: float | jax.Array = 1.0
) -> jax.Array:
    """-w t log sigmoid(x) - (1 - t) log(1 - sigmoid(x)) of each class, t = (1 - smoothing) * labels + smoothing / 2.

    Args:
      logits: float[..., C]; computed on in float32 at least.
      labels: float32[..., C] in 0..1; one that is NaN is unknown, and costs 0.
      smoothing: moves each target towards 1/2.
      pos_weight: w, a number or one a class: how much a positive counts, as in torch's BCEWithLogitsLoss.

    Returns:
      float32[..., C].
    """
    return sigmoid_focal(logits, labels, gamma=0.0, smoothing=smoothing, pos_weight=pos_weight)


def sigmoid_focal(
    logits: jax.Array,
    labels: jax.Array,
    *,
    gamma: float,
    smoothing: float = 0.0,
    pos_weight: float | jax.Array = 1.0,
) -> jax.Array:
    """-w t (1 - p)^gamma log p - (1 - t) p^gamma log(1 - p) of each class, with p = sigmoid(x).

    Linear in the target, so the loss of a mixture of labels is the mixture of the losses. Arguments and result as
    in sigmoid_cross_entropy, which is gamma = 0. The alpha-balanced form is 1 - alpha times that of
    pos_weight = alpha / (1 - alpha).

    Source: Lin et al. 2017, https://arxiv.org/abs/1708.02002, equations 4 and 5.
    """
    logits, labels = at_least_float32(logits), labels.astype(jnp.float32)
    known = ~jnp.isnan(labels)
    labels = jnp.where(known, labels, 0.0)  # not only in the result: the gradient would be NaN times 0
    if smoothing:
        labels = (1.0 - smoothing) * labels + smoothing / 2
    log_p, log_not = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    positive, negative = labels * log_p, (1.0 - labels) * log_not
    if gamma:  # as exponentials of logarithms, whose derivatives stay finite
        positive, negative = positive * jnp.exp(gamma * log_not), negative * jnp.exp(gamma * log_p)
    return jnp.where(known, -(pos_weight * positive + negative), 0.0)
