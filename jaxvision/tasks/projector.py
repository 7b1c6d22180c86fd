"""Heads that self-supervision puts behind the features of a network."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvision.losses import normalised


class Projector(nn.Module):
    """Dense layers float[B, D] -> float32[B, widths[-1]], each but the last followed by a norm and ReLU.

    Attributes:
      widths: of the layers.
      norm: "batch" or "none", after each hidden layer, whose bias it makes needless.
      last_norm: "" (a bias instead), "batch", or "plain": without scale and offset.
      train: whether the batch's statistics are used, and stored ones renewed.
    """

    widths: tuple[int, ...]
    norm: str = "batch"
    last_norm: str = ""
    train: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        *hidden, last = self.widths
        for k, width in enumerate(hidden):
            x = nn.Dense(width, use_bias=self.norm == "none", name=f"dense_{k}")(x)
            x = nn.relu(self._batch_norm(f"norm_{k}")(x) if self.norm == "batch" else x)
        x = nn.Dense(last, use_bias=not self.last_norm, name=f"dense_{len(hidden)}")(x)
        if self.last_norm:
            x = self._batch_norm(f"norm_{len(hidden)}", affine=self.last_norm == "batch")(x)
        return x

    def _batch_norm(self, name: str, affine: bool = True) -> nn.Module:
        return nn.BatchNorm(
            use_running_average=not self.train, momentum=0.9, use_scale=affine, use_bias=affine, name=name
        )


class Prototypes(nn.Module):
    """DINO's head, float[B, D] -> float32[B, outputs].

    Dense layers with GELU lead to a bottleneck, whose rows of length 1 are multiplied with columns of length 1.

    The last kernel is kept as it is learnt and normalised when used (weight normalisation with the gain fixed at 1).
    With `norm` "batch" each hidden layer is normalised over the batch (the authors' use_bn_in_head).
    Source: Caron et al. 2021, https://arxiv.org/abs/2104.14294, appendix C.
    """

    outputs: int
    hidden: int = 2048
    layers: int = 3
    bottleneck: int = 256
    norm: str = "none"
    train: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.truncated_normal(0.02)
        for k in range(self.layers - 1):
            x = nn.Dense(self.hidden, kernel_init=init, name=f"dense_{k}")(x)
            if self.norm == "batch":
                x = nn.BatchNorm(use_running_average=not self.train, momentum=0.9, name=f"norm_{k}")(x)
            x = nn.gelu(x, approximate=False)
        x = nn.Dense(self.bottleneck, kernel_init=init, name=f"dense_{self.layers - 1}")(x)
        kernel = self.param("last", init, (self.bottleneck, self.outputs))
        return jnp.matmul(normalised(x), normalised(kernel.T).T)
