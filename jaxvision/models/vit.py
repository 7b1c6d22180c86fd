"""Vision Transformer and DeiT.

Papers: Dosovitskiy et al. 2020, "An Image is Worth 16x16 Words", https://arxiv.org/abs/2010.11929; Touvron et al. 2020
(DeiT), https://arxiv.org/abs/2012.12877; Steiner et al. 2021 (Ti, S), https://arxiv.org/abs/2106.10270. Options: Darcet
et al. 2023 (registers), https://arxiv.org/abs/2309.16588; Dehghani et al. 2023 (QK norm),
https://arxiv.org/abs/2302.05442; Touvron et al. 2021 (layer scale), https://arxiv.org/abs/2103.17239.
Origin: written for jaxvision after the architecture that torchvision's `models/vision_transformer.py` (BSD-3-Clause)
and timm's `models/vision_transformer.py` (Apache-2.0) publish weights for. Licence: Apache-2.0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxvision.config.ranges import Count, CountOrNone, Depth, Exponent, Rate
from jaxvision.models.layers import DropPath, classified, layer_norm, linear_rates, patches, recomputed
from jaxvision.models.origin import Origin
from jaxvision.ops import at_least_float32, attention, attention_branch, gelu, mlp_branch

_TORCHVISION = ["vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32"]
_TIMM = ["vit_tiny_patch16_224", "vit_small_patch16_224", "vit_small_patch32_224"]
_DEIT = ["deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224"]
__all__ = [*_TORCHVISION, *_TIMM, *_DEIT]


class Block(nn.Module):
    """Attention, then two dense layers, each after a norm and added to what came in.

    It makes the leaves. Without dropout in training, QK norm and layer scale `FusedBlock` runs in its place.
    """

    heads: int
    mlp: int
    train: bool
    dtype: Any
    drop_path: float = 0.0
    dropout: float = 0.0
    qk_norm: bool = False
    layer_scale: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width, norm = x.shape[-1], layer_norm(self.dtype)
        dense = partial(nn.Dense, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype)
        drop = nn.Dropout(self.dropout, deterministic=not self.train)
        path = DropPath(self.drop_path)

        y = dense(3 * width, name="qkv")(norm(name="ln_1")(x))
        q, k, v = jnp.moveaxis(y.reshape(*y.shape[:2], 3, self.heads, -1), 2, 0)
        if self.qk_norm:
            q, k = norm(name="q_norm")(q), norm(name="k_norm")(k)
        y = attention(q, k, v).reshape(x.shape)
        x = x + path(self._scaled(drop(dense(width, name="out")(y)), "scale_1"), train=self.train)

        bias = nn.initializers.normal(1e-6)
        y = drop(gelu(dense(self.mlp, bias_init=bias, name="mlp_0")(norm(name="ln_2")(x))))
        y = drop(dense(width, bias_init=bias, name="mlp_3")(y))
        return x + path(self._scaled(y, "scale_2"), train=self.train)

    def _scaled(self, x: jax.Array, name: str) -> jax.Array:
        if not self.layer_scale:
            return x
        gamma = self.param(name, nn.initializers.constant(self.layer_scale), (x.shape[-1],))
        return x * gamma.astype(x.dtype)


class FusedBlock(Block):
    """`Block` by kernels of our own on a TPU, with the leaves that `Block` has made.

    Values and gradients are the same up to rounding. Without dropout, QK norm and layer scale.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        leaves, path = self.variables["params"], DropPath(self.drop_path)

        def residual(branch: Callable[..., jax.Array], x: jax.Array, *names: str) -> jax.Array:
            keep = path.keep(x.shape[0], train=self.train)
            return branch(x, *(leaves[name] for name in names), keep=keep, rate=self.drop_path)

        x = residual(partial(attention_branch, heads=self.heads), x, "ln_1", "qkv", "out")
        return residual(mlp_branch, x, "ln_2", "mlp_0", "mlp_3")


