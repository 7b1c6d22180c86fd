"""The config: one tree, every key with its default here; a config file changes what it must.

    config = jaxvision.config.default()
    config.data.update(train="digits:train", size=16)
    config.batch_size = 128

`load` runs such a file, applies `--config.KEY=VALUE` from the command line and checks the whole: an unknown
key, a wrong type or an impossible value fails before any data is read, with the nearest valid name.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import pathlib
import re
import runpy
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from jaxvision.config.ranges import (
    COLOUR,
    LEVELS,
    RATE,
    SHARE,
    SIDES,
    Range,
    annotation_of,
    at_least,
    between,
    check_arguments,
    each,
    finite,
    is_name,
    is_number,
    is_pattern,
    is_real,
    one_of,
    pairs,
)
from jaxvision.errors import Damaged, UserError, nearest
from jaxvision.runtime import paths

# Parts that take keys beyond their defaults: names the user chooses, or arguments of what `name` names.
OPEN = ("model", "task", "wrap", "evals", "optim")
# Arguments of factories that the program gives and no config.
PROVIDED = ("classes", "dtype", "labels", "names", "total_steps", "decays")
# What may differ when a workdir is run again; anything else would make it another run.
MAY_CHANGE = (
    "epochs",
    "steps",
    "evals",
    "log",
    "checkpoint",
    "stop",
    "mesh",
    "data.threads",
    "data.processes",
    "data.prefetch",
    "data.on_error",
    "data.skip_at_most",
    "data.max_pixels",
)
WANDB_HAS_NO = r"[/\\#?%:]"  # in the names of projects and runs
EVAL = dict(metric="topk", data="", bank="", classes="all", every_epochs=1.0, every_steps=0)
OTHERWISE = {"data.size": (224, 224)}  # values of another type that a key may have
Take = Callable[[str, Any], Any]  # (name, number) -> what stands for it
ABSENT = "(absent)"  # in place of the value that a config lacks


class Config(dict[str, Any]):
    """A dict whose keys are attributes too, and whose dicts are Configs; keeps the order of its keys.

    (ml_collections.ConfigDict sorts them, and the order of `wrap` has a meaning.)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.update(*args, **kwargs)

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, Config(value) if isinstance(value, dict) and not isinstance(value, Config) else value)

    def update(self, *args: Any, **kwargs: Any) -> None:
        for key, value in dict(*args, **kwargs).items():
            self[key] = value

    def __getattr__(self, key: str) -> Any:
        if key in self:
            return self[key]
        raise AttributeError(f"no key {key!r} in the config: {nearest(key, list(self))}")

    def __setattr__(self, key: str, value: Any) -> None:
        self[key] = value

    def to_dict(self) -> dict[str, Any]:
        """A deep copy of plain dicts."""
        return {k: v.to_dict() if isinstance(v, Config) else v for k, v in self.items()}


def eval_options(entry: Config) -> dict[str, Any]:
    """An entry of `evals` with its defaults: once an epoch, unless it counts steps."""
    defaults = {**EVAL, "every_epochs": 0.0} if entry.get("every_steps") else EVAL
    return {**defaults, **entry}


def measured(options: Mapping[str, Any]) -> dict[str, Any]:
    """What the options of an evaluation say about its figures: all but when it comes and which data it reads.

    Two evaluations of the same data are the same where this is equal.
    """
    return {k: v for k, v in sorted(options.items()) if k not in ("data", "every_epochs", "every_steps")}


