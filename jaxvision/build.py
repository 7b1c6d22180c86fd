"""From a config to the things it names: contract, task, optimiser, metrics; and from a workdir back to them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

import jaxvision.metrics
import jaxvision.models
import jaxvision.tasks
from jaxvision import checkpoint, optim, sharding, weights
from jaxvision import config as config_lib
from jaxvision.config import Config
from jaxvision.data import transforms
from jaxvision.data.contract import InputContract
from jaxvision.data.pipeline import Skips
from jaxvision.errors import UserError
from jaxvision.task import Batch, Metric, PyTree, Task


def check(config: Config) -> None:
    """Every name and argument in the config, before any data is read or compiled. Raises UserError."""
    config_lib.check(config)
    _factories(config)
    optim.check(config.optim)
    transforms.build(config.data.transforms, contract(config))
    for name, entry in config.evals.items():
        _metric_factory(name, entry)


def resolve(config: Config) -> Config:
    """A copy in which nothing depends on the machine any more: what config.json holds."""
    config = Config(config.to_dict())
    if config.dtype == "auto":
        config.dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if not config.data.resize:
        config.data.resize = math.floor(config.data.size / 0.875)
    return config


def contract(config: Config) -> InputContract:
    data = config.data
    return InputContract(
        size=data.size,
        resize=data.resize or math.floor(data.size / 0.875),
        filter=data.filter,
        channels=data.channels,
        mean=data.mean,
        std=data.std,
    )


def _factories(config: Config) -> tuple[Callable, Callable, list[Callable]]:
    return (
        config_lib.factory(jaxvision.models, config.model, "model"),
        config_lib.factory(jaxvision.tasks, config.task, "task", jaxvision.tasks.TASKS),
        [
            config_lib.factory(
                jaxvision.tasks, {"name": name, **arguments}, f"wrap.{name}", jaxvision.tasks.WRAPPERS, ()
            )
            for name, arguments in config.wrap.items()
        ],
    )


def task(config: Config, classes: int) -> Task:
    """Model in task in wrappers, as the config names them."""
    make_model, make_task, wrappers = _factories(config)
    dtype = jnp.dtype("float32" if config.dtype == "auto" else config.dtype)
    built = make_task(make_model(classes=classes, dtype=dtype), contract(config), classes=classes)
    for wrap in wrappers:
        built = wrap(built, classes=classes)
    return built


def metrics(config: Config, classes: int) -> dict[str, Metric]:
    """Of each eval, by its name."""
    return {name: _metric_factory(name, entry)(classes=classes) for name, entry in config.evals.items()}


def _metric_factory(name: str, entry: Config) -> Callable:
    spec = {k: v for k, v in entry.items() if k not in config_lib.EVAL}
    spec["name"] = entry.get("metric", config_lib.EVAL["metric"])
    return config_lib.factory(jaxvision.metrics, spec, f"evals.{name}", also=tuple(config_lib.EVAL))


def reading(config: Config) -> dict[str, int]:
    """How the data is read, on this machine."""
    data = config.data
    return {"threads": data.threads or min(16, len(os.sched_getaffinity(0))), "processes": data.processes}


def skips(config: Config, seen: dict[int, str] | None = None) -> Skips | None:
    """A new count of unreadable images, going on from those `seen`; None where the first one ends the run."""
    if config.data.on_error == "stop":
        return None
    return Skips(config.data.skip_at_most, seen)


def example(config: Config, rows: int = 2) -> Batch:
    """An abstract batch, for shapes."""
    size = config.data.size
    return {
        "image": jax.ShapeDtypeStruct((rows, size, size, config.data.channels), jnp.uint8),
        "label": jax.ShapeDtypeStruct((rows,), jnp.int32),
        "index": jax.ShapeDtypeStruct((rows,), jnp.int32),
        "mask": jax.ShapeDtypeStruct((rows,), jnp.bool_),
    }


def zeros(config: Config) -> Batch:
    """The same, concrete: what `Task.init` is called with."""
    return {k: np.zeros(v.shape, v.dtype) for k, v in example(config).items()}


def abstract_init(task_: Task, config: Config) -> tuple[PyTree, PyTree]:
    """Abstract (params, extra): shapes without computing anything. UserError where the model refuses its options."""
    try:
        return jax.eval_shape(lambda k, b: task_.init(k, b, None), jax.random.key(0), example(config))
    except (TypeError, ValueError) as error:
        options = ", ".join(f"{k}={v!r}" for k, v in config.model.items())
        raise UserError(f"model {options} at {config.data.size} px: {error}") from error


def check_classes(uri: str, theirs: tuple[str, ...], mine: tuple[str, ...]) -> None:
    """Raises UserError unless a source to evaluate on has the classes of the training, in their order."""
    if tuple(theirs) != tuple(mine):
        detail = f"only there: {sorted(set(theirs) - set(mine))[:5]}; "
        detail += f"only in training: {sorted(set(mine) - set(theirs))[:5]}"
        if set(theirs) == set(mine):
            detail = "the same names in another order"
        raise UserError(f"the classes of {uri} are not those of the training data: {detail}")


class Source(NamedTuple):
    """Weights to start from: FROM, resolved."""

    checkpoint: epath.Path
    workdir: epath.Path | None
    about: dict[str, Any]


def find(source: str, which: str = "") -> Source:
    """FROM, a workdir or a checkpoint folder in one, to a checkpoint that was checked. Raises UserError."""
    path = epath.Path(source).expanduser()
    if (path / "about.json").exists():
        if which:
            raise UserError(
                f"{source!r} is one checkpoint already: leave out --checkpoint {which}, or name its workdir"
            )
        reason = checkpoint.flaw(path)
        if reason:
            raise UserError(f"checkpoint {path} is broken: {reason}")
        workdir = path.parent.parent
        return Source(path, workdir if (workdir / "config.json").exists() else None, checkpoint.about(path))
    if not path.exists():
        raise UserError(f"{source!r} does not exist: name a workdir that train printed, or a checkpoint folder in it")
    if not (path / "checkpoints").exists():
        raise UserError(
            f"no checkpoints in {path}: it is no workdir of jaxvision.train, or nothing was saved there yet"
        )
    chosen = checkpoint.choose(path / "checkpoints", which or "last")
    return Source(chosen, path, checkpoint.about(chosen))


def load_plan(source: Source, task_: Task, config: Config, classes: tuple[str, ...]) -> weights.Plan:
    """How the weights of `source` fill this config's task; see `weights.plan`. Raises UserError."""
    mine, theirs = contract(config), InputContract.from_dict(source.about["contract"])
    for field in ("mean", "std", "channels"):
        if getattr(mine, field) != getattr(theirs, field):
            raise UserError(
                f"init: the weights in {source.checkpoint} expect pixels with {field} {getattr(theirs, field)}, this "
                f"config gives {getattr(mine, field)}: set config.data.{field} = {getattr(theirs, field)}"
            )
    abstract = abstract_init(task_, config)
    fresh = {"params": abstract[0], "extra": {"model": abstract[1]["model"]}}
    other = abstract_init(task(config, len(classes) + 1), config)
    head = weights.head_names(fresh, {"params": other[0], "extra": {"model": other[1]["model"]}})
    loaded = weights.averaged(checkpoint.read(source.checkpoint, ("params", "extra")))
    return weights.plan(fresh, loaded, head, tuple(source.about["classes"]) == tuple(classes))


