"""Optimisers and schedules, composed from optax."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from jaxvision.config import FORMS, Length, Take, as_config, check_values, duration_of, factory, over_at
from jaxvision.config.ranges import Positive, Rate, Tiny
from jaxvision.errors import UserError, nearest
from jaxvision.task import PyTree, leaf_name, leaf_names

__all__ = ["adamw", "lamb", "lars", "sgd"]

# Keys of config.optim that `make` itself reads; the others are arguments of the optimiser.
SHARED = (
    "lr", "weight_decay", "weight_decay_final", "schedule", "final", "gamma", "clip", "groups", "layer_decay",
    "no_decay",
    *(f"{name}_{form}" for name in ("warmup", "milestones", "unfreeze") for form in FORMS),
)  # fmt: skip


Decays = Callable[[PyTree], PyTree]  # params -> True for the leaves that weight decay applies to


def decayed(params: PyTree, no_decay: Sequence[str] = ()) -> PyTree:
    """Tree of bool: True for the leaves that weight decay applies to.

    These are leaves of two dimensions or more (biases, norms and scalars have fewer) in whose name no pattern of
    `no_decay` is found.
    """

    def one(path: Any, leaf: Any) -> bool:
        return leaf.ndim > 1 and not any(re.search(pattern, leaf_name(path)) for pattern in no_decay)

    return jax.tree_util.tree_map_with_path(one, params)


def sgd(decay: optax.GradientTransformation, *, momentum: Rate = 0.9, nesterov: bool = False):
    """SGD as torch's: decay joins the gradient before momentum; lr multiplies the momentum's output."""
    return optax.chain(decay, optax.trace(momentum, nesterov) if momentum else optax.identity())


def adamw(decay: optax.GradientTransformation, *, b1: Rate = 0.9, b2: Rate = 0.999, eps: Tiny = 1e-8):
    """AdamW of Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101, decay times lr as torch has it."""
    return optax.chain(optax.scale_by_adam(b1, b2, eps), decay)


def lamb(
    decay: optax.GradientTransformation,
    *,
    decays: Decays = decayed,
    b1: Rate = 0.9,
    b2: Rate = 0.999,
    eps: Tiny = 1e-6,
):
    """LAMB of You et al. 2020, https://arxiv.org/abs/1904.00962.

    The step is Adam's step with decay, scaled by the leaf's norm. Biases, norms and what else does not decay take
    Adam's steps, as in the authors' code and timm's: by the norm of a bias, which begins at 0, they would hardly move.
    """
    scaled = optax.masked(optax.scale_by_trust_ratio(), decays)
    return optax.chain(optax.scale_by_adam(b1, b2, eps), decay, scaled)


def lars(
    decay: optax.GradientTransformation,
    *,
    decays: Decays = decayed,
    momentum: Rate = 0.9,
    nesterov: bool = False,
    trust: Positive = 0.001,
):
    """LARS of You et al. 2017, https://arxiv.org/abs/1708.03888.

    What does not decay (biases, norms) takes plain steps, as is usual.
    """
    scaled = optax.masked(optax.scale_by_trust_ratio(trust_coefficient=trust), decays)
    return optax.chain(decay, scaled, optax.trace(momentum, nesterov))


def make(
    config: ConfigDict,
    total_steps: int,
    params: PyTree,
    *,
    steps_per_epoch: float = 0.0,
    modules: Sequence[str] = (),
    frozen: Sequence[str] = (),
    take: Take | None = None,
) -> tuple[optax.GradientTransformation, Callable]:
    """The optimiser of `config.optim` and its schedule, step -> lr.

    `take`: see `config.factory`. `steps_per_epoch`: needed where a duration is in epochs. `params` may be abstract;
    `modules` and `frozen` are those of `rules`, which may raise UserError. Leaves that are frozen for good have no
    optimiser state. Those of `unfreeze` get an optimiser of their own, which begins with the step that sets them free:
    neither decay, nor momentum, nor Adam's count has seen the steps before.
    """
    build = check(config, take)
    config = taken(config, take) if take is not None else config
    by_leaf = rules(config, params, modules, frozen)
    length = Length(total_steps, steps_per_epoch)
    rate = schedule(config, length)
    form, _ = duration_of(config, "unfreeze")
    decays = functools.partial(decayed, no_decay=config.no_decay)

    def from_step(start: int) -> optax.GradientTransformation:
        return gate(build(_decay(config, total_steps, start, decays), decays=decays), start)

    at = {rule.start: round(length.steps(form, rule.start)) for rule in by_leaf.values() if rule.multiplier}
    starts = {_label(start): step for start, step in at.items()}
    labels = {n: _label(rule.start) if rule.multiplier else "frozen" for n, rule in by_leaf.items()}
    if set(labels.values()) == {"0"}:
        optimiser = from_step(0)
    else:
        several = {label: from_step(start) for label, start in starts.items()}
        by_label = jax.tree_util.tree_map_with_path(lambda path, _: labels[leaf_name(path)], params)
        optimiser = optax.partition({**several, "frozen": optax.set_to_zero()}, by_label)
    parts = [
        hold(by_leaf, at) if config.clip else optax.identity(),  # a frozen leaf does not count in the norm
        optax.clip_by_global_norm(config.clip) if config.clip else optax.identity(),
        optimiser,
        scale(by_leaf),
        optax.scale_by_learning_rate(rate),
    ]
    return optax.chain(*parts), rate


def _label(start: float) -> str:
    """Label in the optimiser's state of the leaves that are free from then on."""
    return str(start) if isinstance(start, int) else f"{start:g}"