def default() -> Config:
    """A new tree with all defaults."""
    c = Config()
    c.seed = 0  # of the weights, the order, the augmentation and everything random in the step
    c.batch_size = 128  # global: over all devices and hosts
    c.epochs = 0.0  # length of the run in passes over the training data, or
    c.steps = 0  # in optimiser steps: give one of the two
    c.accumulate = 1  # micro-batches a step
    c.dtype = "auto"  # of the computation: "float32", "bfloat16"; auto is bfloat16 on TPU and GPU, else float32
    c.deterministic = False  # GPU: bit-equal runs, at a price (docs/determinism.md); CPU and TPU always are
    c.init = ""  # start from these weights: a workdir, a checkpoint in one, or published ones (docs/models.md)
    c.init_policy = Config(
        dict(
            fresh=(),  # patterns of leaves that start afresh although init has them, or since it lacks them
            ignore=(),  # patterns of what init has and this network has no use for
            contract=(),  # of mean, std, filter, range, background: what may differ from the weights' own
        )
    )
    c.data = Config(
        dict(
            train="",  # source URI, such as digits:train, folder:/pets/train, fake:1000x224; all kinds: docs/data.md
            size=224,  # side of the network's input in pixels, or (height, width)
            fit="crop",  # evaluation: how images come to that size; "stretch", "pad", "shortest": docs/data.md
            resize=0,  # evaluation: shorter side before the centre crop; 0 means size / 0.875, as torchvision
            longest=0,  # evaluation, fit="shortest": at most so much for the longer side; 0: as the size allows
            filter="bilinear",  # evaluation: of that resizing; or "bicubic", both antialiased; or "linear", OpenCV's
            channels=3,  # or 1
            mean=(0.485, 0.456, 0.406),  # of pixels in 0..1, one a channel
            std=(0.229, 0.224, 0.225),
            range=(),  # grey files of more than 8 bits: levels that become black and white, (0, 4095); (): all 16 bits
            background=(),  # (red, green, blue) that transparent pixels are put on; (): alpha is dropped
            transforms=(),  # training: (("random_resized_crop", {}), ("flip", {})), see jaxvision.data.transforms
            sampling="uniform",  # each sample once an epoch; "balanced": each class as often; "weighted"
            weights=(),  # weighted: (("rare class", 5.0), ...), classes not named count 1
            slots=0,  # objects of a training sample, at most; 0: as many as any sample has
            min_visible=0.1,  # share of its box that an object must keep, or it is dropped from the training sample
            repeats=1,  # times that a sample comes in a row, each with its own augmentation
            on_error="stop",  # at an unreadable image; or "skip": another comes instead, all are listed
            skip_at_most=0.01,  # skip: share of the samples above which the run stops all the same
            max_pixels=89_478_485,  # an image of more is unreadable: 7 bytes a pixel are taken while it is decoded
            threads=0,  # readers, each making whole batches; 0: one a core, at most 16
            processes=0,  # so many processes instead of threads (docs/data.md says when)
            prefetch=4,  # batches kept ready
        )
    )
    c.model = Config(dict(name="resnet50"))  # and its arguments; the class count comes from the data
    c.task = Config(dict(name="classification"))  # binary, ordinal, multilabel, regression; and its arguments
    c.wrap = Config()  # wrapper name -> its arguments, applied in this order: dict(ema=dict(decay=0.999))
    c.optim = Config(
        dict(
            name="sgd",  # sgd, adamw, lamb, lars; and its arguments: momentum, nesterov, b1, b2, eps
            lr=0.1,  # peak, for this batch size: nothing is scaled behind your back
            weight_decay=0.0,  # not for biases and norms (leaves of fewer than two dimensions)
            no_decay=(),  # patterns of other leaves without it, as ("class_token", "pos_embedding") in DeiT and timm
            weight_decay_final=-1.0,  # a cosine from weight_decay to this over the run, as DINO; -1: constant
            schedule="cosine",  # constant, cosine, linear, step
            warmup=0.0,  # share of all steps, linear from 0
            final=0.0,  # cosine and linear end at this share of lr
            milestones=(),  # step: shares of all steps after which lr is multiplied
            gamma=0.1,  # step: by this
            clip=0.0,  # largest global norm of the gradient; 0 is none
            groups=(),  # (pattern, multiplier of lr) pairs; the first that matches a leaf's name counts; 0 freezes
            layer_decay=1.0,  # fine-tuning (BEiT, MAE): lr times this for each block below the head; 1 is none
            unfreeze=(),  # (pattern, share of all steps) pairs: frozen until then; the first that matches counts
        )
    )
    # name -> dict(metric="topk", data=URI, every_epochs=1), and the metric's arguments; topk, per_class, auroc, binary
    # and ordinal measure classes, multilabel tags, regression values. Without data: a tenth of data.train is held out.
    # classes="subset": of data with some of the classes alone, the answer is one of those (ImageNet-A, -R)
    c.evals = Config()
    c.checkpoint = Config(
        dict(
            every_epochs=1.0,  # 0 is never; the end and an interruption always save
            every_steps=0,
            every_minutes=0.0,  # by the clock of process 0, within a step
            keep=2,  # the last so many, and the best
            best="",  # "EVAL/METRIC" that decides the best; default: the first metric of the first eval
        )
    )
    c.stop = Config(
        dict(
            patience=0,  # end after so many evaluations in a row without a better value; 0 is never
            evaluation="",  # whose; default: that of checkpoint.best
            metric="",  # which; default: that of checkpoint.best
        )
    )
    c.log = Config(dict(every_steps=20, tensorboard=True, wandb=""))  # wandb: a project's name
    c.mesh = Config(
        dict(
            data=-1,  # devices along each axis; -1: all that are left
            fsdp=1,
            rules=(),  # (pattern, dimension to split over fsdp or -1 for none) pairs, the first that matches counts
        )
    )
    return c


