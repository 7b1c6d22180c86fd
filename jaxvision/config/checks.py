"""What values a config may have: the table CHECKS, and what no key says alone."""

from __future__ import annotations

import re
from typing import Any

from ml_collections import ConfigDict

from jaxvision.config.defaults import EVAL, OPEN, OTHERWISE, default
from jaxvision.config.durations import check_forms
from jaxvision.config.ranges import (
    COLOUR,
    LEVELS,
    RATE,
    SHARE,
    SIDES,
    Range,
    at_least,
    between,
    each,
    finite,
    is_name,
    is_number,
    is_pattern,
    one_of,
    pairs,
)
from jaxvision.config.translate import refuse_old
from jaxvision.config.tree import as_dict
from jaxvision.errors import UserError, nearest

WANDB_HAS_NO = r"[/\\#?%:]"  # in the names of projects and runs


def _is_named(entry: Any) -> bool:
    """Whether it is a pair of a name and its arguments."""
    return isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str) and isinstance(entry[1], dict)


_PATTERNS = each(is_pattern, 'patterns: regular expressions, such as "^layer4"')
_OF_PATTERNS = each(lambda pair: is_pattern(pair[0]), "a pattern first, and that is no regular expression")
WRAP = Range(
    lambda v: isinstance(v, tuple) and all(_is_named(pair) and "name" not in pair[1] for pair in v),
    'a tuple of (name, arguments) pairs, as (("ema", dict(decay=0.99)),)',
)
_FOR_GOOD = '; to freeze for good, take optim.groups = (("layer1", 0.0),)'
_AXIS = Range(lambda v: v == -1 or 1 <= v <= 2**20, "at least 1, or -1 for all devices that are left")