def _decay(config: ConfigDict, total_steps: int, start: int, decays: Decays) -> optax.GradientTransformation:
    """Weight decay for an optimiser whose first step is the run's step `start`."""
    if config.weight_decay_final >= 0:
        decay = weight_decay(config, total_steps)
        return optax.add_decayed_weights(lambda count: decay(start + count), mask=decays)
    return optax.add_decayed_weights(config.weight_decay, mask=decays) if config.weight_decay else optax.identity()


def check(config: ConfigDict, take: Take | None = None) -> Callable:
    """The optimiser's factory, its name and arguments checked; `take` of `config.factory`. Raises UserError."""
    import jaxvision.training.optim as here

    spec = {k: v for k, v in config.items() if k not in SHARED}
    check_values(as_config({"optim": config}))
    return factory(here, spec, "optim", also=("name", *SHARED), take=take)


def taken(config: ConfigDict, take: Take) -> ConfigDict:
    """The config with what `take` gives for the numbers that `make` itself reads; when a leaf is freed stays."""
    numbers = {key: take(f"optim.{key}", value) for key, value in config.items() if key in SHARED}
    for key in (f"milestones_{form}" for form in FORMS):
        numbers[key] = tuple(take(f"optim.{key}[{k}]", v) for k, v in enumerate(config[key]))
    numbers["groups"] = tuple((name, take(f"optim.groups[{k}]", v)) for k, (name, v) in enumerate(config.groups))
    return as_config({**config, **numbers})


def _patterns(config: ConfigDict) -> tuple[tuple[str, tuple], ...]:
    """(key, (pattern, value) pairs) of the keys that name leaves by patterns."""
    none = tuple((pattern, 0.0) for pattern in config.no_decay)
    form, pairs = duration_of(config, "unfreeze")
    return ("groups", config.groups), (f"unfreeze_{form}", pairs), ("no_decay", none)


def schedule(config: ConfigDict, length: Length) -> Callable[[Any], jax.Array]:
    """step -> f32 lr: linear from 0 over the warm-up, then the named curve to the end."""
    warmup = round(length.steps(*duration_of(config, "warmup")))
    left = max(length.total_steps - warmup, 1)
    form, milestones = duration_of(config, "milestones")

    # Times an inverse: XLA makes that of a division by a constant, and not of one by an argument.
    def rate(step: Any) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        done = jnp.clip((step - warmup) * (1.0 / left), 0.0, 1.0)
        if config.schedule == "cosine":
            share = config.final + (1 - config.final) * 0.5 * (1 + jnp.cos(jnp.pi * done))
        elif config.schedule == "linear":
            share = config.final + (1 - config.final) * (1 - done)
        elif config.schedule == "step":
            passed = sum((step >= round(length.steps(form, m)) for m in milestones), jnp.int32(0))
            share = config.gamma**passed
        else:
            share = jnp.float32(1.0)
        ramp = jnp.minimum(1.0, (step + 1) * (1.0 / (warmup + 1))) if warmup else 1.0
        return jnp.float32(config.lr) * share * ramp

    return rate


def weight_decay(config: ConfigDict, total_steps: int) -> Callable[[Any], jax.Array]:
    """Weight decay of each step, step -> f32: half a cosine from `weight_decay` to `weight_decay_final`.

    It goes from step 0 to the end, as DINO's (Caron et al. 2021, https://arxiv.org/abs/2104.14294; 0.04 to 0.4).
    """
    begin, end = config.weight_decay, config.weight_decay_final

    def decay(step: Any) -> jax.Array:
        done = jnp.clip(jnp.asarray(step, jnp.float32) * (1.0 / total_steps), 0.0, 1.0)
        return end + (begin - end) * 0.5 * (1 + jnp.cos(jnp.pi * done))

    return decay


# --------------------------------------------------------------------------- which leaf learns how


