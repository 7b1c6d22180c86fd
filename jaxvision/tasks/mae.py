"""MAE: see a quarter of the patches, paint the others."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvision.config.ranges import Count, Depth, Rate
from jaxvision.data.contract import InputContract
from jaxvision.losses import masked_patch_error
from jaxvision.models.layers import layer_norm
from jaxvision.models.vit import Block, FusedBlock, VisionTransformer, sincos_positions
from jaxvision.ops import masked_mean
from jaxvision.task import Batch, PyTree, Task, declares
from jaxvision.tasks.common import given_part, normalise, overlay
from jaxvision.tasks.encoder import spread

# Nothing in this loss asks features to point everywhere: they share a large offset, which hurts no classifier, and
# their deviation falls below what other tasks call collapsed (0.075 after 50 steps on the digits) before it rises.
ALIKE = 0.01


class Decoder(nn.Module):
    """Small Vision Transformer that decodes the tokens of the seen patches to the pixels of all patches."""

    width: int
    depth: int
    heads: int
    pixels: int  # of a patch, all channels
    dtype: Any

    @nn.compact
    def __call__(self, tokens: jax.Array, order: jax.Array, grid: tuple[int, int], first: int) -> jax.Array:
        """Decodes `tokens` [B, first + K, D] to pixels.

        The class token comes first if there is one; the others are the first K patches of `order` int32[B, N].
        Returns [B, N, pixels], row by row.
        """
        x = nn.Dense(self.width, dtype=self.dtype, name="embed")(tokens)
        hidden = self.param("mask_token", nn.initializers.normal(0.02), (1, 1, self.width))
        missing = order.shape[1] + first - x.shape[1]
        hidden = jnp.broadcast_to(hidden.astype(x.dtype), (x.shape[0], missing, self.width))
        every = jnp.concatenate([x[:, first:], hidden], 1)
        every = jnp.take_along_axis(every, jnp.argsort(order, axis=1)[:, :, None], 1)
        every = every + jnp.asarray(sincos_positions(*grid, self.width), x.dtype)
        x = jnp.concatenate([x[:, :first], every], 1)
        make_block = Block if self.is_initializing() else FusedBlock
        for k in range(self.depth):
            x = make_block(heads=self.heads, mlp=4 * self.width, train=True, dtype=self.dtype, name=f"layer_{k}")(x)
        x = layer_norm(self.dtype)(name="ln")(x)
        return nn.Dense(self.pixels, name="pixels")(x[:, first:])


@declares()
def mae(
    model: nn.Module,
    contract: InputContract,
    *,
    hidden: Rate = 0.75,
    decoder_width: Count = 512,
    decoder_depth: Depth = 8,
    decoder_heads: Count = 16,
    normalise_patches: bool = True,
) -> Task:
    """Masked autoencoder of He et al. 2021, https://arxiv.org/abs/2111.06377.

    The loss is `losses.masked_patch_error` of the patches that were hidden.

    batch["image"] is uint8 [B, H, W, C]; the share `hidden` of its patches, drawn anew for each image, is left out, so
    the network runs on the others alone. The decoder under params["decoder"] is dropped afterwards. The paper's
    encoder has fixed positions: config.model.positions = "sincos". Predicts "features" f32[B, D] of the whole image.
    Logs: those of `spread`, of the features of what was seen.

    Raises ValueError for a network other than a Vision Transformer, or a share outside (0, 1).
    """
    if not isinstance(model, VisionTransformer):
        raise ValueError(f"mae hides patches from a Vision Transformer, and this is a {type(model).__name__}")
    if not 0.0 < hidden < 1.0:
        raise ValueError(f"hidden is the share of patches that are left out, in (0, 1), got {hidden}")
    net = model.clone(classes=0)
    side, first = model.patch, int(model.pooling == "token")
    decoder = Decoder(decoder_width, decoder_depth, decoder_heads, side * side * contract.channels, model.dtype)

    def grid(image: jax.Array) -> tuple[int, int]:
        return image.shape[1] // side, image.shape[2] // side

    def order_of(key: jax.Array, image: jax.Array) -> tuple[jax.Array, int]:
        """A random order of each image's patches, int32[B, N], and how many are seen."""
        rows, columns = grid(image)
        count = rows * columns
        seen = round(count * (1 - hidden))
        if not 0 < seen < count:
            raise ValueError(f"mae: of {count} patches {seen} would be seen at hidden={hidden}: take smaller patches")
        return jnp.argsort(jax.random.uniform(key, (image.shape[0], count)), axis=1), seen

    def outputs(params: PyTree, image: jax.Array, order: jax.Array, seen: int, key: jax.Array) -> tuple:
        """(the network's outputs, its tokens without the registers)."""
        made: Any = net.apply(
            {"params": params["model"]}, image, train=True, keep=order[:, :seen], rngs={"dropout": key}
        )
        tokens = made["tokens"]
        tokens = jnp.concatenate([tokens[:, :first], tokens[:, first + model.registers :]], 1)
        return made, tokens

    def init(key: jax.Array, batch: Batch, given: dict[str, Any] | None = None) -> tuple[PyTree, PyTree]:
        image = normalise(batch["image"], contract)
        order, seen = order_of(key, image)
        params = {"model": net.init({"params": key, "dropout": key}, image, train=False)["params"]}
        _, tokens = outputs(params, image, order, seen, key)
        key = jax.random.fold_in(key, 1)
        params["decoder"] = decoder.init(key, tokens, order, grid(image), first)["params"]
        return overlay(params, given_part(given, "params"), "params"), {"model": {}}

    def loss(params: PyTree, extra: PyTree, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple:
        keys = jax.random.split(key)
        image, mask = normalise(batch["image"], contract), batch["mask"]
        order, seen = order_of(keys[0], image)
        made, tokens = outputs(params, image, order, seen, keys[1])
        painted: Any = decoder.apply({"params": params["decoder"]}, tokens, order, grid(image), first)
        left_out = jnp.argsort(order, axis=1) >= seen
        error = masked_patch_error(painted, patches_of(image, side), left_out, normalise=normalise_patches)
        return masked_mean(error, mask), (extra, spread(made["features"], mask, std_below=ALIKE))

    def predict(params: PyTree, extra: PyTree, batch: Batch) -> dict[str, jax.Array]:
        image = normalise(batch["image"], contract)
        made: Any = net.apply({"params": params["model"]}, image, train=False)
        return {"features": made["features"]}

    return Task(init, loss, predict)


def patches_of(image: jax.Array, side: int) -> jax.Array:
    """Pixels of the patches of [B, H, W, C], row by row: [B, H / side * W / side, side * side * C]."""
    batch, height, width, channels = image.shape
    x = image.reshape(batch, height // side, side, width // side, side, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, side * side * channels)
