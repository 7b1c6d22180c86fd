"""From one bottleneck's 3x3 convolution to the next one's, in training, with few passes over the wide activations.

Between them lie a 1x1 convolution that widens, the sum with the shortcut, and a 1x1 convolution that narrows again:

    wide = relu(shortcut + z W + c),    narrow = wide V,    z = relu(y a + b) what the 3x3 convolution gave, normalised

with the scale of the widening one's normalisation folded into W (`batch_norm.folded`). Their backward pass reads the
gradient of `wide` for four ends: the shortcut, z, W and V. The compiler makes four passes of that, each through device
memory; on a TPU a kernel makes one.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P

from jaxvision.ops import fused
from jaxvision.ops.batch_norm import pixel_sum, pointwise, relu, shift
from jaxvision.ops.convolution import pixel_product
from jaxvision.ops.reduce import at_least_float32

LANES = 128
PIXELS = 8  # at most, in a step of the grid


class Tail(NamedTuple):
    """A bottleneck up to its 3x3 convolution: all that `finish` and `finish_and_narrow` need."""

    z: jax.Array  # [B, H, W, I], relu(y * a + b)
    y: jax.Array  # [B, H, W, I]
    a: jax.Array  # f32[I]
    b: jax.Array  # f32[I]
    shortcut: jax.Array  # [B, H, W, O]
    kernel: jax.Array  # f32[I, O]
    bias: jax.Array  # f32[O]


def finish(tail: Tail) -> jax.Array:
    """wide, [B, H, W, O]."""
    y = shift(pointwise(tail.z, tail.kernel), tail.bias)
    return relu((at_least_float32(tail.shortcut) + y).astype(tail.z.dtype))


@jax.custom_vjp
def finish_and_narrow(tail: Tail, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """wide [B, H, W, O], and narrow [B, H, W, N] by kernel f32[O, N]. The gradient takes y, a and b by way of z."""
    return _forward(tail, kernel)[0]


def _forward(tail: Tail, kernel: jax.Array) -> tuple:
    wide = jax.lax.optimization_barrier(finish(tail))  # else what lies before relu is written too
    return (wide, pointwise(wide, kernel)), (tail.y, tail.a, tail.b, tail.kernel, wide, kernel)


class _Kept(NamedTuple):
    """What the backward pass starts from."""

    d_wide: jax.Array
    d_narrow: jax.Array
    wide: jax.Array
    y: jax.Array
    a: jax.Array
    b: jax.Array
    back: jax.Array  # W transposed, [O, I]
    kernel: jax.Array  # V, [O, N]


def _backward(kept: tuple, cotangents: tuple) -> tuple:
    y, a, b, widening, wide, kernel = kept
    inputs = _Kept(*cotangents, wide, y, a, b, widening.T.astype(y.dtype), kernel.astype(y.dtype))
    d_shortcut, d_z, d_widening, d_bias, d_kernel = _between(inputs)
    tail = Tail(d_z, jnp.zeros_like(y), jnp.zeros_like(a), jnp.zeros_like(b), d_shortcut, d_widening, d_bias)
    return tail, d_kernel.astype(kernel.dtype)


finish_and_narrow.defvjp(_forward, _backward)


@jax.jit  # so that alike blocks are traced and lowered once
def _between(kept: _Kept) -> tuple:
    if not _fits(kept):
        return _plain(kept)
    return jax.lax.platform_dependent(kept, tpu=_kernel, default=_plain)


def _plain(kept: _Kept) -> tuple:
    """Gradients of the shortcut, z, W, c and V."""
    dtype = kept.y.dtype
    g = at_least_float32(kept.d_wide) + at_least_float32(pointwise(kept.d_narrow, kept.kernel.T))
    g = jnp.where(kept.wide > 0, g, 0).astype(dtype)
    z = relu(at_least_float32(kept.y) * kept.a + kept.b).astype(dtype)
    d_z, d_kernel = pointwise(g, kept.back), pixel_product(kept.wide, kept.d_narrow)
    return g, d_z, pixel_product(z, g), pixel_sum(g), d_kernel


# --------------------------------------------------------------------------- the kernel


def _fits(kept: _Kept) -> bool:
    mesh = fused.mesh_of(kept)
    rows = kept.y.shape[0] // (mesh.size or 1)
    return kept.y.dtype == jnp.bfloat16 and fused.for_tpu(mesh, kept.y.shape[0]) and rows % 16 == 0


def _kernel(kept: _Kept, interpret: bool = False) -> tuple:
    """The same as `_plain`, on each device's own rows; the last three are summed over the devices."""
    mesh = fused.mesh_of(kept)
    local = partial(_local, interpret=interpret)
    if mesh.empty:
        return local(kept)
    rows, whole = P(mesh.axis_names), P()

    def summed(kept: _Kept) -> tuple:
        g, d_z, *sums = local(kept)
        return g, d_z, *jax.lax.psum(sums, mesh.axis_names)

    specs = _Kept(rows, rows, rows, rows, whole, whole, whole, whole)
    out = (rows, rows, whole, whole, whole)
    return jax.shard_map(summed, mesh=mesh, in_specs=(specs,), out_specs=out, check_vma=False)(kept)