class VisionTransformer(nn.Module):
    """Image f32[B, H, W, C] to "tokens" [B, N, D], "features" f32[B, D] and "logits" f32[B, classes].

    Tokens, after the last norm: the class token, the registers, then the patches row by row. The position embeddings
    have one entry for the class token and each patch, so their number follows from the size of the image at `init`;
    an image of another size (a small crop beside large ones, in self-supervision) sees them resized.

    Attributes:
      classes: width of the last layer; 0: none, and no logits.
      patch: side of a patch in pixels; images must be a multiple of it.
      width, depth, heads: of the tokens; number of blocks; heads of the attention.
      mlp: width of the hidden layer in a block; 0: four times `width`.
      pooling: features are the "token" (class token), or the "mean" of the patches, without a class token.
      registers: further learnt tokens, without a position.
      positions: "learnt", or "sincos": fixed sines and cosines of row and column (see `sincos_positions`), which
        are no parameters.
      qk_norm: queries and keys are normalised in each head.
      layer_scale: each branch is scaled by a learnt factor a channel that begins here; 0: it is not.
      dropout: of the embedded patches and in both branches.
      drop_path: rate of stochastic depth at the last block, growing linearly from 0 at the first.
      remat: what the backward pass computes again in blocks instead of keeping it, see layers.REMAT.
      dtype: of the computation. Parameters, softmax, features and logits are float32.
    """

    classes: int
    patch: Count
    width: Count
    depth: Depth
    heads: Count
    mlp: CountOrNone = 0
    pooling: str = "token"
    registers: CountOrNone = 0
    positions: str = "learnt"
    qk_norm: bool = False
    layer_scale: Exponent = 0.0
    dropout: Rate = 0.0
    drop_path: Rate = 0.0
    remat: str = ""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool, keep: jax.Array | None = None) -> dict[str, jax.Array]:
        """`keep`: int32[B, K], the patches that the blocks see, of those of the image row by row; all if None."""
        if self.pooling not in ("token", "mean") or self.positions not in ("learnt", "sincos"):
            raise ValueError(
                f"VisionTransformer: pooling {self.pooling!r} must be 'token' or 'mean', "
                f"positions {self.positions!r} 'learnt' or 'sincos'"
            )
        if image.shape[1] % self.patch or image.shape[2] % self.patch:
            raise ValueError(
                f"VisionTransformer: {image.shape[1]} x {image.shape[2]} px are no multiple of {self.patch}"
            )
        x = patches(self.width, self.patch, self.dtype, "conv_proj")(image)
        grid = (x.shape[1], x.shape[2])
        x = x.reshape(x.shape[0], -1, self.width)
        first = int(self.pooling == "token")
        positions = self._positions(grid, first).astype(self.dtype)
        x = x + positions[:, first:]
        if keep is not None:
            x = jnp.take_along_axis(x, keep[:, :, None], 1)
        if first:
            token = self._learnt("class_token", 1, x, nn.initializers.zeros)
            x = jnp.concatenate([token + positions[:, :1], x], 1)
        if self.registers:
            added = self._learnt("register_tokens", self.registers, x, nn.initializers.normal(0.02))
            x = jnp.concatenate([x[:, :first], added, x[:, first:]], 1)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        make_block = recomputed(FusedBlock if self._fusible(train) else Block, self.remat)
        for k, rate in enumerate(linear_rates(self.drop_path, self.depth)):
            x = make_block(
                heads=self.heads,
                mlp=self.mlp or 4 * self.width,
                train=train,
                dtype=self.dtype,
                drop_path=rate,
                dropout=self.dropout,
                qk_norm=self.qk_norm,
                layer_scale=self.layer_scale,
                name=f"layer_{k}",
            )(x)
        tokens = layer_norm(self.dtype)(name="ln")(x)
        features = tokens[:, 0] if first else jnp.mean(at_least_float32(tokens[:, self.registers :]), axis=1)
        features = at_least_float32(features)
        head = nn.Dense(self.classes, kernel_init=nn.initializers.zeros, name="head")
        return classified({"tokens": tokens, "features": features}, self.classes, head, features)

    def _fusible(self, train: bool) -> bool:
        """Whether `FusedBlock` can stand for the blocks."""
        return not (self.is_initializing() or self.qk_norm or self.layer_scale or (self.dropout and train))

    def _positions(self, grid: tuple[int, int], first: int) -> jax.Array:
        """[1, first + rows * columns, width]; the class token's, if there is one, comes first."""
        if self.positions == "sincos":
            fixed = sincos_positions(*grid, self.width)
            return jnp.asarray(np.concatenate([np.zeros_like(fixed[:, :first]), fixed], 1))
        count = first + grid[0] * grid[1]
        if not self.has_variable("params", "pos_embedding"):
            return self.param("pos_embedding", nn.initializers.normal(0.02), (1, count, self.width))
        learnt: jax.Array = self.get_variable("params", "pos_embedding")
        if learnt.shape[1] == count:
            return learnt
        side = math.isqrt(learnt.shape[1] - first)
        square = learnt[:, first:].reshape(1, side, side, self.width)
        square = jax.image.resize(square, (1, *grid, self.width), "bicubic").reshape(1, -1, self.width)
        return jnp.concatenate([learnt[:, :first], square], 1)

    def _learnt(self, name: str, count: int, x: jax.Array, init: Any) -> jax.Array:
        token = self.param(name, init, (1, count, self.width))
        return jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], count, self.width))


