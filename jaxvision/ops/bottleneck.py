"""The part between two bottlenecks' 3x3 convolutions, in training, with few passes over the wide activations.

It goes from one bottleneck's 3x3 convolution to the next one's.

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
    wide, narrow = _both(tail, kernel)
    return (wide, narrow), (tail.y, tail.a, tail.b, tail.kernel, wide, kernel)


@jax.jit  # so that alike blocks are traced and lowered once; `_between` too
def _both(tail: Tail, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    if not _fits(tail.y, (*tail, kernel)):
        return _plain_both(tail, kernel)
    return jax.lax.platform_dependent(tail, kernel, tpu=_forward_kernel, default=_plain_both)


def _plain_both(tail: Tail, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    wide = finish(tail)
    return wide, pointwise(wide, kernel)


class _Kept(NamedTuple):
    """Inputs of the backward pass."""

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
    d_wide, d_narrow = cotangents
    inputs = _Kept(d_wide, d_narrow, wide, y, a, b, widening.T.astype(y.dtype), kernel.astype(y.dtype))
    d_shortcut, d_z, d_widening, d_bias, d_kernel = _between(inputs)
    tail = Tail(d_z, jnp.zeros_like(y), jnp.zeros_like(a), jnp.zeros_like(b), d_shortcut, d_widening, d_bias)
    return tail, d_kernel.astype(kernel.dtype)


finish_and_narrow.defvjp(_forward, _backward)


@jax.jit
def _between(kept: _Kept) -> tuple:
    if not _fits(kept.y, kept):
        return _plain(kept)
    return jax.lax.platform_dependent(kept, tpu=_backward_kernel, default=_plain)


def _plain(kept: _Kept) -> tuple:
    """Gradients of the shortcut, z, W, c and V."""
    dtype = kept.y.dtype
    g = at_least_float32(kept.d_wide) + at_least_float32(pointwise(kept.d_narrow, kept.kernel.T))
    g = jnp.where(kept.wide > 0, g, 0).astype(dtype)
    z = relu(at_least_float32(kept.y) * kept.a + kept.b).astype(dtype)
    d_z, d_kernel = pointwise(g, kept.back), pixel_product(kept.wide, kept.d_narrow)
    return g, d_z, pixel_product(z, g), pixel_sum(g), d_kernel


# --------------------------------------------------------------------------- the kernels


def _fits(y: jax.Array, arrays: Any) -> bool:
    mesh = fused.mesh_of(arrays)
    if y.dtype != jnp.bfloat16 or not fused.for_tpu(mesh, y.shape[0]):
        return False
    shapes = [x.shape for x in arrays]
    channels = sum(shape[-1] for shape in shapes if len(shape) == 4)
    weights = sum(math.prod(shape) for shape in shapes if len(shape) == 2)
    rows = y.shape[0] // (mesh.size or 1)
    # tiles in two buffers, what a pixel's images are in float32, weights, and their gradients in float32
    need = 2 * 2 * PIXELS * rows * 2 * channels + 4 * 4 * rows * channels + (2 + 4) * weights
    return rows % 16 == 0 and need < fused.VMEM


def _forward_kernel(tail: Tail, kernel: jax.Array, interpret: bool = False) -> tuple[jax.Array, jax.Array]:
    """`_plain_both` as a kernel, on each device's own rows."""
    mesh, dtype = fused.mesh_of((tail, kernel)), tail.y.dtype
    local = partial(_launch_forward, interpret=interpret)
    arguments = tail._replace(z=jnp.zeros(0), kernel=tail.kernel.astype(dtype)), kernel.astype(dtype)  # z is made again
    if mesh.empty:
        return local(*arguments)
    rows = P(mesh.axis_names)
    return jax.shard_map(local, mesh=mesh, in_specs=_specs(arguments, rows), out_specs=(rows, rows), check_vma=False)(
        *arguments
    )


def _specs(arrays: Any, rows: Any) -> Any:
    """Activations are split over the devices, weights are whole on each."""
    return jax.tree.map(lambda x: rows if x.ndim == 4 else P(), arrays)