# key, what its value must be; * is the name of an evaluation. That every value has the type of its default, and that
# every number is finite, is checked of all keys. What arguments of models and the like must be, their factories say.
CHECKS: tuple[tuple[str, Range], ...] = (
    ("seed", Range(lambda v: 0 <= v < 2**32, "in 0..2**32 - 1")),
    ("batch_size", between(1, 2**20)),
    ("epochs", between(0, 1e9)),
    ("steps", between(0, 2**31 - 1)),
    ("accumulate", at_least(1)),
    ("dtype", one_of("auto", "float32", "bfloat16")),
    ("init_policy.fresh", _PATTERNS),
    ("init_policy.ignore", _PATTERNS),
    ("init_policy.contract", each(lambda v: isinstance(v, str), 'names, such as "mean"')),
    ("data.train", Range(bool, "a source URI, such as digits:train or folder:/pets/train")),
    ("data.size", SIDES),
    ("data.fit", one_of("crop", "stretch", "pad", "shortest")),
    ("data.resize", between(0, 2**15)),
    ("data.longest", between(0, 2**15)),
    ("data.filter", one_of("bilinear", "bicubic", "linear")),
    ("data.channels", Range(lambda v: v in (1, 3), "1 or 3")),
    ("data.mean", each(is_number, "numbers, of pixels in 0..1, one a channel")),
    ("data.std", each(lambda v: is_number(v) and v > 0, "numbers above 0, of pixels in 0..1, one a channel")),
    ("data.range", LEVELS),
    ("data.background", COLOUR),
    ("data.transforms", each(_is_named, 'a pair like ("shift", dict(share=0.1))')),
    ("data.sampling", one_of("uniform", "balanced", "weighted")),
    ("data.weights", pairs(lambda w: 0 <= w <= 10**6, 'pairs like ("rare class", 5.0), of a number of 0 to 1,000,000')),
    ("data.slots", between(0, 10**5)),
    ("data.min_visible", between(0, 1)),
    ("data.repeats", between(1, 10**6)),
    ("data.on_error", one_of("stop", "skip")),
    ("data.skip_at_most", Range(lambda v: 0 < v <= 1, "a share, in (0, 1]")),
    ("data.max_pixels", at_least(1)),
    ("data.threads", between(0, 1024)),
    ("data.processes", between(0, 1024)),
    ("data.prefetch", between(1, 1024)),
    ("wrap", WRAP),
    ("optim.lr", between(0, 10_000)),
    ("optim.weight_decay", between(0, 10_000)),
    ("optim.weight_decay_final",
     Range(lambda v: 0 <= v <= 10_000 or v == -1, "at least 0, at most 10,000, or -1 for a constant weight_decay")),
    ("optim.schedule", one_of("constant", "cosine", "linear", "step")),
    ("optim.warmup_steps", between(0, 2**31 - 1)),
    ("optim.warmup_epochs", between(0, 1e9)),
    ("optim.warmup_share", Range(RATE.test, "a share of all steps, in [0, 1)")),
    ("optim.final", Range(SHARE.test, "a share of lr, in [0, 1]")),
    ("optim.milestones_steps", each(lambda v: type(v) is int and v > 0, "whole numbers of steps, above 0")),
    ("optim.milestones_epochs", each(lambda v: is_number(v) and v > 0, "numbers of epochs, above 0")),
    ("optim.milestones_share", each(lambda v: is_number(v) and 0 < v < 1, "numbers: shares of all steps, in (0, 1)")),
    ("optim.gamma", Range(lambda v: 0 < v <= 100, "above 0, at most 100")),
    ("optim.clip", at_least(0, " (0 is none)")),
    ("optim.groups", pairs(lambda by: by >= 0, 'pairs like ("fc", 10.0), of a number of at least 0')),
    ("optim.groups", _OF_PATTERNS),
    ("optim.layer_decay", Range(lambda v: 0 < v <= 1, "in (0, 1]")),
    ("optim.unfreeze_steps", pairs(lambda v: type(v) is int and v >= 0, f'pairs like ("layer1", 5000){_FOR_GOOD}')),
    ("optim.unfreeze_steps", _OF_PATTERNS),
    ("optim.unfreeze_epochs", pairs(lambda v: v >= 0, f'pairs like ("layer1", 5.0), not negative{_FOR_GOOD}')),
    ("optim.unfreeze_epochs", _OF_PATTERNS),
    ("optim.unfreeze_share",
     pairs(RATE.test, f'pairs like ("layer1", 0.5), of a share of all steps, in [0, 1){_FOR_GOOD}')),
    ("optim.unfreeze_share", _OF_PATTERNS),
    ("optim.no_decay", _PATTERNS),
    ("evals.*.classes", one_of("all", "subset")),
    ("evals.*.every_epochs", at_least(0)),
    ("evals.*.every_steps", at_least(0)),
    ("checkpoint.every_epochs", at_least(0)),
    ("checkpoint.every_steps", at_least(0)),
    ("checkpoint.every_minutes", at_least(0)),
    ("checkpoint.keep", at_least(1)),
    ("stop.patience", at_least(0, " (0 is never)")),
    ("log.every_steps", at_least(1)),
    ("log.wandb", Range(lambda v: not re.search(WANDB_HAS_NO, v), r"a project's name, without / \ # ? % :")),
    ("mesh.data", _AXIS),
    ("mesh.fsdp", _AXIS),
    ("mesh.rules", pairs(lambda d: isinstance(d, int) and d >= -1, 'pairs like ("fc/kernel", 0), or -1 to split none')),
    ("mesh.rules", _OF_PATTERNS),
)  # fmt: skip


def check(config: ConfigDict) -> None:
    """Raises UserError for an unknown key, a wrong type or an impossible value. Reads no data, imports no jax."""
    refuse_old(config)
    _check_keys(config, default(), "")
    c = config
    for name, entry in c.evals.items():
        if not is_name(name):
            raise UserError(
                f"evals.{name}: its files are named by it: take letters, digits, _, - and ., and no . first"
            )
        for key, like in EVAL.items():
            if not fits(entry.get(key, like), like):
                raise UserError(f"evals.{name}.{key} is {entry[key]!r}: expected {type(like).__name__}, like {like!r}")
    check_values(c)
    _check_together(c)


