"""Residual branches x + f(x) that a TPU computes in one kernel each way, image by image, in its vector memory.

On a TPU a ViT is bound by memory traffic: hidden activations, scores and their gradients go to memory and back. Here a
kernel reads x and writes x + f(x); backward, it reads x and the gradient, computes what lies between again and writes
the gradient of x. The gradients of the weights are summed over the images in vector memory and written once.

Which way is taken is decided without the user: the kernels where the arrays lie on a mesh of TPUs (or, without a mesh,
on the only device there is), x is bfloat16 and the shapes fit; else the plain function, as if there were no kernels.
XLA cannot partition a kernel, so each device of the mesh runs it on its own rows and the gradients are summed. The
kernels have no forward-mode derivative and no second one.
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


class Weights(NamedTuple):
    """Parameters of a branch; within a kernel the references to them, vectors as [1, n]."""

    scale: Any  # f32[D], of the norm
    bias: Any  # f32[D], of the norm
    first: Any  # f32[D, parts * H], kernel of the first layer
    first_bias: Any  # f32[parts * H]
    second: Any  # f32[H, D], kernel of the second layer
    second_bias: Any  # f32[D]


VMEM = 96 * 2**20  # of the 128 MiB of vector memory in a core of v5e, v5p and v6e
IMAGES = 2  # at most, in a step of the grid


class Branch(NamedTuple):
    """f(x) = second(middle(first(norm(x)))): a layer norm and two dense layers with something between them.

    The H channels before the second layer are cut into chunks of C that `middle` treats alone: a few heads, or some
    hidden units. The first layer has `parts` outputs for each: queries, keys and values are three.

    Attributes:
      name: of its kernels, in the compiled program.
      parts: see above.
      plain: (x[B, N, D], weights, call) -> f(x)[B, N, D]; for any device, differentiable.
      middle: (parts f32[N, C], ..., call, dtype) -> f32[N, C]; of one image, within a kernel. What it multiplies
        matrices in is `dtype`; all else is float32.
      backward: (parts, ..., dy[N, C] of `dtype`, call, dtype) -> what `middle` gives, and the gradients of the parts.
      chunk: (H, options) -> C.
      size: (N) -> float32 values that `backward` holds at once, beside some of [N, C].
    """

    name: str
    parts: int
    plain: Callable[..., jax.Array]
    middle: Callable[..., jax.Array]
    backward: Callable[..., tuple[jax.Array, tuple[jax.Array, ...]]]
    chunk: Callable[[int, Any], int]
    size: Callable[[int], int]


class Call(NamedTuple):
    """Static facts of a branch, known when the branch is traced."""

    branch: Branch
    options: Any  # the branch's own; hashable
    epsilon: float
    rate: float
    interpret: bool


def residual(
    branch: Branch,
    x: jax.Array,
    weights: Weights,
    *,
    options: Any = None,
    epsilon: float = 1e-6,
    keep: jax.Array | None = None,
    rate: float = 0.0,
    interpret: bool = False,
) -> jax.Array:
    """x[B, N, D] + f(x).

    Args:
      epsilon: of the norm.
      keep: bool[B]; where False, f is dropped for that image, else divided by 1 - rate (stochastic depth).
      interpret: the kernels, on any device and in any dtype, slowly; for tests.
    """
    call = Call(branch, options, epsilon, rate, interpret)
    if interpret or _fits(call, x, weights):
        return _fused(call, x, keep, weights)
    return _plain(call, x, keep, weights)


def _plain(call: Call, x: jax.Array, keep: jax.Array | None, weights: Weights) -> jax.Array:
    y = call.branch.plain(x, weights, call)
    return x + (y if keep is None else jnp.where(keep[:, None, None], y / (1.0 - call.rate), jnp.zeros((), y.dtype)))


def _plain_backward(call: Call, x: jax.Array, dz: jax.Array, keep: jax.Array | None, weights: Weights) -> tuple:
    return jax.vjp(lambda x, weights: _plain(call, x, keep, weights), x, weights)[1](dz)


def _fits(call: Call, x: jax.Array, weights: Weights) -> bool:
    if x.dtype != jnp.bfloat16 or not for_tpu(mesh_of((x, weights)), x.shape[0]):
        return False
    tokens, width = x.shape[1:]
    values = 10 * tokens * (IMAGES * width + call.branch.parts * _chunk(call, weights)) + call.branch.size(tokens)
    return 4 * values + (2 + 4) * sum(math.prod(w.shape) for w in weights) < VMEM


def for_tpu(mesh: Any, rows: int) -> bool:
    """Whether a program for arrays on `mesh` is compiled for a TPU, with `rows` split evenly over its devices."""
    if mesh.empty and jax.device_count() > 1:  # it may be for all of them, and how is not known
        return False
    device = mesh.abstract_device  # what is compiled for; it need not be here
    if (device.platform if device else jax.default_backend()) != "tpu":
        return False
    return all(kind == AxisType.Auto for kind in mesh.axis_types) and rows % (mesh.size or 1) == 0


def _chunk(call: Call, weights: Weights) -> int:
    return call.branch.chunk(weights.second.shape[0], call.options)


def mesh_of(arrays: Any) -> Any:
    """The abstract mesh that the arrays lie on; empty without one."""
    meshes = [jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(arrays)]
    return next((mesh for mesh in meshes if not mesh.empty), meshes[0])


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(call: Call, x: jax.Array, keep: jax.Array | None, weights: Weights) -> jax.Array:
    return _run(call, x, keep, weights)


def _fused_forward(call: Call, x: jax.Array, keep: jax.Array | None, weights: Weights) -> tuple:
    return _run(call, x, keep, weights), (x, keep, weights)


def _fused_backward(call: Call, kept: tuple, dz: jax.Array) -> tuple:
    x, keep, weights = kept
    dx, dweights = _run_backward(call, x, dz, keep, weights)
    return dx, None, dweights


_fused.defvjp(_fused_forward, _fused_backward)


# Under jit, so that the blocks of a network, being alike, are traced and lowered once.
@partial(jax.jit, static_argnums=0)
def _run(call: Call, x: jax.Array, keep: jax.Array | None, weights: Weights) -> jax.Array:
    return _select(call, _forward, _plain, x, keep, weights)


@partial(jax.jit, static_argnums=0)
def _run_backward(call: Call, x: jax.Array, dz: jax.Array, keep: jax.Array | None, weights: Weights) -> tuple:
    return _select(call, _backward, _plain_backward, x, dz, keep, weights)


def _select(call: Call, kernel: Callable, plain: Callable, *arguments: Any) -> Any:
    """Chooses `kernel` or `plain` by the platform that is lowered for.

    That may be another one than JAX's default: a host of TPUs has a CPU, too.
    """
    if call.interpret:
        return kernel(call, *arguments)
    return jax.lax.platform_dependent(*arguments, tpu=partial(kernel, call), default=partial(plain, call))


def _forward(call: Call, x: jax.Array, keep: jax.Array | None, weights: Weights) -> jax.Array:
    def local(factor: jax.Array, weights: Weights, x: jax.Array) -> jax.Array:
        return _launch(call, _forward_kernel, factor, weights, (x,), ())[0]

    return _on_each_device(call, local, keep, weights, (x,), sums=False)


def _backward(call: Call, x: jax.Array, dz: jax.Array, keep: jax.Array | None, weights: Weights) -> tuple:
    axes = mesh_of((x, weights)).axis_names

    def local(factor: jax.Array, weights: Weights, x: jax.Array, dz: jax.Array) -> tuple:
        sums = tuple(jax.ShapeDtypeStruct(w.shape, jnp.float32) for w in weights)
        dx, *rest = _launch(call, _backward_kernel, factor, weights, (x, dz), sums)
        dweights = Weights(*rest)
        return dx, jax.lax.psum(dweights, axes) if axes else dweights

    dx, dweights = _on_each_device(call, local, keep, weights, (x, dz), sums=True)
    return dx, Weights(*(d.reshape(w.shape).astype(w.dtype) for d, w in zip(dweights, weights, strict=True)))


def _on_each_device(
    call: Call, local: Callable, keep: jax.Array | None, weights: Weights, images: tuple, sums: bool
) -> Any:
    """local(factor of f f32[B], weights, *images) of each device's rows. Vectors are [1, n], matrices as wide as x."""
    x, mesh = images[0], mesh_of((images[0], weights))
    factor = jnp.ones(x.shape[:1], jnp.float32)
    factor = factor if keep is None else jnp.where(keep, factor / (1.0 - call.rate), 0.0)
    weights = Weights(*(w.astype(x.dtype) if w.ndim > 1 else w[None] for w in weights))
    if not mesh.empty:
        rows, same = P(mesh.axis_names), P()
        places = (rows, same, *(rows for _ in images))
        local = jax.shard_map(
            local, mesh=mesh, in_specs=places, out_specs=(rows, same) if sums else rows, check_vma=False
        )
    return local(factor, weights, *images)