def _launch_forward(tail: Tail, kernel: jax.Array, interpret: bool) -> tuple[jax.Array, jax.Array]:
    y_flat, narrow_flat = _channels_first(tail.y, None), _channels_first(tail.y, kernel.shape[1])
    shape = (*tail.y.shape[:3], kernel.shape[1])
    wide, narrow = _launch(
        partial(_forward_body, y_flat, narrow_flat),
        [(tail.y, y_flat), (tail.shortcut, False)],
        [_vector(tail.a, y_flat), _vector(tail.b, y_flat), tail.kernel, tail.bias[None], kernel],
        [(tail.shortcut, False), (jax.ShapeDtypeStruct(shape, tail.y.dtype), narrow_flat)],
        [],
        products=2,
        interpret=interpret,
    )
    return wide, narrow


def _forward_body(y_flat: bool, narrow_flat: bool, *refs: Any) -> None:
    y, shortcut, a, b, widening, bias, kernel, wide_out, narrow_out = refs
    for i in range(y.shape[0]):
        z = _active(y[i], a, b)
        wide = shortcut[i].astype(jnp.float32) + _dot(z, widening[...], 0 if y_flat else 1, 0) + bias[...]
        wide = jnp.maximum(wide, 0.0).astype(wide_out.dtype)
        wide_out[i] = wide
        narrow = _dot(kernel[...], wide, 0, 1) if narrow_flat else _dot(wide, kernel[...], 1, 0)
        narrow_out[i] = narrow.astype(narrow_out.dtype)


def _backward_kernel(kept: _Kept, interpret: bool = False) -> tuple:
    """`_plain` as a kernel, on each device's own rows; the last three results are summed over the devices."""
    mesh = fused.mesh_of(kept)
    local = partial(_launch_backward, interpret=interpret)
    if mesh.empty:
        return local(kept)
    rows, whole = P(mesh.axis_names), P()

    def summed(kept: _Kept) -> tuple:
        g, d_z, *sums = local(kept)
        return g, d_z, *jax.lax.psum(sums, mesh.axis_names)

    out = (rows, rows, whole, whole, whole)
    return jax.shard_map(summed, mesh=mesh, in_specs=(_specs(kept, rows),), out_specs=out, check_vma=False)(kept)


def _launch_backward(kept: _Kept, interpret: bool) -> tuple:
    y_flat, narrow_flat = _channels_first(kept.y, None), _channels_first(kept.d_narrow, None)
    (outer, inner), narrow = kept.back.shape, kept.kernel.shape[1]
    g, d_z, d_widening, d_bias, d_kernel = _launch(
        partial(_backward_body, y_flat, narrow_flat),
        [(kept.d_wide, False), (kept.d_narrow, narrow_flat), (kept.wide, False), (kept.y, y_flat)],
        [_vector(kept.a, y_flat), _vector(kept.b, y_flat), kept.back, kept.kernel],
        [(kept.d_wide, False), (kept.y, y_flat)],
        [(inner, outer), (1, outer), (outer, narrow)],
        products=4,
        interpret=interpret,
    )
    return g, d_z, d_widening, d_bias[0], d_kernel


def _backward_body(y_flat: bool, narrow_flat: bool, *refs: Any) -> None:
    d_wide, d_narrow, wide, y, a, b, back, kernel, g_out, d_z, d_widening, d_bias, d_kernel = refs

    @pl.when(pl.program_id(0) == 0)
    def _() -> None:
        for ref in (d_widening, d_bias, d_kernel):
            ref[...] = jnp.zeros(ref.shape, ref.dtype)

    for i in range(d_wide.shape[0]):
        dn = d_narrow[i]
        g = d_wide[i].astype(jnp.float32) + _dot(dn, kernel[...], 0 if narrow_flat else 1, 1)
        g = jnp.where(wide[i].astype(jnp.float32) > 0, g, 0.0)
        d_bias[...] += jnp.sum(g, axis=0, keepdims=True)
        g = g.astype(g_out.dtype)
        g_out[i] = g
        d_z[i] = (_dot(back[...], g, 0, 1) if y_flat else _dot(g, back[...], 1, 0)).astype(d_z.dtype)
        d_widening[...] += _dot(_active(y[i], a, b), g, 1 if y_flat else 0, 0)
        d_kernel[...] += _dot(wide[i], dn, 0, 1 if narrow_flat else 0)


