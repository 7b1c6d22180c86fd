"""Residual branches x + f(x) that a TPU computes in one kernel each way, image by image, in its vector memory.

On a TPU a ViT is bound by memory traffic: hidden activations, scores and their gradients go to memory and back. Here a
kernel reads x and writes x + f(x); backward, it reads x and the gradient, computes f's intermediates again and writes
the gradient of x. The gradients of the weights are summed over the images in vector memory and written once.

Whoever has a branch gives four functions (`Branch`). Which of them run is decided without the user: the kernels where
the program is lowered for a TPU, x is bfloat16 and the shapes fit, else the plain function. XLA cannot partition a
kernel, so on a mesh each device runs it on its own rows and the gradients are summed; the mesh is the one that the
arrays say they lie on. Without one, one device is assumed. A branch has no forward-mode derivative.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxvision.ops.reduce import at_least_float32

Weights = tuple[jax.Array, ...]

# Of the 128 MiB of vector memory in a core of v5e, v5p and v6e. What needs more takes the plain path.
VMEM = 96 * 2**20
IMAGES = 2  # at most, in a step of the grid


class Branch(NamedTuple):
    """f, one image at a time. `weights` are vectors f32[n] and matrices f32[n, m]; `options` is hashable.

    Attributes:
      name: of its kernels, in the compiled program.
      plain: (x[B, N, D], weights, options) -> f(x)[B, N, D]; for any device, differentiable.
      forward: (x[N, D], weights, options) -> f(x) f32[N, D]; within a kernel.
      backward: (x[N, D], dy[N, D], weights, options) -> (dx f32[N, D], dweights); within a kernel. There vectors are
        f32[1, n], and matrices of the dtype of x; their gradients are float32 of the same shape.
      size: (N, D, weights, options) -> float32 values that `backward` holds at once; infinite if it does not fit.
    """

    name: str
    plain: Callable[..., jax.Array]
    forward: Callable[..., jax.Array]
    backward: Callable[..., tuple[jax.Array, Weights]]
    size: Callable[..., float]


class Call(NamedTuple):
    """What is known when a branch is traced."""

    branch: Branch
    options: Any
    rate: float
    interpret: bool


def residual(
    branch: Branch,
    x: jax.Array,
    weights: Weights,
    options: Any,
    *,
    keep: jax.Array | None = None,
    rate: float = 0.0,
    interpret: bool = False,
) -> jax.Array:
    """x[B, N, D] + f(x). Stochastic depth: f is 0 in images where keep bool[B] is False, else divided by 1 - rate.

    `interpret` runs the kernels on any device and in any dtype, slowly: for tests.
    """
    call = Call(branch, options, rate, interpret)
    if interpret or _fits(call, x, weights):
        return _fused(call, x, keep, weights)
    return _plain(call, x, keep, weights)


def _plain(call: Call, x: jax.Array, keep: jax.Array | None, weights: Weights) -> jax.Array:
    y = call.branch.plain(x, weights, call.options)
    return x + (y if keep is None else jnp.where(keep[:, None, None], y / (1.0 - call.rate), jnp.zeros((), y.dtype)))


def _plain_backward(call: Call, x: jax.Array, dy: jax.Array, keep: jax.Array | None, weights: Weights) -> tuple:
    return jax.vjp(lambda x, weights: _plain(call, x, keep, weights), x, weights)[1](dy)


def _fits(call: Call, x: jax.Array, weights: Weights) -> bool:
    if x.dtype != jnp.bfloat16 or not for_tpu(mesh_of((x, weights)), x.shape[0]):
        return False
    parameters = sum(math.prod(w.shape) for w in weights)
    return 4 * call.branch.size(*x.shape[1:], weights, call.options) + (2 + 4) * parameters < VMEM


def for_tpu(mesh: Any, rows: int) -> bool:
    """Whether the program may be lowered for a TPU, and rows split evenly over the mesh."""
    device = mesh.abstract_device  # where the mesh lies; it may be described only, and be compiled for elsewhere
    if (device.platform if device else jax.default_backend()) != "tpu":
        return False
    return all(kind == AxisType.Auto for kind in mesh.axis_types) and rows % (mesh.size or 1) == 0


def mesh_of(arrays: Any) -> Any:
    """The abstract mesh that they lie on, empty without one."""
    meshes = [jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(arrays)]
    return next((mesh for mesh in meshes if not mesh.empty), meshes[0])


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(call: Call, x: jax.Array, keep: jax.Array | None, weights: Weights) -> jax.Array:
    return _run(call, x, keep, weights)


def _fused_forward(call: Call, x: jax.Array, keep: jax.Array | None, weights: Weights) -> tuple:
    return _run(call, x, keep, weights), (x, keep, weights)


def _fused_backward(call: Call, kept: tuple, dy: jax.Array) -> tuple:
    x, keep, weights = kept
    dx, dweights = _run_backward(call, x, dy, keep, weights)
    return dx, None, dweights


_fused.defvjp(_fused_forward, _fused_backward)


# Under jit, so that the blocks of a network, being alike, are traced and lowered once.
@partial(jax.jit, static_argnums=0)
def _run(call: Call, x: jax.Array, keep: jax.Array | None, weights: Weights) -> jax.Array:
    return _select(call, _forward, _plain, x, keep, weights)


@partial(jax.jit, static_argnums=0)
def _run_backward(call: Call, x: jax.Array, dy: jax.Array, keep: jax.Array | None, weights: Weights) -> tuple:
    return _select(call, _backward, _plain_backward, x, dy, keep, weights)


def _select(call: Call, kernel: Callable, plain: Callable, *arguments: Any) -> Any:
    if call.interpret:
        return kernel(call, *arguments)
    return jax.lax.platform_dependent(*arguments, tpu=partial(kernel, call), default=partial(plain, call))


def _forward(call: Call, x: jax.Array, keep: jax.Array | None, weights: Weights) -> jax.Array:
    def local(factor: jax.Array, x: jax.Array, weights: Weights) -> jax.Array:
        return _launch(call, _forward_kernel, call.branch.forward, factor, (x,), weights, ())[0]

    mesh = mesh_of((x, weights))
    factor = _factor(call, keep, x)
    weights = tuple(w.astype(x.dtype) if w.ndim > 1 else w[None] for w in weights)
    if not mesh.empty:
        rows = P(mesh.axis_names)
        local = jax.shard_map(local, mesh=mesh, in_specs=(rows, rows, P()), out_specs=rows, check_vma=False)
    return local(factor, x, weights)


def _backward(call: Call, x: jax.Array, dy: jax.Array, keep: jax.Array | None, weights: Weights) -> tuple:
    mesh = mesh_of((x, weights))

    def local(factor: jax.Array, x: jax.Array, dy: jax.Array, weights: Weights) -> tuple:
        sums = tuple(jax.ShapeDtypeStruct(w.shape, jnp.float32) for w in weights)
        dx, *sums = _launch(call, _backward_kernel, call.branch.backward, factor, (x, dy), weights, sums)
        return dx, tuple(sums) if mesh.empty else jax.lax.psum(tuple(sums), mesh.axis_names)

    factor = _factor(call, keep, x)
    cast = tuple(w.astype(x.dtype) if w.ndim > 1 else w[None] for w in weights)
    if not mesh.empty:
        rows = P(mesh.axis_names)
        local = jax.shard_map(
            local, mesh=mesh, in_specs=(rows, rows, rows, P()), out_specs=(rows, P()), check_vma=False
        )
    dx, sums = local(factor, x, dy, cast)
    return dx, tuple(s.reshape(w.shape).astype(w.dtype) for s, w in zip(sums, weights))


def _factor(call: Call, keep: jax.Array | None, x: jax.Array) -> jax.Array:
    if keep is None:
        return jnp.ones(x.shape[:1], jnp.float32)
    return jnp.where(keep, jnp.float32(1.0 / (1.0 - call.rate)), 0.0)


def _launch(
    call: Call, kernel: Callable, f: Callable, factor: jax.Array, images: tuple, weights: Weights, sums: tuple
) -> list[jax.Array]:
    """The kernel over all images of this device: one result like images[0], then the sums."""
    shape = images[0].shape
    block = math.gcd(shape[0], IMAGES)

    def image() -> pl.BlockSpec:
        return pl.BlockSpec((block, *shape[1:]), lambda i: (i, 0, 0))

    def whole(like: Any) -> pl.BlockSpec:
        return pl.BlockSpec(like.shape, lambda i: (0, 0), pipeline_mode=pl.Buffered(1))

    once = pl.estimate_cost(partial(f, options=call.options), *(x[0] for x in images), weights=weights)
    results = (jax.ShapeDtypeStruct(shape, images[0].dtype), *sums)
    return pl.pallas_call(
        partial(kernel, call),
        grid=(shape[0] // block,),
        in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), *(image() for _ in images), *map(whole, weights)],
        out_specs=[image(), *map(whole, sums)],
        out_shape=results,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",), vmem_limit_bytes=VMEM),
        cost_estimate=pl.CostEstimate(
            flops=shape[0] * once.flops,
            transcendentals=shape[0] * once.transcendentals,
            bytes_accessed=sum(a.size * a.dtype.itemsize for a in (factor, *images, *weights, *results)),
        ),
        interpret=call.interpret,
        name=f"{call.branch.name}_{kernel.__name__}",
    )(factor, *images, *weights)


def _forward_kernel(call: Call, factor_ref: Any, x_ref: Any, *refs: Any) -> None:
    *weight_refs, y_ref = refs
    weights = tuple(ref[...] for ref in weight_refs)
    for i in range(x_ref.shape[0]):
        y = call.branch.forward(x_ref[i], weights=weights, options=call.options)
        factor = factor_ref[pl.program_id(0) * x_ref.shape[0] + i]
        y_ref[i] = (x_ref[i].astype(jnp.float32) + factor * y).astype(y_ref.dtype)


def _backward_kernel(call: Call, factor_ref: Any, x_ref: Any, dy_ref: Any, *refs: Any) -> None:
    count = len(refs) // 2
    weights, dx_ref, sum_refs = tuple(ref[...] for ref in refs[:count]), refs[count], refs[count + 1 :]

    @pl.when(pl.program_id(0) == 0)
    def _() -> None:
        for ref in sum_refs:
            ref[...] = jnp.zeros(ref.shape, ref.dtype)

    for i in range(x_ref.shape[0]):
        dy = dy_ref[i].astype(jnp.float32)
        scaled = (factor_ref[pl.program_id(0) * x_ref.shape[0] + i] * dy).astype(dy_ref.dtype)
        dx, sums = call.branch.backward(x_ref[i], scaled, weights=weights, options=call.options)
        dx_ref[i] = (dy + dx).astype(dx_ref.dtype)
        for ref, more in zip(sum_refs, sums, strict=True):
            ref[...] += more


# What both kinds of branches compute with, within a kernel.


def dot(a: jax.Array, b: jax.Array, contract: str = "nn") -> jax.Array:
    """a b, a b^T ("nt") or a^T b ("tn"), in float32."""
    dims = {"nn": (1, 0), "nt": (1, 1), "tn": (0, 0)}[contract]
    return jax.lax.dot_general(
        a, b, (((dims[0],), (dims[1],)), ((), ())), preferred_element_type=jnp.float32, precision=_precision(a)
    )


def _precision(a: jax.Array) -> Any:
    return jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None


def normalised(x: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """Layer norm of [N, D] before scale and bias, and what it was multiplied by f32[N, 1]."""
    x = x.astype(jnp.float32)
    x = x - jnp.mean(x, axis=1, keepdims=True)
    by = jax.lax.rsqrt(jnp.mean(x * x, axis=1, keepdims=True) + epsilon)
    return x * by, by


def normalised_backward(dy: jax.Array, y: jax.Array, by: jax.Array) -> jax.Array:
    """The gradient of x; y and by are what `normalised` gave."""
    along = jnp.mean(dy * y, axis=1, keepdims=True)
    return by * (dy - jnp.mean(dy, axis=1, keepdims=True) - y * along)


def rows_sum(x: jax.Array) -> jax.Array:
    """[N, D] to [1, D]."""
    return jnp.sum(x, axis=0, keepdims=True)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """flax's, outside of the kernels: over the last axis, statistics in float32."""
    wide = at_least_float32(x)
    mean = jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.maximum(0.0, jnp.mean(wide * wide, axis=-1, keepdims=True) - mean * mean)
    return ((wide - mean) * (jax.lax.rsqrt(variance + epsilon) * scale) + bias).astype(x.dtype)


def dense(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """flax's, outside of the kernels: in the dtype of x."""
    return x @ kernel.astype(x.dtype) + bias.astype(x.dtype)
