"""From a config to the things it names: contract, task, optimiser, metrics."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import jaxvision.metrics
import jaxvision.models
import jaxvision.tasks
from jaxvision import config as config_lib
from jaxvision import optim, sharding
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
        _check_bank(name, entry)


def _check_bank(name: str, entry: Config) -> None:
    metric = _metric_factory(name, entry)(classes=2)
    if metric.bank and not entry.get("bank"):
        raise UserError(
            f"evals.{name}: {entry.metric} compares with labelled images: name them, "
            f'as evals.{name}.bank = "{entry.data.replace("test", "train")}"'
        )
    if entry.get("bank") and not metric.bank:
        raise UserError(f"evals.{name}.bank is {entry.bank!r}, and its metric compares with no other images: remove it")


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


def model(config: Config, classes: int) -> Any:
    """The flax module that the config names."""
    dtype = jnp.dtype("float32" if config.dtype == "auto" else config.dtype)
    return _factories(config)[0](classes=classes, dtype=dtype)


def task(config: Config, classes: int, total_steps: int = 0, *, teaching: Task | None = None) -> Task:
    """Model in task in wrappers, as the config names them.

    `total_steps`: of a training, else 0. `teaching`: the trained task that a student learns from.
    """
    _, make_task, wrappers = _factories(config)
    more = () if teaching is None else (teaching,)
    network = model(config, classes)
    built = make_task(network, contract(config), *more, classes=classes, total_steps=total_steps)
    for wrap in wrappers:
        built = wrap(built, classes=classes)
    return built


def optimiser(config: Config, task_: Task, params: PyTree, steps: int) -> tuple[Any, Callable, str]:
    """(optimiser, step -> lr, what learns how as a table or "") for the task's params, which may be abstract."""
    known: dict[str, Any] = {"frozen": task_.frozen}
    if config.optim.layer_decay != 1:
        known["modules"] = modules(config)
    tx, rate = optim.make(config.optim, steps, params, **known)
    return tx, rate, optim.table(config.optim, params, **known)


def modules(config: Config) -> tuple[str, ...]:
    """Top-level names of the network's parameters in the order in which it creates them."""
    net, size, names = model(config, 1), config.data.size, []

    def init(key: jax.Array, image: jax.Array) -> PyTree:
        variables = net.init({"params": key, "dropout": key}, image, train=False)
        names.extend(variables["params"])  # here, since what eval_shape returns is sorted
        return variables

    jax.eval_shape(init, jax.random.key(0), jax.ShapeDtypeStruct((1, size, size, config.data.channels), jnp.float32))
    return tuple(names)


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


def example(config: Config, rows: int = 2, *, train: bool = False) -> Batch:
    """An abstract batch, for shapes: of evaluation, or as the training's transforms make it."""
    shapes = transforms.shapes(config.data.transforms if train else (), contract(config))
    return {
        **{name: jax.ShapeDtypeStruct((rows, *shape), jnp.uint8) for name, shape in shapes.items()},
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


def with_shardings(abstract: PyTree, mesh: Mesh) -> PyTree:
    """The same abstract leaves, each with the sharding it shall have on the mesh."""
    return jax.tree.map(_with_sharding, abstract, sharding.state_shardings(mesh, abstract))


def abstract_batch(config: Config, mesh: Mesh, rows: int, *, train: bool = False) -> Batch:
    """An abstract batch of `rows` rows, split over the mesh."""
    split = sharding.batch_sharding(mesh)
    return {name: _with_sharding(leaf, split) for name, leaf in example(config, rows, train=train).items()}


def _with_sharding(leaf: Any, where: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