def _active(y: jax.Array, a: Any, b: Any) -> jax.Array:
    return jnp.maximum(y.astype(jnp.float32) * a[...] + b[...], 0.0).astype(y.dtype)


def _dot(a: jax.Array, b: jax.Array, axis_a: int, axis_b: int) -> jax.Array:
    return jax.lax.dot_general(
        a,
        b,
        (((axis_a,), (axis_b,)), ((), ())),
        preferred_element_type=jnp.float32,
        precision="highest" if a.dtype == jnp.float32 else None,
    )


# Activations go to a kernel as XLA lays them out: [H, W, B, C], or [H, W, C, B] where the channels do not fill the
# lanes. A pair (array, whether channels come first) says which.


def _channels_first(like: jax.Array, channels: int | None) -> bool:
    return (channels or like.shape[-1]) < LANES and like.shape[0] % LANES == 0


def _vector(x: jax.Array, channels_first: bool) -> jax.Array:
    return x[:, None] if channels_first else x[None]


def _launch(
    body: Any, activations: list, weights: list, results: list, sums: list, *, products: int, interpret: bool
) -> list[jax.Array]:
    """The kernel over all pixels, some at a time, with all images; float32 sums of the given shapes come last."""
    batch, height, width, _ = activations[0][0].shape
    pixels = height * width
    step = max(n for n in range(1, PIXELS + 1) if pixels % n == 0)

    def tiled(like: Any, channels_first: bool) -> tuple[int, ...]:
        return (pixels, like.shape[-1], batch) if channels_first else (pixels, batch, like.shape[-1])

    def tile(like: Any, channels_first: bool) -> pl.BlockSpec:
        return pl.BlockSpec((step, *tiled(like, channels_first)[1:]), lambda i: (i, 0, 0))

    def whole(shape: tuple[int, ...]) -> pl.BlockSpec:
        return pl.BlockSpec(shape, lambda i: (0, 0), pipeline_mode=pl.Buffered(1))

    def to_tiles(x: jax.Array, channels_first: bool) -> jax.Array:
        return x.transpose((1, 2, 3, 0) if channels_first else (1, 2, 0, 3)).reshape(tiled(x, channels_first))

    def from_tiles(x: jax.Array, channels_first: bool) -> jax.Array:
        x = x.reshape(height, width, *x.shape[1:])
        return x.transpose((3, 0, 1, 2) if channels_first else (2, 0, 1, 3))

    inputs = [*(to_tiles(*pair) for pair in activations), *weights]
    out = [jax.ShapeDtypeStruct(tiled(*pair), pair[0].dtype) for pair in results]
    out += [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in sums]
    matrices = sum(w.size for w in weights if min(w.shape) > 1)
    made = pl.pallas_call(
        body,
        grid=(pixels // step,),
        in_specs=[*(tile(*pair) for pair in activations), *(whole(w.shape) for w in weights)],
        out_specs=[*(tile(*pair) for pair in results), *map(whole, sums)],
        out_shape=out,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",), vmem_limit_bytes=fused.VMEM),
        cost_estimate=pl.CostEstimate(
            flops=products * pixels * batch * matrices,
            transcendentals=0,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*inputs, *out)),
        ),
        interpret=interpret,
        name=f"bottleneck{body.func.__name__}",
    )(*inputs)
    shaped = [from_tiles(x, pair[1]) for x, pair in zip(made, results)]
    # the barrier keeps casts of them after the change of shape, where they are part of what uses them
    return [*jax.lax.optimization_barrier(shaped), *made[len(results) :]]
