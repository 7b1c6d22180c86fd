"""Optimisers and schedules, composed from optax."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxvision.config import Config, factory
from jaxvision.errors import UserError
from jaxvision.task import PyTree

__all__ = ["adamw", "lamb", "lars", "sgd"]

# Keys of config.optim that `make` itself reads; the others are arguments of the optimiser.
SHARED = ("lr", "weight_decay", "schedule", "warmup", "final", "milestones", "gamma", "clip", "groups")


def sgd(decay: optax.GradientTransformation, *, momentum: float = 0.9, nesterov: bool = False):
    """SGD as torch's: decay joins the gradient before momentum; lr multiplies the momentum's output."""
    return optax.chain(decay, optax.trace(momentum, nesterov) if momentum else optax.identity())


def adamw(decay: optax.GradientTransformation, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8):
    """Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101, decay times lr as torch has it."""
    return optax.chain(optax.scale_by_adam(b1, b2, eps), decay)


def lamb(decay: optax.GradientTransformation, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-6):
    """You et al. 2020, https://arxiv.org/abs/1904.00962: Adam's step with decay, scaled by the leaf's norm."""
    return optax.chain(optax.scale_by_adam(b1, b2, eps), decay, optax.scale_by_trust_ratio())


def lars(
    decay: optax.GradientTransformation,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    trust: float = 0.001,
):
    """You et al. 2017, https://arxiv.org/abs/1708.03888; biases and norms take plain steps, as is usual."""
    scaled = optax.masked(optax.scale_by_trust_ratio(trust_coefficient=trust), decayed)
    return optax.chain(decay, scaled, optax.trace(momentum, nesterov))


def decayed(params: PyTree) -> PyTree:
    """True for the leaves that weight decay applies to: kernels; not biases, norms and scalars."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def make(config: Config, total_steps: int, params: PyTree) -> tuple[optax.GradientTransformation, Callable]:
    """The optimiser of `config.optim` and its schedule, step -> lr.

    `params` may be abstract; it is used to check that each pattern in `groups` matches something.
    Raises UserError.
    """
    build = check(config)
    names = leaf_names(params)
    for pattern, _ in config.groups:
        if not any(re.search(pattern, n) for n in names):
            raise UserError(f"optim.groups: no parameter's name matches {pattern!r}; there are, for example, "
                            f"{', '.join(names[:3] + names[-1:])}")  # fmt: skip
    rate = schedule(config, total_steps)
    decay = optax.add_decayed_weights(config.weight_decay, mask=decayed)
    parts = [
        freeze(config.groups),  # first, so that a frozen leaf does not count in the norm that is clipped
        optax.clip_by_global_norm(config.clip) if config.clip else optax.identity(),
        build(decay if config.weight_decay else optax.identity()),
        scale_groups(config.groups),
        optax.scale_by_learning_rate(rate),
    ]
    return optax.chain(*parts), rate


def check(config: Config) -> Callable:
    """The optimiser's factory, its name and arguments checked. Raises UserError."""
    import jaxvision.optim as here

    spec = {k: v for k, v in config.items() if k not in SHARED}
    for pattern, multiplier in config.groups:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"optim.groups: {pattern!r} is no regular expression: {error}") from error
        if not multiplier >= 0:
            raise UserError(f"optim.groups: the multiplier of {pattern!r} is {multiplier}: it must be at least 0")
    return factory(here, spec, "optim", also=("name", *SHARED))


def schedule(config: Config, total_steps: int) -> Callable[[Any], jax.Array]:
    """step -> f32 lr: `warmup` linear from 0 over its share of the steps, then the named curve to the end."""
    warmup = round(config.warmup * total_steps)
    left = max(total_steps - warmup, 1)

    def rate(step: Any) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        done = jnp.clip((step - warmup) / left, 0.0, 1.0)
        if config.schedule == "cosine":
            share = config.final + (1 - config.final) * 0.5 * (1 + jnp.cos(jnp.pi * done))
        elif config.schedule == "linear":
            share = config.final + (1 - config.final) * (1 - done)
        elif config.schedule == "step":
            passed = sum((step >= round(m * total_steps) for m in config.milestones), jnp.int32(0))
            share = config.gamma**passed
        else:
            share = jnp.float32(1.0)
        ramp = jnp.minimum(1.0, (step + 1) / (warmup + 1)) if warmup else 1.0
        return jnp.float32(config.lr) * share * ramp

    return rate


def leaf_names(tree: PyTree) -> list[str]:
    """Names like "model/layer1_0/conv1/kernel", in the order of the leaves."""
    return [name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def name(path: tuple) -> str:
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def multiplier(groups: tuple, leaf: str) -> float:
    """Of the first pattern that is found in the leaf's name; 1 if none is."""
    return next((m for pattern, m in groups if re.search(pattern, leaf)), 1.0)


def freeze(groups: tuple) -> optax.GradientTransformation:
    """Zero gradients for leaves of multiplier 0."""
    return _map_named(lambda n, u: jnp.zeros_like(u) if multiplier(groups, n) == 0 else u, groups)


def scale_groups(groups: tuple) -> optax.GradientTransformation:
    """Updates times each leaf's multiplier; a frozen one is exactly 0, whatever decay and momentum made of it."""

    def scale(leaf: str, update: jax.Array) -> jax.Array:
        by = multiplier(groups, leaf)
        return jnp.zeros_like(update) if by == 0 else update if by == 1 else by * update

    return _map_named(scale, groups)


def _map_named(f: Callable[[str, jax.Array], jax.Array], groups: tuple) -> optax.GradientTransformation:
    if not groups:
        return optax.identity()
    return optax.stateless(lambda u, _: jax.tree_util.tree_map_with_path(lambda path, x: f(name(path), x), u))
