"""Losses over embeddings of views, without labels. All are computed in float32 and give one value a sample."""

import jax
import jax.numpy as jnp

from jaxvision.ops import at_least_float32, at_temperature


def normalised(x: jax.Array) -> jax.Array:
    """Rows of length 1: x / max(|x|, 1e-6), so of a zero row zeros. |x| must be below 1e19, whose square overflows."""
    x = at_least_float32(x)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-12))


def _products(a: jax.Array, b: jax.Array) -> jax.Array:
    """All products of rows of a and b, in full float32.

    A TPU would multiply in bfloat16, and temperatures magnify the error.
    """
    return jnp.matmul(a, b.T, precision="highest")


def _diagonal(logits: jax.Array) -> jax.Array:
    """logits[i, i] of each row: not a product of its own, whose other rounding a low temperature would magnify."""
    return jnp.sum(jnp.where(jnp.eye(len(logits), dtype=bool), logits, 0), 1)


def nt_xent(a: jax.Array, b: jax.Array, mask: jax.Array, *, temperature: float) -> jax.Array:
    """SimCLR's contrast: a view must find the other view of its image among all views of the batch.

    With z the 2 B normalised rows of both, and i, j two views of one image:
    l(i, j) = -log(exp(z_i z_j / t) / sum over k != i of exp(z_i z_k / t)), here (l(i, j) + l(j, i)) / 2.

    Args:
      a, b: float[B, D], two views; rows of one image stand at the same place. Split over devices, each row still meets
        all 2 B - 1 others: the compiler gathers them.
      mask: bool[B], False is padding: nobody's negative.
      temperature: t > 0.

    Returns:
      float32[B]; of padding, something finite.

    Source: Chen et al. 2020, https://arxiv.org/abs/2002.05709, equation 1.
    """
    a, b = normalised(a), normalised(b)
    same = jnp.eye(len(a), dtype=bool)

    def side(one: jax.Array, other: jax.Array) -> jax.Array:
        to_other = jnp.where(mask | same, _products(one, other) / temperature, -jnp.inf)
        to_own = jnp.where(mask & ~same, _products(one, one) / temperature, -jnp.inf)
        everything = jax.nn.logsumexp(jnp.concatenate([to_other, to_own], 1), axis=1)
        return everything - _diagonal(to_other)

    return (side(a, b) + side(b, a)) / 2


def info_nce(query: jax.Array, keys: jax.Array, mask: jax.Array, *, temperature: float) -> jax.Array:
    """MoCo v3's contrast: -2 t log(exp(q_i k_i / t) / sum_j exp(q_i k_j / t)) of normalised rows.

    Args:
      query, keys: float[B, D]; row i of each is of image i.
      mask: bool[B], False is padding: nobody's negative.
      temperature: t > 0; the factor 2 t keeps the gradients' size independent of it.

    Returns:
      float32[B].

    Source: Chen, Xie, He 2021, https://arxiv.org/abs/2104.02057, algorithm 1.
    """
    query, keys = normalised(query), normalised(keys)
    allowed = mask | jnp.eye(len(query), dtype=bool)
    logits = jnp.where(allowed, _products(query, keys) / temperature, -jnp.inf)
    return 2 * temperature * (jax.nn.logsumexp(logits, axis=1) - _diagonal(logits))


def negative_cosine(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """-p z / (|p| |z|) of float[B, D] rows: float32[B].

    Source: Chen and He 2020 (SimSiam), https://arxiv.org/abs/2011.10566, equation 1. BYOL's loss is 2 + 2 times this
    (Grill et al. 2020, https://arxiv.org/abs/2006.07733, equation 2).
    """
    return -jnp.sum(normalised(prediction) * normalised(target), -1)


def dino_cross_entropy(
    student: jax.Array,
    teacher: jax.Array,
    centre: jax.Array,
    *,
    student_temperature: float,
    teacher_temperature: jax.Array,
) -> jax.Array:
    """-sum_k P_teacher log P_student, where P_student = softmax(s / t_s), P_teacher = softmax((t - centre) / t_t).

    Args:
      student, teacher: float[B, K], outputs of the two networks for two views.
      centre: float32[K], running mean of the teacher's outputs.
      student_temperature, teacher_temperature: > 0; the teacher's is the lower, which sharpens.

    Returns:
      float32[B].

    Source: Caron et al. 2021, https://arxiv.org/abs/2104.14294, equations 1 to 4.
    """
    target = jax.nn.softmax(at_temperature(at_least_float32(teacher) - centre, teacher_temperature))
    return -jnp.sum(target * jax.nn.log_softmax(at_temperature(student, student_temperature)), -1)


def masked_patch_error(prediction: jax.Array, patches: jax.Array, hidden: jax.Array, *, normalise: bool) -> jax.Array:
    """MAE's mean squared error over the hidden patches of an image.

    Args:
      prediction, patches: float[B, N, P], pixels of each patch.
      hidden: bool[B, N], True where the encoder did not see the patch.
      normalise: whether a patch's own mean and standard deviation are taken from its target.

    Returns:
      float32[B].

    Source: He et al. 2021, https://arxiv.org/abs/2111.06377, section 3; the variance as the authors' code has it, with
    P - 1 in the denominator and 1e-6 added.
    """
    patches = at_least_float32(patches)
    if normalise:
        # the second mean takes off what rounding left of the first: 1e-6 magnifies it in a patch of one colour
        for _ in range(2):
            patches = patches - jnp.mean(patches, -1, keepdims=True)
        patches = patches / jnp.sqrt(jnp.var(patches, -1, ddof=1, keepdims=True) + 1e-6)
    error = jnp.mean((at_least_float32(prediction) - patches) ** 2, -1)
    return jnp.sum(error * hidden, -1) / jnp.maximum(jnp.sum(hidden, -1), 1)
