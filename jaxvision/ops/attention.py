"""Attention, and the branch of a transformer's block that holds it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

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
from jaxvision.ops.reduce import at_least_float32

Leaves = dict[str, jax.Array]
LANES = 128


def attention(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """softmax(q k^T / sqrt(D) + bias) v of [..., N, H, D] each, `bias` [..., H, N, N]; the softmax is in float32."""
    accurate = at_least_float32(q).dtype
    scores = jnp.einsum("...nhd,...mhd->...hnm", q * q.shape[-1] ** -0.5, k, preferred_element_type=accurate)
    scores = scores if bias is None else scores + bias
    return jnp.einsum("...hnm,...mhd->...nhd", jax.nn.softmax(scores, axis=-1).astype(v.dtype), v)


def attention_branch(
    x: jax.Array, norm: Leaves, qkv: Leaves, out: Leaves, *, heads: int, epsilon: float = 1e-6, **more: Any
) -> jax.Array:
    """x + out(attention(qkv(norm(x)))) of [B, N, D]; leaves are those of nn.LayerNorm and nn.Dense.

    On a TPU queries, keys, values and scores never reach memory (`fused`); `more` are the arguments of
    `fused.residual`.
    """
    weights = (norm["scale"], norm["bias"], qkv["kernel"], qkv["bias"], out["kernel"], out["bias"])
    return residual(_ATTENTION, x, weights, (heads, epsilon), **more)


def _plain(x: jax.Array, weights: Weights, options: tuple[int, float]) -> jax.Array:
    (heads, epsilon), (scale, bias, w1, b1, w2, b2) = options, weights
    y = dense(layer_norm(x, scale, bias, epsilon), w1, b1)
    q, k, v = jnp.moveaxis(y.reshape(*y.shape[:2], 3, heads, -1), 2, 0)
    return dense(attention(q, k, v).reshape(x.shape), w2, b2)


def _forward(x: jax.Array, *, weights: Weights, options: tuple[int, float]) -> jax.Array:
    (heads, epsilon), (scale, bias, w1, b1, w2, b2) = options, weights
    y, _ = normalised(x, epsilon)
    qkv = dot((y * scale + bias).astype(x.dtype), w1) + b1
    parts = []
    for q, k, v, _, masks in _groups(qkv, x.dtype, heads):
        parts.append(sum(dot(_softmax(dot(q * mask, k, "nt")).astype(x.dtype), v * mask) for mask in masks))
    return dot(jnp.concatenate(parts, axis=1).astype(x.dtype), w2) + b2


def _backward(
    x: jax.Array, dz: jax.Array, *, weights: Weights, options: tuple[int, float]
) -> tuple[jax.Array, Weights]:
    (heads, epsilon), (scale, bias, w1, b1, w2, _) = options, weights
    y, by = normalised(x, epsilon)
    inside = (y * scale + bias).astype(x.dtype)
    qkv = dot(inside, w1) + b1
    dmixed = dot(dz, w2, "nt").astype(x.dtype)
    mixed, dq, dk, dv = [], [], [], []
    for q, k, v, lanes, masks in _groups(qkv, x.dtype, heads):
        sums = [0.0] * 4
        for mask in masks:
            p = _softmax(dot(q * mask, k, "nt"))
            do = dmixed[:, lanes] * mask
            dp = dot(do, v, "nt")
            ds = (p * (dp - jnp.sum(p * dp, axis=1, keepdims=True))).astype(x.dtype)
            p = p.astype(x.dtype)
            more = dot(p, v * mask), dot(ds, k * mask), dot(ds, q * mask, "tn"), dot(p, do, "tn")
            sums = [a + b for a, b in zip(sums, more)]
        for parts, part in zip((mixed, dq, dk, dv), sums):
            parts.append(part)
    factor = (x.shape[1] // heads) ** -0.5
    dqkv = jnp.concatenate([*(part * factor for part in dq), *dk, *dv], axis=1)
    db1 = rows_sum(dqkv)
    dqkv = dqkv.astype(x.dtype)
    dw2 = dot(jnp.concatenate(mixed, axis=1).astype(x.dtype), dz, "tn")
    dy = dot(dqkv, w1, "nt")
    dx = normalised_backward(dy * scale, y, by)
    db2 = rows_sum(dz.astype(jnp.float32))
    return dx, (rows_sum(dy * y), rows_sum(dy), dot(inside, dqkv, "tn"), db1, dw2, db2)


def _groups(qkv: jax.Array, dtype: Any, heads: int) -> Iterator[tuple]:
    """q (divided by the root of a head's width), k and v of as many heads as fill the lanes of a register.

    With them the slice that they are of all channels, and a mask [1, lanes] for each head among them: a product with
    the other heads' channels at 0 costs what it would without them, and nothing is cut within a register.
    """
    width = qkv.shape[1] // 3
    head = width // heads
    group = math.lcm(head, LANES)
    group = head if head % LANES == 0 else group if width % group == 0 else width
    factor = head**-0.5
    for start in range(0, width, group):
        q, k, v = (qkv[:, n * width + start : n * width + start + group] for n in range(3))
        owner = jax.lax.broadcasted_iota(jnp.int32, (1, group), 1) // head
        masks = [(owner == n).astype(dtype) for n in range(group // head)]
        yield (q * factor).astype(dtype), k.astype(dtype), v.astype(dtype), slice(start, start + group), masks


def _softmax(scores: jax.Array) -> jax.Array:
    exp = jnp.exp(scores - jnp.max(scores, axis=1, keepdims=True))
    return exp / jnp.sum(exp, axis=1, keepdims=True)


def _size(tokens: int, width: int, weights: Weights, options: tuple[int, float]) -> float:
    return tokens * (20 * width + 4 * tokens)


_ATTENTION = Branch("attention", _plain, _forward, _backward, _size)