def _launch(
    call: Call, kernel: Callable, factor: jax.Array, weights: Weights, images: tuple, sums: tuple
) -> list[jax.Array]:
    """The kernel, in steps of a few images: one result like images[0], then the sums over all images."""
    rows, tokens, width = images[0].shape
    block = math.gcd(rows, IMAGES)

    def image(_: Any) -> pl.BlockSpec:
        return pl.BlockSpec((block, tokens, width), lambda i: (i, 0, 0))

    def whole(like: Any) -> pl.BlockSpec:
        return pl.BlockSpec(like.shape, lambda i: (0, 0), pipeline_mode=pl.Buffered(1))

    results = (jax.ShapeDtypeStruct(images[0].shape, images[0].dtype), *sums)
    chunk, branch = _chunk(call, weights), call.branch
    part = jax.ShapeDtypeStruct((tokens, chunk), jnp.float32)
    between = partial(branch.backward if sums else branch.middle, call=call, dtype=images[0].dtype)
    dy = (part.update(dtype=images[0].dtype),) if sums else ()
    cost, chunks = pl.estimate_cost(between, *(part,) * branch.parts, *dy), weights.second.shape[0] // chunk
    # Products with the kernels; backward the first layer is computed again, and each has two gradients.
    first, second = weights.first.size, weights.second.size
    products = 3 * first + 2 * second if sums else first + second
    return pl.pallas_call(
        partial(kernel, call),
        grid=(rows // block,),
        in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), *map(image, images), *map(whole, weights)],
        out_specs=[image(None), *map(whole, sums)],
        out_shape=results,
        scratch_shapes=[
            pltpu.VMEM((block, tokens, width), images[0].dtype),
            pltpu.VMEM((block, tokens, width), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",), vmem_limit_bytes=VMEM),
        cost_estimate=pl.CostEstimate(
            flops=rows * (2 * tokens * products + chunks * cost.flops),
            transcendentals=rows * chunks * cost.transcendentals,
            # Every block is fetched once. The compiler's count of the traffic has this from here.
            bytes_accessed=sum(a.size * a.dtype.itemsize for a in (factor, *images, *weights, *results)),
        ),
        interpret=call.interpret,
        name=f"{branch.name}{kernel.__name__}",
    )(factor, *images, *weights)


def _forward_kernel(call: Call, factor_ref: Any, x_ref: Any, *refs: Any) -> None:
    *weight_refs, z_ref, inside_ref, sum_ref = refs
    weights = Weights(*weight_refs)
    images, before = range(x_ref.shape[0]), pl.program_id(0) * x_ref.shape[0]
    for i in images:
        inside_ref[i] = _scaled(_normalised(x_ref[i], call.epsilon)[0], weights).astype(x_ref.dtype)
        sum_ref[i] = jnp.broadcast_to(weights.second_bias[...], sum_ref.shape[1:])

    def one(columns: list, rows: Any) -> None:
        for i in images:
            parts = [dot(inside_ref[i], weights.first[:, c]) + weights.first_bias[:, c] for c in columns]
            y = call.branch.middle(*parts, call, x_ref.dtype)
            sum_ref[i] += dot(y.astype(x_ref.dtype), weights.second[rows, :])

    _for_each_chunk(call, weights, one)
    for i in images:
        factor = factor_ref[before + i]
        z_ref[i] = (x_ref[i].astype(jnp.float32) + factor * sum_ref[i]).astype(z_ref.dtype)


def _backward_kernel(call: Call, factor_ref: Any, x_ref: Any, dz_ref: Any, *refs: Any) -> None:
    count = len(Weights._fields)
    weights, (dx_ref, *rest) = Weights(*refs[:count]), refs[count:]
    gradients, (inside_ref, sum_ref) = Weights(*rest[:count]), rest[count:]
    images, before, dtype = range(x_ref.shape[0]), pl.program_id(0) * x_ref.shape[0], x_ref.dtype

    @pl.when(pl.program_id(0) == 0)
    def _() -> None:
        for ref in gradients:
            ref[...] = jnp.zeros(ref.shape, ref.dtype)

    def outer(i: int) -> jax.Array:
        return factor_ref[before + i] * dz_ref[i].astype(jnp.float32)

    for i in images:
        inside_ref[i] = _scaled(_normalised(x_ref[i], call.epsilon)[0], weights).astype(dtype)
        sum_ref[i] = jnp.zeros(sum_ref.shape[1:], jnp.float32)
        gradients.second_bias[...] += _over_rows(outer(i))

    def one(columns: list, rows: Any) -> None:
        for i in images:
            dz = outer(i).astype(dtype)
            parts = [dot(inside_ref[i], weights.first[:, c]) + weights.first_bias[:, c] for c in columns]
            dy = dot(dz, weights.second[rows, :], "nt").astype(dtype)
            y, dparts = call.branch.backward(*parts, dy, call, dtype)
            gradients.second[rows, :] += dot(y.astype(dtype), dz, "tn")
            for c, dpart in zip(columns, dparts, strict=True):
                gradients.first_bias[:, c] += _over_rows(dpart)
                dpart = dpart.astype(dtype)
                gradients.first[:, c] += dot(inside_ref[i], dpart, "tn")
                sum_ref[i] += dot(dpart, weights.first[:, c], "nt")

    _for_each_chunk(call, weights, one)
    for i in images:
        y, by = _normalised(x_ref[i], call.epsilon)
        dy = sum_ref[i]
        gradients.scale[...] += _over_rows(dy * y)
        gradients.bias[...] += _over_rows(dy)
        dy = dy * weights.scale[...]
        along = jnp.mean(dy * y, axis=1, keepdims=True)
        dx = by * (dy - jnp.mean(dy, axis=1, keepdims=True) - y * along)
        dx_ref[i] = (dz_ref[i].astype(jnp.float32) + dx).astype(dtype)


def _for_each_chunk(call: Call, weights: Weights, one: Callable) -> None:
    """one(columns of the first layer, a slice a part; rows of the second layer), for each chunk."""
    hidden, chunk = weights.second.shape[0], _chunk(call, weights)

    def places(start: Any) -> tuple:
        return [pl.ds(part * hidden + start, chunk) for part in range(call.branch.parts)], pl.ds(start, chunk)

    if chunk == hidden:
        one(*places(0))
        return

    def step(c: Any, carry: int) -> int:
        one(*places(pl.multiple_of(c * chunk, chunk)))
        return carry

    jax.lax.fori_loop(0, hidden // chunk, step, 0)


def dot(a: jax.Array, b: jax.Array, contract: str = "nn") -> jax.Array:
    """a b, a b^T ("nt") or a^T b ("tn"), in float32; within a kernel."""
    dims = {"nn": ((1,), (0,)), "nt": ((1,), (1,)), "tn": ((0,), (0,))}[contract]
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(a, b, (dims, ((), ())), precision=exact, preferred_element_type=jnp.float32)


def _normalised(x: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """Layer norm of [N, D] before scale and bias, and what it was multiplied by f32[N, 1]; within a kernel."""
    x = x.astype(jnp.float32)
    x = x - jnp.mean(x, axis=1, keepdims=True)
    by = jax.lax.rsqrt(jnp.mean(x * x, axis=1, keepdims=True) + epsilon)
    return x * by, by


def _scaled(y: jax.Array, weights: Weights) -> jax.Array:
    return y * weights.scale[...] + weights.bias[...]


def _over_rows(x: jax.Array) -> jax.Array:
    return jnp.sum(x, axis=0, keepdims=True)


def first(x: jax.Array, weights: Weights, call: Call) -> jax.Array:
    """The first dense layer of the norm of x, as flax computes them: statistics in float32, the rest in x's dtype."""
    wide = at_least_float32(x)
    mean = jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.maximum(0.0, jnp.mean(jnp.square(wide), axis=-1, keepdims=True) - jnp.square(mean))
    y = ((x - mean) * (jax.lax.rsqrt(variance + call.epsilon) * weights.scale) + weights.bias).astype(x.dtype)
    return y @ weights.first.astype(x.dtype) + weights.first_bias.astype(x.dtype)


def second(y: jax.Array, weights: Weights) -> jax.Array:
    """The second dense layer, likewise."""
    return y @ weights.second.astype(y.dtype) + weights.second_bias.astype(y.dtype)
