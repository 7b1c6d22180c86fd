"""Convolution, maximum over windows and sums over pixels, for a CPU in the form that XLA does quickly there.

On every other platform they are what jax.lax has, and which form is taken is decided when a program is lowered, by the
platform that it is lowered for. The values are the same up to the order of sums. What each form buys is in
docs/models.md, "Speed on a CPU".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp

from jaxvision.ops.reduce import at_least_float32

Padding = Sequence[tuple[int, int]]
_PIXELS = (0, 1, 2)
_SMALL = 2**18  # values that stay in the cache: a loop over their rows would only take longer to compile
_MANY_PIXELS = 2_000  # so many cost more to transpose than a product of transposed matrices is faster


def conv(
    x: jax.Array, kernel: jax.Array, stride: int = 1, padding: Padding = ((0, 0), (0, 0)), groups: int = 1
) -> jax.Array:
    """The convolution of x [B, H, W, I] with kernel [h, w, I / groups, O] of the same dtype, as [B, H', W', O]."""
    if kernel.shape[:2] == (1, 1) and groups == 1 and not any(map(any, padding)):
        return _pointwise(stride, x, kernel)
    return _plain_conv(x, kernel, stride, padding, groups)


def _plain_conv(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding, groups: int) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


# A 1x1 convolution is a product of matrices. XLA's CPU compiler makes one of the convolution only going forward, and
# only without a stride; its gradient for the kernel it computes as a convolution whose window is the whole image.
@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pointwise(stride: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return _product(x[:, ::stride, ::stride], kernel)

    return jax.lax.platform_dependent(x, kernel, cpu=product, default=_convolution(stride))


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.einsum("bhwi,io->bhwo", x, kernel[0, 0])


def _convolution(stride: int) -> Callable[[jax.Array, jax.Array], jax.Array]:
    return partial(_plain_conv, stride=stride, padding=((0, 0), (0, 0)), groups=1)


def _pointwise_forward(stride: int, x: jax.Array, kernel: jax.Array) -> tuple:
    return _pointwise(stride, x, kernel), (x, kernel)


def _pointwise_backward(stride: int, kept: tuple, g: jax.Array) -> tuple:
    def product(x: jax.Array, kernel: jax.Array, g: jax.Array) -> tuple:
        grad_x = _product(g, kernel.swapaxes(2, 3))
        if stride > 1:
            short = [(0, n - (m - 1) * stride - 1, stride - 1) for n, m in zip(x.shape[1:3], g.shape[1:3])]
            grad_x = jax.lax.pad(grad_x, jnp.zeros((), g.dtype), ((0, 0, 0), *short, (0, 0, 0)))
        return grad_x, _flat_product(x[:, ::stride, ::stride], g, g.dtype)[None, None]

    def convolution(x: jax.Array, kernel: jax.Array, g: jax.Array) -> tuple:
        return jax.vjp(_convolution(stride), x, kernel)[1](g)

    return jax.lax.platform_dependent(*kept, g, cpu=product, default=convolution)


_pointwise.defvjp(_pointwise_forward, _pointwise_backward)


def pixel_product(x: jax.Array, y: jax.Array) -> jax.Array:
    """The sum over pixels of the outer products of x [B, H, W, I] and y [B, H, W, J], at least float32 [I, J]."""
    accurate = jnp.promote_types(x.dtype, jnp.float32)
    return jax.lax.platform_dependent(
        x,
        y,
        cpu=partial(_flat_product, dtype=accurate),
        default=partial(jnp.einsum, "bhwi,bhwj->ij", preferred_element_type=accurate),
    )


def _flat_product(x: jax.Array, y: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """`pixel_product` in the form that a CPU does quickly, for which see docs/models.md."""
    pixels = x.size // x.shape[-1]
    if pixels > _MANY_PIXELS:
        x, y = (a.reshape(pixels, -1) for a in (x, y))
        return jax.lax.dot_general(x, y, (((0,), (0,)), ((), ())), preferred_element_type=dtype)
    # with all its axes, so that it is transposed first: the product is then done twice as fast
    return jnp.einsum("bhwi,bhwj->ij", x, y, preferred_element_type=dtype)


def pixel_sums(terms: Callable[..., tuple[jax.Array, ...]], *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The sums over all but the channels of what `terms` makes of arrays [B, H, W, C], in at least float32: some [C].

    `terms` must be elementwise, and take a row of pixels [B, W, C] as well.
    """

    def plain(*arrays: jax.Array) -> tuple:
        return tuple(jnp.sum(term, _PIXELS) for term in terms(*map(at_least_float32, arrays)))

    # The compiler fuses the terms into a sum that goes through memory channel by channel, at up to thirty times the
    # cost. A row of pixels stays in the cache meanwhile. Rows are of the second axis: devices share out the first.
    def by_rows(*arrays: jax.Array) -> tuple:
        def row(y: jax.Array, totals: tuple) -> tuple:
            rows = [at_least_float32(jax.lax.dynamic_index_in_dim(a, y, 1, keepdims=False)) for a in arrays]
            return tuple(total + jnp.sum(term, 1) for total, term in zip(totals, terms(*rows)))

        first = jax.eval_shape(lambda: row(jnp.int32(0), (0.0,) * len(jax.eval_shape(plain, *arrays))))
        totals = jax.lax.fori_loop(0, arrays[0].shape[1], row, tuple(jnp.zeros(t.shape, t.dtype) for t in first))
        return tuple(jnp.sum(total, 0) for total in totals)

    if arrays[0].size < _SMALL:
        return plain(*arrays)
    return jax.lax.platform_dependent(*arrays, cpu=by_rows, default=plain)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def max_pool(x: jax.Array, kernel: int, stride: int, padding: int = 0) -> jax.Array:
    """Maxima of x [B, H, W, C] over windows; the gradient goes to the first of equals, as XLA and torch have it."""
    window, strides = (1, kernel, kernel, 1), (1, stride, stride, 1)
    pad = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, pad)


