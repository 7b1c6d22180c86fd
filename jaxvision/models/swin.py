"""Swin Transformer.

Paper: Liu et al. 2021, "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows",
https://arxiv.org/abs/2103.14030.
Origin: written for jaxvision after the architecture that torchvision's `models/swin_transformer.py` (BSD-3-Clause) and
timm's `models/swin_transformer.py` (Apache-2.0) publish weights for. Licence: Apache-2.0.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxvision.config.ranges import Count, Counts, Depths, Rate
from jaxvision.models.layers import (
    DropPath,
    classified,
    global_mean,
    layer_norm,
    linear_rates,
    patches,
    recomputed,
    truncated_normal,
)
from jaxvision.models.origin import Origin
from jaxvision.ops import attention, gelu

__all__ = ["swin_b", "swin_s", "swin_t"]


class Block(nn.Module):
    """Attention within windows, shifted in every second block; then two dense layers; each added to what came in."""

    heads: int
    window: int
    shifted: bool
    dropout: float
    drop_path: float
    train: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width, norm = x.shape[-1], layer_norm(self.dtype, 1e-5)
        dense = partial(nn.Dense, kernel_init=truncated_normal(), dtype=self.dtype)
        drop = nn.Dropout(self.dropout, deterministic=not self.train)
        path = DropPath(self.drop_path)
        x = x + path(self._attention(norm(name="norm1")(x), dense, drop), train=self.train)
        bias = nn.initializers.normal(1e-6)
        y = drop(gelu(dense(4 * width, bias_init=bias, name="mlp_0")(norm(name="norm2")(x))))
        return x + path(drop(dense(width, bias_init=bias, name="mlp_3")(y)), train=self.train)

    def _attention(self, x: jax.Array, dense: Any, drop: Any) -> jax.Array:
        height, width, w = x.shape[1], x.shape[2], self.window
        x = jnp.pad(x, ((0, 0), (0, -height % w), (0, -width % w), (0, 0)))
        rows, columns = x.shape[1:3]
        # A window that covers the map has nothing to be shifted to.
        shift = tuple(w // 2 if self.shifted and side > w else 0 for side in (rows, columns))
        x = jnp.roll(x, (-shift[0], -shift[1]), (1, 2)) if any(shift) else x
        x = _windows(x, w)
        y = dense(3 * x.shape[-1], name="attn_qkv")(x)
        q, k, v = jnp.moveaxis(y.reshape(*y.shape[:-1], 3, self.heads, -1), -3, 0)
        table = self.param("attn_relative_position_bias_table", truncated_normal(), ((2 * w - 1) ** 2, self.heads))
        bias = table[relative_position_index(w).reshape(-1)].reshape(w * w, w * w, -1).transpose(2, 0, 1)
        if any(shift):
            bias = bias + _mask(rows, columns, w, shift)[:, None]
        y = attention(q, k, v, bias).reshape(x.shape)
        y = drop(dense(x.shape[-1], name="attn_proj")(y))
        y = y.reshape(-1, rows // w, columns // w, w, w, y.shape[-1]).swapaxes(2, 3)
        y = y.reshape(-1, rows, columns, y.shape[-1])
        y = jnp.roll(y, shift, (1, 2)) if any(shift) else y
        return y[:, :height, :width]


def _windows(x: Any, w: int) -> Any:
    """[B, H, W, C] to [B, windows, w * w, C]."""
    batch, rows, columns, channels = x.shape
    x = x.reshape(batch, rows // w, w, columns // w, w, channels).swapaxes(2, 3)
    return x.reshape(batch, -1, w * w, channels)


def relative_position_index(w: int) -> np.ndarray:
    """int64 [w * w, w * w]: which entry of the table belongs to a pair of places in a window."""
    places = np.stack(np.meshgrid(np.arange(w), np.arange(w), indexing="ij")).reshape(2, -1)
    down, right = places[:, :, None] - places[:, None] + w - 1
    return down * (2 * w - 1) + right


def _mask(rows: int, columns: int, w: int, shift: tuple[int, ...]) -> np.ndarray:
    """f32[windows, w * w, w * w]: -100 between places that only the roll has brought into one window."""

    def region(side: int, by: int) -> np.ndarray:
        place = np.arange(side)
        return (place >= side - w).astype(int) + (place >= side - by) if by else np.zeros(side, int)

    regions = 3 * region(rows, shift[0])[:, None] + region(columns, shift[1])
    flat = _windows(regions[None, :, :, None], w)[0, :, :, 0]
    return np.where(flat[:, :, None] == flat[:, None], 0.0, -100.0).astype(np.float32)


class Swin(nn.Module):
    """Image f32[B, H, W, C] to "c2".."c5" (after each stage), "features" f32[B, D] and "logits" f32[B, classes].

    Any size of image: maps are padded with zeros to whole windows, and to even sides before they are halved.

    Attributes:
      classes: width of the last layer; 0: none, and no logits.
      width: channels of the first stage; doubled in each further one.
      depths, heads: blocks, and heads of the attention, of each stage.
      window: side of a window, in patches of 4 x 4 pixels in the first stage.
      dropout: after the attention and in the dense layers of a block.
      drop_path: rate of stochastic depth at the last block, growing linearly from 0 at the first. torchvision trains
        with 0.2 (t), 0.3 (s) and 0.5 (b).
      remat: what the backward pass computes again in blocks instead of keeping it, see layers.REMAT.
      dtype: of the computation. Parameters, softmax, features and logits are float32.
    """

    classes: int
    width: Count
    depths: Depths
    heads: Counts
    window: Count = 7
    dropout: Rate = 0.0
    drop_path: Rate = 0.0
    remat: str = ""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        norm = layer_norm(self.dtype, 1e-5)
        x = norm(name="patch_norm")(patches(self.width, 4, self.dtype, "patch_conv")(image))
        make_block = recomputed(Block, self.remat)
        rates = iter(linear_rates(self.drop_path, sum(self.depths)))
        outputs = {}
        for stage, (depth, heads) in enumerate(zip(self.depths, self.heads, strict=True)):
            if stage:
                x = norm(name=f"merge{stage}_norm")(_merged(x))
                dense = partial(nn.Dense, use_bias=False, kernel_init=truncated_normal(), dtype=self.dtype)
                x = dense(x.shape[-1] // 2, name=f"merge{stage}_reduction")(x)
            for k in range(depth):
                x = make_block(
                    heads, self.window, k % 2 == 1, self.dropout, next(rates), train, self.dtype,
                    name=f"stage{stage}_{k}",
                )(x)  # fmt: skip
            outputs[f"c{stage + 2}"] = x
        features = global_mean(norm(name="norm")(x))
        head = nn.Dense(self.classes, kernel_init=truncated_normal(), name="head")
        return classified({**outputs, "features": features}, self.classes, head, features)


def _merged(x: jax.Array) -> jax.Array:
    """The channels of 2 x 2 places beside each other, column by column."""
    x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
    return jnp.concatenate([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)


swin_t = partial(Swin, width=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24))
swin_s = partial(Swin, width=96, depths=(2, 2, 18, 2), heads=(3, 6, 12, 24))
swin_b = partial(Swin, width=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32))


def _buffers(model: Swin) -> dict[str, np.ndarray]:
    index = relative_position_index(model.window).reshape(-1)
    return {
        f"features.{2 * stage + 1}.{k}.attn.relative_position_index": index
        for stage, depth in enumerate(model.depths)
        for k in range(depth)
    }


ORIGINS = {
    "torchvision": [
        Origin(
            {name: name for name in __all__},
            (
                (r"attn_", "attn."),
                (r"mlp_", "mlp."),
                *((rf"^stage{k}_", f"features.{2 * k + 1}.") for k in range(4)),
                *((rf"^merge{k}_", f"features.{2 * k}.") for k in (1, 2, 3)),
                (r"^patch_conv", "features.0.0"),
                (r"^patch_norm", "features.0.2"),
            ),
            stages={f"c{k + 2}": f"features.{2 * k + 1}" for k in range(4)},
            channels_last=True,
            buffers=_buffers,
        )
    ],
    "timm": [
        Origin(
            {
                "swin_t": "swin_tiny_patch4_window7_224",
                "swin_s": "swin_small_patch4_window7_224",
                "swin_b": "swin_base_patch4_window7_224",
            },
            (
                (r"attn_", "attn."),
                (r"mlp_0", "mlp.fc1"),
                (r"mlp_3", "mlp.fc2"),
                (r"^stage(\d)_", r"layers.\1.blocks."),
                (r"^merge(\d)_", r"layers.\1.downsample."),
                (r"^patch_conv", "patch_embed.proj"),
                (r"^patch_norm", "patch_embed.norm"),
                (r"^head", "head.fc"),
            ),
            stages={f"c{k + 2}": f"layers.{k}" for k in range(4)},
            channels_last=True,
        )
    ],
}
