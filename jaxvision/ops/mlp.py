"""The MLP of a transformer's block: layer norm, dense, exact GELU, dense, added to what came in."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvision.ops.fused import (
    Branch,
    Weights,
    dense,
    dot,
    layer_norm,
    normalised,
    normalised_backward,
    residual,
    rows_sum,
)

Leaves = dict[str, jax.Array]


def gelu(x: jax.Array) -> jax.Array:
    """The exact one, as torch's default."""
    return jax.nn.gelu(x, approximate=False)


def mlp_branch(
    x: jax.Array, norm: Leaves, first: Leaves, second: Leaves, *, epsilon: float = 1e-6, **more: Any
) -> jax.Array:
    """x + second(gelu(first(norm(x)))) of [B, N, D]; leaves are those of nn.LayerNorm and nn.Dense.

    On a TPU the hidden layer never reaches memory (`fused`); `more` are the arguments of `fused.residual`.
    """
    weights = (norm["scale"], norm["bias"], first["kernel"], first["bias"], second["kernel"], second["bias"])
    return residual(_MLP, x, weights, epsilon, **more)


def _plain(x: jax.Array, weights: Weights, epsilon: float) -> jax.Array:
    scale, bias, w1, b1, w2, b2 = weights
    return dense(gelu(dense(layer_norm(x, scale, bias, epsilon), w1, b1)), w2, b2)


def _forward(x: jax.Array, *, weights: Weights, options: float) -> jax.Array:
    scale, bias, w1, b1, w2, b2 = weights
    y, _ = normalised(x, options)
    hidden = dot((y * scale + bias).astype(x.dtype), w1) + b1
    return dot((hidden * _normal_cdf(hidden)).astype(x.dtype), w2) + b2


def _backward(x: jax.Array, dz: jax.Array, *, weights: Weights, options: float) -> tuple[jax.Array, Weights]:
    scale, bias, w1, b1, w2, _ = weights
    y, by = normalised(x, options)
    inside = (y * scale + bias).astype(x.dtype)
    hidden = dot(inside, w1) + b1
    cdf = _normal_cdf(hidden)
    active = (hidden * cdf).astype(x.dtype)
    density = jnp.exp(-0.5 * hidden * hidden) * (2 * np.pi) ** -0.5
    dhidden = dot(dz, w2, "nt") * (cdf + hidden * density)
    db1 = rows_sum(dhidden)
    dhidden = dhidden.astype(x.dtype)
    dy = dot(dhidden, w1, "nt")
    dx = normalised_backward(dy * scale, y, by)
    db2 = rows_sum(dz.astype(jnp.float32))
    return dx, (rows_sum(dy * y), rows_sum(dy), dot(inside, dhidden, "tn"), db1, dot(active, dz, "tn"), db2)


def _normal_cdf(x: jax.Array) -> jax.Array:
    return 0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5)


def _size(tokens: int, width: int, weights: Weights, options: float) -> float:
    hidden = weights[2].shape[1]
    return tokens * (12 * width + 6 * hidden)


_MLP = Branch("mlp", _plain, _forward, _backward, _size)