def _local(kept: _Kept, interpret: bool) -> tuple:
    batch, height, width, inner = kept.y.shape
    outer, narrow = kept.kernel.shape
    pixels = height * width
    step = max(n for n in range(1, PIXELS + 1) if pixels % n == 0)
    # XLA lays activations out as [H, W, B, C], and as [H, W, C, B] where the channels do not fill the lanes
    y_flat, d_narrow_flat = _channels_first(batch, inner), _channels_first(batch, narrow)

    def tile(channels: int, flat: bool) -> pl.BlockSpec:
        return pl.BlockSpec((step, channels, batch) if flat else (step, batch, channels), lambda i: (i, 0, 0))

    def whole(*shape: int) -> pl.BlockSpec:
        return pl.BlockSpec(shape, lambda i: (0, 0), pipeline_mode=pl.Buffered(1))

    vector = (inner, 1) if y_flat else (1, inner)
    arguments = (
        _to_tiles(kept.d_wide, False), _to_tiles(kept.d_narrow, d_narrow_flat), _to_tiles(kept.wide, False),
        _to_tiles(kept.y, y_flat), kept.a.reshape(vector), kept.b.reshape(vector), kept.back, kept.kernel,
    )  # fmt: skip
    y_tile, wide_tile = tile(inner, y_flat), tile(outer, False)
    in_specs = [
        wide_tile, tile(narrow, d_narrow_flat), wide_tile, y_tile, whole(*vector), whole(*vector),
        whole(outer, inner), whole(outer, narrow),
    ]  # fmt: skip
    shapes = [jax.ShapeDtypeStruct(arguments[i].shape, kept.y.dtype) for i in (0, 3)]
    sums = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((inner, outer), (1, outer), (outer, narrow))]
    traffic = sum(x.size * x.dtype.itemsize for x in (*arguments, *shapes, *sums))
    g, d_z, d_widening, d_bias, d_kernel = pl.pallas_call(
        partial(_body, y_flat, d_narrow_flat),
        grid=(pixels // step,),
        in_specs=in_specs,
        out_specs=[wide_tile, y_tile, *(whole(*s.shape) for s in sums)],
        out_shape=[*shapes, *sums],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",), vmem_limit_bytes=fused.VMEM),
        cost_estimate=pl.CostEstimate(
            flops=4 * pixels * batch * outer * (inner + narrow), transcendentals=0, bytes_accessed=traffic
        ),
        interpret=interpret,
        name="bottleneck_backward",
    )(*arguments)
    g, d_z = _from_tiles(g, kept.d_wide.shape, False), _from_tiles(d_z, kept.y.shape, y_flat)
    # the barrier keeps casts of them after the change of shape, where they are part of what uses them
    return *jax.lax.optimization_barrier((g, d_z)), d_widening, d_bias[0], d_kernel


def _channels_first(batch: int, channels: int) -> bool:
    return channels < LANES and batch % LANES == 0


def _to_tiles(x: jax.Array, channels_first: bool) -> jax.Array:
    """[B, H, W, C] to [H * W, B, C] or [H * W, C, B]."""
    x = x.transpose((1, 2, 3, 0) if channels_first else (1, 2, 0, 3))
    return x.reshape(math.prod(x.shape[:2]), *x.shape[2:])


def _from_tiles(x: jax.Array, shape: tuple[int, ...], channels_first: bool) -> jax.Array:
    x = x.reshape(*shape[1:3], *x.shape[1:])
    return x.transpose((3, 0, 1, 2) if channels_first else (2, 0, 1, 3))


def _body(y_flat: bool, d_narrow_flat: bool, *refs: Any) -> None:
    d_wide, d_narrow, wide, y, a, b, back, kernel, g_out, d_z, d_widening, d_bias, d_kernel = refs
    sums = (d_widening, d_bias, d_kernel)

    @pl.when(pl.program_id(0) == 0)
    def _() -> None:
        for ref in sums:
            ref[...] = jnp.zeros(ref.shape, ref.dtype)

    for i in range(d_wide.shape[0]):
        dn = d_narrow[i]
        g = d_wide[i].astype(jnp.float32) + _dot(dn, kernel[...], 0 if d_narrow_flat else 1, 1)
        g = jnp.where(wide[i].astype(jnp.float32) > 0, g, 0.0)
        d_bias[...] += jnp.sum(g, axis=0, keepdims=True)
        g = g.astype(g_out.dtype)
        g_out[i] = g
        z = jnp.maximum(y[i].astype(jnp.float32) * a[...] + b[...], 0.0).astype(g.dtype)
        d_z[i] = (_dot(back[...], g, 0, 1) if y_flat else _dot(g, back[...], 1, 0)).astype(d_z.dtype)
        d_widening[...] += _dot(z, g, 1 if y_flat else 0, 0)
        d_kernel[...] += _dot(wide[i], dn, 0, 1 if d_narrow_flat else 0)


def _dot(a: jax.Array, b: jax.Array, axis_a: int, axis_b: int) -> jax.Array:
    return jax.lax.dot_general(a, b, (((axis_a,), (axis_b,)), ((), ())), preferred_element_type=jnp.float32)