def check_values(config: ConfigDict) -> None:
    """Raises UserError for a value that CHECKS excludes, or a number that is not finite. The config may be a part."""
    finite(as_dict(config), "")
    for key, range_ in CHECKS:
        for name, value in _values(config, key):
            range_.check(name, value)


def _values(node: ConfigDict, key: str) -> list[tuple[str, Any]]:
    """(key, value) of what a key of CHECKS stands for and the config has."""
    found: list[tuple[str, Any]] = [("", node)]
    for part in key.split("."):
        found = [(f"{name}.{k}".lstrip("."), inner[k]) for name, inner in found for k in inner if part in ("*", k)]
    return found


def _check_together(c: ConfigDict) -> None:
    """What no key says alone."""
    if c.batch_size % c.accumulate:
        raise UserError(f"batch_size is {c.batch_size}: it must be divisible by accumulate={c.accumulate}")
    if bool(c.epochs) == bool(c.steps):
        raise UserError(f"give the length of the run as epochs or as steps, one of them: got {c.epochs=}, {c.steps=}")
    check_forms(c)
    order = [name for name, _ in c.wrap]
    if len(set(order)) < len(order):
        raise UserError(f"wrap names {next(n for n in order if order.count(n) > 1)} twice: name it once")
    if "ema" in order and "adversarial" in order[order.index("ema") :]:
        raise UserError(
            "wrap: put adversarial before ema: an attack must see the weights that learn, not their average"
        )
    if "l2_sp" in order and not c.init:
        raise UserError("wrap.l2_sp draws the weights to those that config.init loads, and init is empty: set it")
    if c.checkpoint.best:
        one_of(*c.evals).check("the eval in checkpoint.best", c.checkpoint.best.partition("/")[0])
    elif len(c.evals) > 1:
        lines = " or ".join(f'config.checkpoint.best = "{name}"' for name in sorted(c.evals))
        raise UserError(
            f"checkpoint.best is empty, and there are {len(c.evals)} evaluations: say which one decides what the best "
            f'checkpoint is, by its first metric or as "NAME/METRIC": {lines}'
        )
    if c.stop.evaluation:
        one_of(*c.evals).check("stop.evaluation", c.stop.evaluation)
    if c.stop.patience and not c.evals:
        raise UserError("stop.patience counts evaluations, and evals is empty: add one, or set stop.patience = 0")
    if (c.mesh.data, c.mesh.fsdp) == (-1, -1):
        raise UserError(f"mesh is {dict(c.mesh)!r}: it must be with at most one -1")


def _check_keys(node: ConfigDict, like: ConfigDict, prefix: str) -> None:
    for key, value in node.items():
        name = prefix + key
        if key not in like:
            if prefix.rstrip(".") not in OPEN:
                raise unknown(name, like)
        elif isinstance(like[key], ConfigDict):
            if not isinstance(value, ConfigDict):
                raise UserError(f"{name} is {value!r}: expected a group of keys, dict(...)")
            _check_keys(value, like[key], name + ".")
        elif not fits(value, like[key]) and not fits(value, OTHERWISE.get(name, like[key])):
            raise UserError(f"{name} is {value!r}: expected {type(like[key]).__name__}, like {like[key]!r}")
    for key, value in node.get("evals", {}).items() if not prefix else ():
        if not isinstance(value, ConfigDict):
            raise UserError(f"evals.{key} is {value!r}: expected dict(...)")
    for key in like:
        if key not in node:
            raise UserError(
                f'missing key "{prefix}{key}": start from jaxvision.config.default() and change values in place'
            )


def unknown(key: str, node: Any) -> UserError:
    prefix = key.rpartition(".")[0]
    names = [f"{prefix}.{k}" if prefix else k for k in node] if isinstance(node, ConfigDict) else []
    return UserError(f'unknown key "{key}": {nearest(key, names)}'.replace("'", '"'))


def fits(value: Any, like: Any) -> bool:
    if isinstance(like, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(like, bool)
    if isinstance(like, float):
        return isinstance(value, int | float)
    return isinstance(value, type(like))
