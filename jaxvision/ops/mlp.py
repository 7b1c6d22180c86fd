"""The MLP of a transformer's block, with its norm, added to what came in."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvision.ops import fused

Leaves = dict[str, jax.Array]


def gelu(x: jax.Array) -> jax.Array:
    """The exact one, as torch's default."""
    return jax.nn.gelu(x, approximate=False)


def mlp_branch(x: jax.Array, norm: Leaves, first: Leaves, second: Leaves, **more: Any) -> jax.Array:
    """x + second(gelu(first(norm(x)))) of [B, N, D]; leaves are those of nn.LayerNorm and nn.Dense.

    On a TPU the hidden layer never reaches memory. `more` are keyword arguments of `fused.residual`.
    """
    weights = fused.Weights(
        norm["scale"], norm["bias"], first["kernel"], first["bias"], second["kernel"], second["bias"]
    )
    return fused.residual(_MLP, x, weights, **more)


def _plain(x: jax.Array, weights: fused.Weights, call: fused.Call) -> jax.Array:
    return fused.second(gelu(fused.first(x, weights, call)), weights)


def _middle(x: jax.Array, call: fused.Call, dtype: Any) -> jax.Array:
    return x * _normal_cdf(x)


def _backward(x: jax.Array, dy: jax.Array, call: fused.Call, dtype: Any) -> tuple[jax.Array, tuple[jax.Array]]:
    cdf = _normal_cdf(x)
    density = jnp.exp(-0.5 * x * x) * (2 * np.pi) ** -0.5
    return x * cdf, (dy.astype(jnp.float32) * (cdf + x * density),)


def _normal_cdf(x: jax.Array) -> jax.Array:
    return 0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5)


def _chunk(hidden: int, options: None) -> int:
    return next((width for width in (512, 384, 256, 128) if hidden % width == 0), hidden)


_MLP = fused.Branch("mlp", 1, _plain, _middle, _backward, _chunk, lambda tokens: 0)
