"""Attention, and the branch of a transformer's block that holds it."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxvision.ops import fused
from jaxvision.ops.reduce import at_least_float32

Leaves = dict[str, jax.Array]
LANES = 128  # of a register


def attention(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """softmax(q k^T / sqrt(D) + bias) v of [..., N, H, D] each, `bias` [..., H, N, N]; the softmax is in float32."""
    accurate = at_least_float32(q).dtype
    scores = jnp.einsum("...nhd,...mhd->...hnm", q * q.shape[-1] ** -0.5, k, preferred_element_type=accurate)
    scores = scores if bias is None else scores + bias
    return jnp.einsum("...hnm,...mhd->...nhd", jax.nn.softmax(scores, axis=-1).astype(v.dtype), v)


def attention_branch(x: jax.Array, norm: Leaves, qkv: Leaves, out: Leaves, *, heads: int, **more: Any) -> jax.Array:
    """x + out(attention(qkv(norm(x)))) of [B, N, D]; leaves are those of nn.LayerNorm and nn.Dense.

    On a TPU queries, keys, values and scores never reach memory. `more` are keyword arguments of `fused.residual`.
    """
    weights = fused.Weights(norm["scale"], norm["bias"], qkv["kernel"], qkv["bias"], out["kernel"], out["bias"])
    return fused.residual(_ATTENTION, x, weights, options=x.shape[-1] // heads, **more)


def _plain(x: jax.Array, weights: fused.Weights, call: fused.Call) -> jax.Array:
    y = fused.first(x, weights, call)
    q, k, v = jnp.moveaxis(y.reshape(*y.shape[:2], 3, -1, call.options), 2, 0)
    return fused.second(attention(q, k, v).reshape(x.shape), weights)


def _middle(q: jax.Array, k: jax.Array, v: jax.Array, call: fused.Call, dtype: Any) -> jax.Array:
    q, k, v = (q * call.options**-0.5).astype(dtype), k.astype(dtype), v.astype(dtype)
    y = jnp.zeros(q.shape, jnp.float32)
    for own in _masks(call, q):
        y += fused.dot(_softmax(fused.dot(q * own, k, "nt")).astype(dtype), v * own)
    return y


def _backward(
    q: jax.Array, k: jax.Array, v: jax.Array, dy: jax.Array, call: fused.Call, dtype: Any
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    factor = call.options**-0.5
    q, k, v = (q * factor).astype(dtype), k.astype(dtype), v.astype(dtype)
    y = dq = dk = dv = jnp.zeros(q.shape, jnp.float32)
    for own in _masks(call, q):
        p = _softmax(fused.dot(q * own, k, "nt"))
        dp = fused.dot(dy * own, v, "nt")
        ds = (p * (dp - jnp.sum(p * dp, axis=1, keepdims=True))).astype(dtype)
        p = p.astype(dtype)
        y += fused.dot(p, v * own)
        dq += fused.dot(ds, k * own) * factor
        dk += fused.dot(ds, q * own, "tn")
        dv += fused.dot(p, dy * own, "tn")
    return y, (dq, dk, dv)


def _masks(call: fused.Call, like: jax.Array) -> list[jax.Array]:
    """A mask [1, C] for each head among the channels, 1 in its own.

    With the others' at 0 a product costs the matrix unit no more than without them, and nothing is cut within a
    register.
    """
    owner = jax.lax.broadcasted_iota(jnp.int32, (1, like.shape[1]), 1) // call.options
    return [(owner == head).astype(like.dtype) for head in range(like.shape[1] // call.options)]


def _softmax(scores: jax.Array) -> jax.Array:
    exp = jnp.exp(scores - jnp.max(scores, axis=1, keepdims=True))
    return exp / jnp.sum(exp, axis=1, keepdims=True)


def _chunk(width: int, head: int) -> int:
    """Number of heads computed at once: as many as fill whole registers, or all."""
    chunk = math.lcm(head, LANES)
    return chunk if width % chunk == 0 else width


_ATTENTION = fused.Branch("attention", 3, _plain, _middle, _backward, _chunk, lambda tokens: 4 * tokens * tokens)