def _max_pool_forward(x: jax.Array, kernel: int, stride: int, padding: int) -> tuple:
    y = max_pool(x, kernel, stride, padding)
    return y, (x, y)


def _max_pool_backward(kernel: int, stride: int, padding: int, kept: tuple, g: jax.Array) -> tuple:
    def scattered(x: jax.Array, y: jax.Array, g: jax.Array) -> jax.Array:
        return jax.vjp(lambda x: max_pool.fun(x, kernel, stride, padding), x)[1](g)[0]

    compared = partial(_max_pool_gradient, kernel, stride, padding)
    return (jax.lax.platform_dependent(*kept, g, cpu=compared, default=scattered),)


def _max_pool_gradient(kernel: int, stride: int, padding: int, x: jax.Array, y: jax.Array, g: jax.Array) -> jax.Array:
    """Gradient of the maximum over windows, by comparisons.

    XLA's scatter carries the coordinates of each maximum through the windows on a CPU.
    """
    batch, height, width, channels = x.shape
    low = jnp.array(-jnp.inf, x.dtype)
    padded = jax.lax.pad(x, low, ((0, 0, 0), (padding, padding, 0), (padding, padding, 0), (0, 0, 0)))
    rows, columns = ((n - 1) * stride + 1 for n in y.shape[1:3])
    first = jnp.full(y.shape, kernel * kernel, jnp.int32)
    for place in reversed(range(kernel * kernel)):
        i, j = divmod(place, kernel)
        seen = padded[:, i : i + rows : stride, j : j + columns : stride]
        first = jnp.where(seen == y, place, first)

    # Pixels that lie alike between strides are at the same places of windows: such a set is a sum of whole maps, and
    # the sets are interleaved at the end.
    high, wide = (-(-n // stride) for n in padded.shape[1:3])

    def places(start: int) -> Iterator[int]:
        yield from range(start, kernel, stride)

    def alike(row: int, column: int) -> jax.Array:
        total = jnp.zeros((batch, high, wide, channels), g.dtype)
        for i in places(row):
            for j in places(column):
                before = [(i // stride, high), (j // stride, wide)]
                pads = [(low, n - m - low, 0) for (low, n), m in zip(before, y.shape[1:3])]
                taken = jnp.where(first == i * kernel + j, g, jnp.zeros((), g.dtype))
                total += jax.lax.pad(taken, jnp.zeros((), g.dtype), ((0, 0, 0), *pads, (0, 0, 0)))
        return total

    sets = jnp.stack([jnp.stack([alike(r, c) for c in range(stride)], 3) for r in range(stride)], 2)
    whole = sets.reshape(batch, high * stride, wide * stride, channels)
    return whole[:, padding : padding + height, padding : padding + width]


max_pool.defvjp(_max_pool_forward, _max_pool_backward)