def load(path: str, overrides: Mapping[str, str] | None = None) -> Config:
    """Runs a config file, applies {"a.b": "text"} overrides, checks all. Raises UserError."""
    file = pathlib.Path(path)
    if not file.is_file():
        there = sorted(str(f) for f in file.parent.glob("*.py")) if file.parent.is_dir() else []
        raise UserError(f"no config file {path!r}: {nearest(path, there)}")
    try:
        config = runpy.run_path(str(file)).get("config")
    except UserError:
        raise
    except Exception as error:
        line = next(
            (f.lineno for f in reversed(traceback.extract_tb(error.__traceback__)) if f.filename == str(file)),
            "?",
        )
        raise UserError(f"{path}, line {line}: {type(error).__name__}: {error}") from error
    if not isinstance(config, Config):
        raise UserError(f"{path} must set `config`, starting from jaxvision.config.default()")
    config = Config(config.to_dict())  # groups that the file set as plain dicts become Configs
    for key, text in (overrides or {}).items():
        override(config, key, text)
    check(config)
    if "train" in config.evals:  # not in `check`: workdirs of older versions may have it
        raise UserError("evals.train: the training's own records have that name: choose another")
    return config


def override(config: Config, key: str, text: str) -> None:
    """Sets config.KEY from the command line's text, read as the type that the key has. Raises UserError."""
    *parents, last = key.split(".")
    node: Any = config
    for depth, part in enumerate(parents):
        if not isinstance(node, Config) or part not in node:
            # wrap.ema.decay, where the file has no wrap.ema yet, is a new entry; elsewhere it is a misspelling
            if isinstance(node, Config) and parents[0] in ("wrap", "evals") and depth == 1:
                node[part] = Config()
            else:
                raise _unknown(".".join(parents[: depth + 1]), node)
        node = node[part]
    if not isinstance(node, Config) or (last not in node and not (parents and parents[0] in OPEN)):
        raise _unknown(key, node)
    if last in node and isinstance(node[last], Config):
        raise UserError(f"{key!r} is a group of keys: set one of {', '.join(f'{key}.{k}' for k in node[last])}")
    value = _read(text)
    like = EVAL.get(last) if len(parents) == 2 and parents[0] == "evals" else None
    like = node.get(last) if like is None else like
    if isinstance(like, str):
        value = text
    if like is not None and not _fits(value, like) and not _fits(value, OTHERWISE.get(key, like)):
        raise UserError(f"--config.{key}={text}: expected {type(like).__name__}, like {like!r}")
    node[last] = value