class Rule(NamedTuple):
    """How a leaf learns: at `multiplier` times the learning rate, once `start` is over, a duration in the form that
    `unfreeze` is given in."""

    multiplier: float  # 0: frozen for good
    start: float


def rules(
    config: ConfigDict, params: PyTree, modules: Sequence[str] = (), frozen: Sequence[str] = ()
) -> dict[str, Rule]:
    """Name to rule, of every leaf; the multiplier is that of `groups` times that of `layer_decay`.

    Args:
      params: may be abstract.
      modules: top-level names of params["model"] in the order in which the network creates them; `layer_decay` needs
        them (a tree of jax has them sorted, "layer_10" before "layer_2").
      frozen: patterns of the leaves that the task never moves.

    Raises UserError for a pattern that matches nothing, or that would free what is frozen for good.
    """
    names = leaf_names(params)
    form, unfreeze = duration_of(config, "unfreeze")
    for key, pairs in _patterns(config):
        for pattern, _ in pairs:
            if not any(re.search(pattern, n) for n in names):
                raise UserError(f"optim.{key}: no parameter's name matches {pattern!r}; there are, for example, "
                                f"{', '.join(names[:3] + names[-1:])}")  # fmt: skip
    layer = layer_multipliers(params, modules, config.layer_decay) if config.layer_decay != 1 else {}
    found = {}
    for n in names:
        still = any(re.search(pattern, n) for pattern in frozen)
        multiplier = 0.0 if still else first(config.groups, n, 1.0) * layer.get(n, 1.0)
        found[n] = Rule(multiplier, first(unfreeze, n, 0.0) if multiplier else 0.0)
    for pattern, _ in unfreeze:
        if not any(re.search(pattern, n) and rule.multiplier for n, rule in found.items()):
            raise UserError(
                f"optim.unfreeze_{form}: all that matches {pattern!r} is frozen for good, by optim.groups or task"
            )
    if not any(rule.multiplier for rule in found.values()):
        raise UserError("optim.groups: every parameter is frozen, nothing is left to train")
    return found


def first(pairs: tuple, leaf: str, default: float) -> float:
    """The value of the first pattern that is found in the leaf's name."""
    return next((value for pattern, value in pairs if re.search(pattern, leaf)), default)


def layer_multipliers(params: PyTree, modules: Sequence[str], decay: float) -> dict[str, float]:
    """Layer-wise learning-rate decay: leaf of params["model"] to decay ** (L - its layer). See `layers`.

    Bao et al. 2021 (BEiT), https://arxiv.org/abs/2106.08254; He et al. 2021 (MAE), https://arxiv.org/abs/2111.06377.
    """
    depth = layers(params["model"], modules)
    top = max(depth.values())
    names = [n for n in leaf_names(params) if n.startswith("model/")]
    return {n: decay ** (top - depth[n.split("/")[1]]) for n in names}


def layers(network: PyTree, modules: Sequence[str]) -> dict[str, int]:
    """Top-level module to its layer, in 0..L: block i is layer i + 1 of L = blocks + 1.

    A block is a numbered module that holds others ("layer1_0", "layer_3"); in a network without any (AlexNet, VGG),
    each module with a kernel but the first and the last. What comes before the first block is layer 0, what lies
    between two goes with the second, what comes after the last (norm, head) is layer L.

    Raises ValueError if `modules` does not name what `network` has.
    """
    order = [m for m in modules if m in network]
    if set(order) != set(network):
        lacks = sorted(set(network) - set(order))
        raise ValueError(f"layer decay: the order of {lacks[0]!r} is unknown: {nearest(lacks[0], list(modules))}")
    blocks = [m for m in order if _holds(network[m]) and m[-1].isdigit()]
    blocks = blocks or [m for m in order if isinstance(network[m], dict) and "kernel" in network[m]][1:-1]
    depth, passed = {}, 0
    for m in order:
        depth[m] = passed + 1 if passed or m in blocks else 0
        passed += m in blocks
    return depth


def _holds(module: PyTree) -> bool:
    return isinstance(module, dict) and any(isinstance(part, dict) for part in module.values())


