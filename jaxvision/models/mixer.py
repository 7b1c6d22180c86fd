"""MLP-Mixer.

Paper: Tolstikhin et al. 2021, "MLP-Mixer: An all-MLP Architecture for Vision", https://arxiv.org/abs/2105.01601.
Origin: written for jaxvision after the architecture that timm's `models/mlp_mixer.py` (Apache-2.0) publishes weights
for. Licence: Apache-2.0.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvision.config.ranges import Count, Depth, Rate
from jaxvision.models.layers import DropPath, classified, layer_norm, linear_rates, patches, recomputed
from jaxvision.models.origin import Origin
from jaxvision.ops import at_least_float32, gelu, mlp_branch

__all__ = ["mixer_b16_224", "mixer_b32_224", "mixer_l16_224", "mixer_l32_224", "mixer_s16_224", "mixer_s32_224"]


class Block(nn.Module):
    """Two dense layers over the tokens, then two over the channels, each after a norm and added to what came in.

    It makes the leaves. Without dropout in training `FusedBlock` runs in its place.
    """

    dropout: float
    drop_path: float
    train: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm, path = layer_norm(self.dtype), DropPath(self.drop_path)
        x = self._over_tokens(x, path)
        y = self._mlp(norm(name="norm2")(x), 4 * x.shape[-1], "mlp_channels")
        return x + path(y, train=self.train)

    def _over_tokens(self, x: jax.Array, path: DropPath) -> jax.Array:
        y = jnp.swapaxes(layer_norm(self.dtype)(name="norm1")(x), 1, 2)
        y = jnp.swapaxes(self._mlp(y, x.shape[-1] // 2, "mlp_tokens"), 1, 2)
        return x + path(y, train=self.train)

    def _mlp(self, x: jax.Array, hidden: int, name: str) -> jax.Array:
        dense = partial(nn.Dense, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype)
        drop = nn.Dropout(self.dropout, deterministic=not self.train)
        bias = nn.initializers.normal(1e-6)
        y = drop(gelu(dense(hidden, bias_init=bias, name=f"{name}_fc1")(x)))
        return drop(dense(x.shape[-1], bias_init=bias, name=f"{name}_fc2")(y))


class FusedBlock(Block):
    """`Block` with the layers over the channels by a kernel of our own on a TPU, with the leaves that `Block` has made.

    Values and gradients are the same up to rounding. Without dropout.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        path = DropPath(self.drop_path)
        x = self._over_tokens(x, path)
        leaves = (self.variables["params"][name] for name in ("norm2", "mlp_channels_fc1", "mlp_channels_fc2"))
        return mlp_branch(x, *leaves, keep=path.keep(x.shape[0], train=self.train), rate=self.drop_path)


class Mixer(nn.Module):
    """Image f32[B, H, W, C] to "tokens" [B, N, D], "features" f32[B, D] (their mean) and "logits" f32[B, classes].

    The dense layers over the tokens make it fit one size of image, that of `init`.

    Attributes:
      classes: width of the last layer; 0: none, and no logits.
      patch: side of a patch in pixels; images must be a multiple of it.
      width, depth: of the tokens; number of blocks.
      dropout: in both branches of a block.
      drop_path: rate of stochastic depth at the last block, growing linearly from 0 at the first.
      remat: what the backward pass computes again in blocks instead of keeping it, see layers.REMAT.
      dtype: of the computation. Parameters, features and logits are float32.
    """

    classes: int
    patch: Count
    width: Count
    depth: Depth
    dropout: Rate = 0.0
    drop_path: Rate = 0.0
    remat: str = ""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        if image.shape[1] % self.patch or image.shape[2] % self.patch:
            raise ValueError(f"Mixer: {image.shape[1]} x {image.shape[2]} px are no multiple of {self.patch}")
        x = patches(self.width, self.patch, self.dtype, "stem")(image)
        x = x.reshape(x.shape[0], -1, self.width)
        fusible = not (self.is_initializing() or (self.dropout and train))
        make_block = recomputed(FusedBlock if fusible else Block, self.remat)
        for k, rate in enumerate(linear_rates(self.drop_path, self.depth)):
            x = make_block(self.dropout, rate, train, self.dtype, name=f"blocks_{k}")(x)
        tokens = layer_norm(self.dtype)(name="norm")(x)
        features = jnp.mean(at_least_float32(tokens), axis=1)
        head = nn.Dense(self.classes, kernel_init=nn.initializers.zeros, name="head")
        return classified({"tokens": tokens, "features": features}, self.classes, head, features)


_small = partial(Mixer, width=512, depth=8)
_base = partial(Mixer, width=768, depth=12)
_large = partial(Mixer, width=1024, depth=24)

mixer_s32_224 = partial(_small, patch=32)
mixer_s16_224 = partial(_small, patch=16)
mixer_b32_224 = partial(_base, patch=32)
mixer_b16_224 = partial(_base, patch=16)
mixer_l32_224 = partial(_large, patch=32)
mixer_l16_224 = partial(_large, patch=16)

ORIGINS = {
    "timm": [
        Origin(
            {name: name for name in __all__},
            ((r"^blocks_", "blocks."), (r"(mlp_\w+)_fc", r"\1.fc"), (r"^stem", "stem.proj")),
            stages={"tokens": "norm"},
        )
    ]
}