def _read(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return _tuples(value)


def _unknown(key: str, node: Any) -> UserError:
    prefix = key.rpartition(".")[0]
    names = [f"{prefix}.{k}" if prefix else k for k in node] if isinstance(node, Config) else []
    return UserError(f'unknown key "{key}": {nearest(key, names)}'.replace("'", '"'))


def _fits(value: Any, like: Any) -> bool:
    if isinstance(like, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(like, bool)
    if isinstance(like, float):
        return isinstance(value, int | float)
    return isinstance(value, type(like))


def _is_transform(entry: Any) -> bool:
    return isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str) and isinstance(entry[1], dict)


_PATTERNS = each(is_pattern, 'patterns: regular expressions, such as "^layer4"')
_OF_PATTERNS = each(lambda pair: is_pattern(pair[0]), "a pattern first, and that is no regular expression")
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
    ("data.transforms", each(_is_transform, 'a pair like ("shift", dict(share=0.1))')),
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
    ("optim.lr", between(0, 10_000)),
    ("optim.weight_decay", between(0, 10_000)),
    ("optim.weight_decay_final",
     Range(lambda v: 0 <= v <= 10_000 or v == -1, "at least 0, at most 10,000, or -1 for a constant weight_decay")),
    ("optim.schedule", one_of("constant", "cosine", "linear", "step")),
    ("optim.warmup", Range(RATE.test, "a share of all steps, in [0, 1)")),
    ("optim.final", Range(SHARE.test, "a share of lr, in [0, 1]")),
    ("optim.milestones", each(lambda v: is_number(v) and 0 < v < 1, "numbers: shares of all steps, in (0, 1)")),
    ("optim.gamma", Range(lambda v: 0 < v <= 100, "above 0, at most 100")),
    ("optim.clip", at_least(0, " (0 is none)")),
    ("optim.groups", pairs(lambda by: by >= 0, 'pairs like ("fc", 10.0), of a number of at least 0')),
    ("optim.groups", _OF_PATTERNS),
    ("optim.layer_decay", Range(lambda v: 0 < v <= 1, "in (0, 1]")),
    ("optim.unfreeze", pairs(RATE.test, 'pairs like ("layer1", 0.5), of a share of all steps, in [0, 1); to freeze '
                             'for good, take optim.groups = (("layer1", 0.0),)')),
    ("optim.unfreeze", _OF_PATTERNS),
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


def check(config: Config) -> None:
    """Raises UserError for an unknown key, a wrong type or an impossible value. Reads no data, imports no jax."""
    _check_keys(config, default(), "")
    c = config
    for name, entry in c.evals.items():
        if not is_name(name):
            raise UserError(
                f"evals.{name}: its files are named by it: take letters, digits, _, - and ., and no . first"
            )
        for key, like in EVAL.items():
            if not _fits(entry.get(key, like), like):
                raise UserError(f"evals.{name}.{key} is {entry[key]!r}: expected {type(like).__name__}, like {like!r}")
    check_values(c)
    _check_together(c)


def check_values(config: Config) -> None:
    """Raises UserError for a value that CHECKS excludes, or a number that is not finite. The config may be a part."""
    finite(config, "")
    for key, range_ in CHECKS:
        for name, value in _values(config, key):
            range_.check(name, value)


def _values(node: Config, key: str) -> list[tuple[str, Any]]:
    """(key, value) of what a key of CHECKS stands for and the config has."""
    found: list[tuple[str, Any]] = [("", node)]
    for part in key.split("."):
        found = [(f"{name}.{k}".lstrip("."), inner[k]) for name, inner in found for k in inner if part in ("*", k)]
    return found


def _check_together(c: Config) -> None:
    """What no key says alone."""
    if c.batch_size % c.accumulate:
        raise UserError(f"batch_size is {c.batch_size}: it must be divisible by accumulate={c.accumulate}")
    if bool(c.epochs) == bool(c.steps):
        raise UserError(f"give the length of the run as epochs or as steps, one of them: got {c.epochs=}, {c.steps=}")
    order = list(c.wrap)
    if "ema" in order and "adversarial" in order[order.index("ema") :]:
        raise UserError(
            "wrap: put adversarial before ema: an attack must see the weights that learn, not their average"
        )
    if "l2_sp" in order and not c.init:
        raise UserError("wrap.l2_sp draws the weights to those that config.init loads, and init is empty: set it")
    if c.checkpoint.best:
        one_of(*c.evals).check("the eval in checkpoint.best", c.checkpoint.best.partition("/")[0])
    if c.stop.evaluation:
        one_of(*c.evals).check("stop.evaluation", c.stop.evaluation)
    if c.stop.patience and not c.evals:
        raise UserError("stop.patience counts evaluations, and evals is empty: add one, or set stop.patience = 0")
    if (c.mesh.data, c.mesh.fsdp) == (-1, -1):
        raise UserError(f"mesh is {dict(c.mesh)!r}: it must be with at most one -1")


def _check_keys(node: Config, like: Config, prefix: str) -> None:
    for key, value in node.items():
        name = prefix + key
        if key not in like:
            if prefix.rstrip(".") not in OPEN:
                raise _unknown(name, like)
        elif isinstance(like[key], Config):
            if not isinstance(value, Config):
                raise UserError(f"{name} is {value!r}: expected a group of keys, dict(...)")
            _check_keys(value, like[key], name + ".")
        elif not _fits(value, like[key]) and not _fits(value, OTHERWISE.get(name, like[key])):
            raise UserError(f"{name} is {value!r}: expected {type(like[key]).__name__}, like {like[key]!r}")
    for group in ("wrap", "evals"):
        for key, value in node.get(group, {}).items() if not prefix else ():
            if not isinstance(value, Config):
                raise UserError(f"{group}.{key} is {value!r}: expected dict(...)")
    for key in like:
        if key not in node:
            raise UserError(
                f'missing key "{prefix}{key}": start from jaxvision.config.default() and change values in place'
            )


def factory(
    namespace: Any,
    spec: Mapping[str, Any],
    where: str,
    names: tuple[str, ...] = (),
    also: tuple[str, ...] = ("name",),
    take: Take | None = None,
) -> Callable[..., Any]:
    """What spec["name"] names in `namespace`, its other keys checked against the signature's annotations and bound.

    Call the result with what the program provides (PROVIDED, `dtype`, ...): arguments that the factory does
    not take are left out, and a ValueError of the factory becomes a UserError that names `where`. `also`: keys
    that the caller reads itself, for the error message. `take`: is asked, once they are checked, what stands for the
    arguments that are real numbers.
    """
    arguments = {k: v.to_dict() if isinstance(v, Config) else v for k, v in spec.items()}
    name = str(arguments.pop("name", None))
    valid = tuple(names or namespace.__all__)
    if name not in valid:
        raise UserError(f"{where}: unknown name {name!r}: {nearest(name, valid)}")
    make = getattr(namespace, name)
    parameters = inspect.signature(make).parameters.values()
    # a function's positional parameters are the program's to give; a flax module has two fields of flax's own
    takes = [p.name for p in parameters if not inspect.isfunction(make) or p.kind is p.KEYWORD_ONLY]
    takes = [p for p in takes if p not in ("parent", "name")]
    for key in arguments:
        if key not in takes or key in PROVIDED:
            keys = [f"{where}.{k}" for k in (*also, *takes) if k not in PROVIDED]
            raise UserError(
                f'unknown key "{where}.{key}" for {name}: {nearest(f"{where}.{key}", keys)}'.replace("'", '"')
            )
    check_arguments(make, arguments, f"{where}.")
    for key in arguments:
        if take is not None and is_real(annotation_of(make, key)):
            arguments[key] = take(f"{where}.{key}", arguments[key])

    def build(*args: Any, **provided: Any) -> Any:
        extra = {k: v for k, v in provided.items() if k in takes and k not in arguments}
        try:
            return make(*args, **extra, **arguments)
        except (TypeError, ValueError) as error:
            raise UserError(f"{where}: {error}") from error

    return build


def _tuples(value: Any) -> Any:
    """Lists, which JSON has, as the tuples that configs hold."""
    if isinstance(value, list | tuple):
        return tuple(_tuples(v) for v in value)
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return value


def to_json(config: Config) -> str:
    return json.dumps(config.to_dict(), indent=1)


def from_json(text: str) -> Config:
    """The inverse of `to_json`, checked. A key that is newer than the text has its default. Raises UserError."""
    config = Config(_tuples(json.loads(text)))
    for name, value in default().items():
        if name not in config:
            config[name] = value
        elif isinstance(config[name], Config) and isinstance(value, Config) and (name not in OPEN or name == "optim"):
            config[name] = {**value, **config[name]}
    check(config)
    return config


def read(path: epath.Path) -> Config:
    """The config that a run wrote. Raises FileNotFoundError, and Damaged where it is none."""
    content = paths.read_json(path)
    try:
        return from_json(json.dumps(content))
    except UserError as error:
        raise Damaged(f"{path} is damaged, or of another version ({error})") from error


# Keys that came when there were runs without them, which had these values.
LATER = (("data.slots", 0), ("data.min_visible", 0.1), ("data.fit", "crop"), ("data.longest", 0))


def run_of(config: Config) -> str:
    """Sixteen letters that stand for a run: for its config, without what may change in a run."""
    kept = {k: v for k, v in flat(config.to_dict()).items() if not _may_change(k) and (k, v) not in LATER}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def differences(old: Config, new: Config) -> list[str]:
    """Lines "key: old -> new" for `changes`."""
    return [f"{key}: {a!r} -> {b!r}" for key, (a, b) in changes(old, new).items()]


def changes(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Key to (old, new) of all that makes two configs two runs: what differs and is not in MAY_CHANGE."""
    a, b = flat(_tuples(old.to_dict())), flat(_tuples(new.to_dict()))
    pairs = {k: (a.get(k, ABSENT), b.get(k, ABSENT)) for k in sorted(a.keys() | b.keys())}
    return {k: (x, y) for k, (x, y) in pairs.items() if x != y and not _may_change(k)}


def _may_change(key: str) -> bool:
    return (key + ".").startswith(tuple(k + "." for k in MAY_CHANGE))


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"data.size": 224, ...} of groups in groups."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return found