def table(config: ConfigDict, params: PyTree, modules: Sequence[str] = (), frozen: Sequence[str] = ()) -> str:
    """Table of how each part learns, for people; "" where all learn alike.

    Arguments and errors are those of `rules`.
    """
    rows: dict[Rule, list[tuple[str, int]]] = {}
    by_leaf = rules(config, params, modules, frozen)
    form, unfreeze = duration_of(config, "unfreeze")
    for n, leaf in zip(leaf_names(params), jax.tree.leaves(params), strict=True):
        rows.setdefault(by_leaf[n], []).append((n, math.prod(leaf.shape)))
    lines = []
    if len(rows) > 1 or config.groups or unfreeze or config.layer_decay != 1:
        lines += ["optim: learning rate times  leaves    parameters"]
        for rule in sorted(rows):
            leaves = rows[rule]
            when = "frozen" if not rule.multiplier else f"from {over_at(form, rule.start)}" if rule.start else ""
            examples = ", ".join(n for n, _ in leaves[:2]) + (", ..." if len(leaves) > 2 else "")
            lines.append(
                f"  {rule.multiplier:<25.6g} {len(leaves):>6}  {sum(size for _, size in leaves):>12,}"
                f"  {when + ': ' if when else ''}{examples}"
            )
    lines += _decay_lines(config, params, {n for n, rule in by_leaf.items() if rule.multiplier})
    return "\n".join(lines)


def _decay_lines(config: ConfigDict, params: PyTree, learning: set[str]) -> list[str]:
    """Lines on which of the learning leaves decay; kernels are counted, other leaves named."""
    begin, end = config.weight_decay, config.weight_decay_final
    if not begin and end <= 0:
        return []
    decays = dict(zip(leaf_names(params), jax.tree.leaves(decayed(params, config.no_decay)), strict=True))
    sizes = {n: math.prod(leaf.shape) for n, leaf in zip(leaf_names(params), jax.tree.leaves(params), strict=True)}
    yes = [n for n in sizes if n in learning and decays[n]]
    without = [n for n in sizes if n in learning and not decays[n]]
    plain = ("kernel", "bias", "scale")  # as flax calls what everybody expects to decay, and not to

    def named(names: list[str]) -> str:
        odd = [n for n in names if n.rpartition("/")[2] not in plain]
        return f", among them {', '.join(odd[:3])}{f' and {len(odd) - 3} more' if len(odd) > 3 else ''}" if odd else ""

    how = f"from {begin:g} to {end:g}, a cosine" if end >= 0 else f"{begin:g}"
    return [
        f"optim: weight decay {how}",
        f"  of {len(yes)} leaves, {sum(sizes[n] for n in yes):,} parameters{named(yes)}; "
        f"none of {len(without)} leaves{named(without)}",
    ]


# --------------------------------------------------------------------------- transformations


class GateState(NamedTuple):
    done: jax.Array  # i32[], steps
    inner: Any


def gate(inner: optax.GradientTransformation, start: int) -> optax.GradientTransformation:
    """`inner` from step `start` on; before that, updates of 0, and its state stays what it is at the beginning."""
    if not start:
        return inner

    def init(params: PyTree) -> GateState:
        return GateState(jnp.int32(0), inner.init(params))

    def update(updates: PyTree, state: GateState, params: PyTree = None) -> tuple[PyTree, GateState]:
        opened = state.done >= start
        moved, after = inner.update(updates, state.inner, params)
        moved = jax.tree.map(lambda u: jnp.where(opened, u, jnp.zeros_like(u)), moved)
        after = jax.tree.map(lambda new, old: jnp.where(opened, new, old), after, state.inner)
        return moved, GateState(state.done + 1, after)

    return optax.GradientTransformation(init, update)


def hold(by_leaf: dict[str, Rule], at: dict[float, int]) -> optax.GradientTransformation:
    """Gradients of 0 for what is frozen, for good or still. at: a rule's start -> the step."""

    def update(updates: PyTree, state: jax.Array, params: PyTree = None) -> tuple[PyTree, jax.Array]:
        def one(leaf: str, u: jax.Array) -> jax.Array:
            rule = by_leaf[leaf]
            if not rule.multiplier:
                return jnp.zeros_like(u)
            return jnp.where(state >= at[rule.start], u, jnp.zeros_like(u)) if rule.start else u

        return _map_named(one, updates), state + 1

    if all(rule.multiplier and not rule.start for rule in by_leaf.values()):
        return optax.identity()
    return optax.GradientTransformation(lambda _: jnp.int32(0), update)


def scale(by_leaf: dict[str, Rule]) -> optax.GradientTransformation:
    """Updates times each leaf's multiplier; a frozen one is exactly 0."""

    def one(leaf: str, u: jax.Array) -> jax.Array:
        by = by_leaf[leaf].multiplier
        return jnp.zeros_like(u) if by == 0 else u if by == 1 else by * u

    if all(rule.multiplier == 1 for rule in by_leaf.values()):
        return optax.identity()
    return optax.stateless(lambda updates, _: _map_named(one, updates))


def _map_named(f: Callable[[str, jax.Array], jax.Array], tree: PyTree) -> PyTree:
    return jax.tree_util.tree_map_with_path(lambda path, x: f(leaf_name(path), x), tree)