class Trained(NamedTuple):
    """A finished or running training, loaded for evaluation."""

    config: Config
    contract: InputContract
    classes: tuple[str, ...]
    task: Task
    params: PyTree
    extra: PyTree
    step: int
    mesh: Mesh
    source: Source


def load(source: str, which: str = "") -> Trained:
    """What evaluate and predict start from. Raises UserError."""
    found = find(source, which)
    if found.workdir is None:
        raise UserError(f"{source!r} lies in no workdir with a config.json, which says what network this is")
    config = config_lib.from_json((found.workdir / "config.json").read_text())
    classes = tuple(found.about["classes"])
    built = task(config, len(classes))
    mesh = sharding.make_mesh()
    params, extra = abstract_init(built, config)
    abstract = with_shardings({"params": params, "extra": extra}, mesh)
    tree = checkpoint.restore(found.checkpoint, abstract)
    return Trained(
        config,
        InputContract.from_dict(found.about["contract"]),
        classes,
        built,
        tree["params"],
        tree["extra"],
        int(found.about["step"]),
        mesh,
        found,
    )


def with_shardings(abstract: PyTree, mesh: Mesh) -> PyTree:
    """The same abstract leaves, each with the sharding it shall have on the mesh."""
    return jax.tree.map(_with_sharding, abstract, sharding.state_shardings(mesh, abstract))


def abstract_batch(config: Config, mesh: Mesh, rows: int) -> Batch:
    """An abstract batch of `rows` rows, split over the mesh."""
    split = sharding.batch_sharding(mesh)
    return {name: _with_sharding(leaf, split) for name, leaf in example(config, rows).items()}


def _with_sharding(leaf: Any, where: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