def sincos_positions(rows: int, columns: int, width: int) -> np.ndarray:
    """Float32 [1, rows * columns, width]: sin and cos of the column, then of the row, at width / 4 wavelengths each.

    Source: He et al. 2021 (MAE), https://arxiv.org/abs/2111.06377, whose code has the column first. Raises ValueError
    if 4 does not divide the width.
    """
    if width % 4:
        raise ValueError(f"sincos positions: the width {width} is no multiple of 4")
    omega = 10000.0 ** -(np.arange(width // 4) / (width // 4))
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    angles = [np.outer(place.reshape(-1), omega) for place in (column, row)]
    return np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], 1)[None].astype(np.float32)


_tiny = partial(VisionTransformer, width=192, depth=12, heads=3)
_small = partial(VisionTransformer, width=384, depth=12, heads=6)
_base = partial(VisionTransformer, width=768, depth=12, heads=12)
_large = partial(VisionTransformer, width=1024, depth=24, heads=16)

vit_b_16 = partial(_base, patch=16)
vit_b_32 = partial(_base, patch=32)
vit_l_16 = partial(_large, patch=16)
vit_l_32 = partial(_large, patch=32)
vit_tiny_patch16_224 = partial(_tiny, patch=16)
vit_small_patch16_224 = partial(_small, patch=16)
vit_small_patch32_224 = partial(_small, patch=32)
deit_tiny_patch16_224 = partial(_tiny, patch=16)
deit_small_patch16_224 = partial(_small, patch=16)
deit_base_patch16_224 = partial(_base, patch=16)

_SAME = {
    "vit_b_16": "vit_base_patch16_224",
    "vit_b_32": "vit_base_patch32_224",
    "vit_l_16": "vit_large_patch16_224",
    "vit_l_32": "vit_large_patch32_224",
}
ORIGINS = {
    "torchvision": [
        Origin(
            {name: name for name in _TORCHVISION},
            (
                (r"^layer_(\d+)\.", r"encoder.layers.encoder_layer_\1."),
                (r"\.qkv\.", ".self_attention.in_proj_"),
                (r"\.out\.", ".self_attention.out_proj."),
                (r"mlp_", "mlp."),
                (r"^(ln\.|pos_embedding)", r"encoder.\1"),
                (r"^head\.", "heads.head."),
            ),
            stages={"tokens": "encoder"},
        )
    ],
    "timm": [
        Origin(
            {**_SAME, **{name: name for name in (*_TIMM, *_DEIT)}},
            (
                (r"^layer_(\d+)\.", r"blocks.\1."),
                (r"\.ln_(\d)\.", r".norm\1."),
                (r"\.(qkv|q_norm|k_norm)\.", r".attn.\1."),
                (r"\.out\.", ".attn.proj."),
                (r"\.mlp_0\.", ".mlp.fc1."),
                (r"\.mlp_3\.", ".mlp.fc2."),
                (r"\.scale_(\d)$", r".ls\1.gamma"),
                (r"^ln\.", "norm."),
                (r"^conv_proj\.", "patch_embed.proj."),
                (r"^pos_embedding$", "pos_embed"),
                (r"^class_token$", "cls_token"),
                (r"^register_tokens$", "reg_token"),
            ),
            stages={"tokens": "norm"},
        )
    ],
}
