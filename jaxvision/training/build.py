"""From a config to what it names: model, task, optimiser, metrics, shapes of batches."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.dtypes import canonicalize_dtype as canonical
from jax.sharding import Mesh
from ml_collections import ConfigDict

import jaxvision.metrics
import jaxvision.models
import jaxvision.tasks
from jaxvision import config as config_lib
from jaxvision.config import Length, Take
from jaxvision.data import reader, transforms
from jaxvision.data.contract import default_resize
from jaxvision.data.sample import LABEL, Field, batch_spec, fields_for
from jaxvision.data.sources import Source, hold_out
from jaxvision.errors import UserError
from jaxvision.metrics.classification import over_classes
from jaxvision.runtime import sharding
from jaxvision.task import OUTCOMES, Batch, Metric, PyTree, Task
from jaxvision.training import optim, step
from jaxvision.training.hyper import Numbers, traced
from jaxvision.weights.plan import count


def resolve(config: ConfigDict) -> ConfigDict:
    """A copy in which nothing depends on the machine any more: what config.json holds."""
    config = config_lib.as_config(config)
    if config.dtype == "auto":
        config.dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if not config.data.resize:
        config.data.resize = default_resize(config.data.size, config.data.fit)
    _hold_out(config)
    return config


def without_data(config: ConfigDict) -> list[str]:
    """Names of the evaluations that name no data: `resolve` holds out a tenth of the training data for them."""
    return [name for name, entry in config.evals.items() if not entry.get("data")]


def _hold_out(config: ConfigDict) -> None:
    names, whole = without_data(config), config.data.train
    if not names:
        return
    try:
        config.data.train, held_out = hold_out(whole)
    except UserError as error:
        raise UserError(f"evals.{names[0]}.data is empty, and data.train {error}") from error
    for name in names:
        config.evals[name].data = held_out
    for entry in config.evals.values():  # what is held out must not be its own neighbour
        entry.update({"bank": config.data.train} if entry.get("bank") == whole else {})


def factories(config: ConfigDict, take: Take | None = None) -> tuple[Callable, Callable, list[Callable]]:
    """What makes the model, the task and each wrapper, arguments checked and bound. Raises UserError."""
    return (
        config_lib.factory(jaxvision.models, config.model, "model"),
        config_lib.factory(jaxvision.tasks, config.task, "task", jaxvision.tasks.TASKS, take=take),
        [
            config_lib.factory(
                jaxvision.tasks, {"name": name, **arguments}, f"wrap.{name}", jaxvision.tasks.WRAPPERS, (), take
            )
            for name, arguments in config.wrap
        ],
    )


def declared(config: ConfigDict) -> Any:
    """The factory of the config's task, with what it says of itself: see `task.declares`."""
    return getattr(jaxvision.tasks, config.task.name)


def names(config: ConfigDict, classes: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the classes or values that the task predicts; `classes`: those of the training data."""
    return declared(config).names or classes


def model(config: ConfigDict, classes: int) -> Any:
    """The flax module that the config names, with so many outputs."""
    dtype = jnp.dtype("float32" if config.dtype == "auto" else config.dtype)
    return factories(config)[0](classes=classes, dtype=dtype)


def task(
    config: ConfigDict,
    classes: int,
    labels: Callable[[], np.ndarray] | None = None,
    *,
    teaching: Task | None = None,
    total_steps: int = 0,
    steps_per_epoch: float = 0.0,
    take: Take | None = None,
) -> Task:
    """Model in task in wrappers, as the config names them.

    `labels` gives those of the training data, which some settings need and which may take long to read; without it
    such a task still predicts, and init makes the right shapes. `teaching`: the trained task that it learns from.
    `total_steps`, `steps_per_epoch`: of a training, else 0. `take`: see `config.factory`.
    """
    _, make_task, wrappers = factories(config, take)
    network = model(config, classes)
    more = () if teaching is None else (teaching,)
    length = {"total_steps": total_steps, "steps_per_epoch": steps_per_epoch}
    built = make_task(network, reader.contract(config), *more, classes=classes, labels=labels, **length)
    for wrap in wrappers:
        built = wrap(built, classes=classes)
    return built


class Parts(NamedTuple):
    """What a training steps with. parameters: how many there are; table: what learns how, "" where all does alike;
    make: the same task and optimiser with what `take` gives in the places of their numbers."""

    task: Task
    tx: optax.GradientTransformation
    table: str
    parameters: int
    make: Callable[[Take], tuple[Task, optax.GradientTransformation]]


def parts(
    config: ConfigDict, classes: int, labels: Callable[[], np.ndarray], *, teaching: Task | None, length: Length
) -> Parts:
    """Task and optimiser of a training of such a length on data of so many classes; arguments as of `task`."""
    plain = task(config, classes, labels, teaching=teaching, **length._asdict())
    params, _ = abstract_init(plain, config)
    known: dict[str, Any] = {"frozen": plain.frozen}
    if config.optim.layer_decay != 1:
        known["modules"] = modules(config)

    def make(take: Take) -> tuple[Task, optax.GradientTransformation]:
        numbers = {name: take(name, value) for name, value in length._asdict().items()}
        taken = task(config, classes, labels, teaching=teaching, **numbers, take=take)
        return taken, optim.make(config.optim, params=params, **numbers, take=take, **known)[0]

    tx, _ = optim.make(config.optim, params=params, **length._asdict(), **known)
    return Parts(plain, tx, optim.table(config.optim, params, **known), count(params), make)


def abstract_state(config: ConfigDict, parts: Parts, mesh: Mesh) -> step.TrainState:
    """A fresh state's shapes, and where each leaf lies on the mesh."""
    return step.abstract_state(parts.task, parts.tx, example(config), mesh, config.mesh.rules)


def lower_step(
    config: ConfigDict, parts: Parts, mesh: Mesh, state: step.TrainState, data: Data
) -> tuple[jax.stages.Lowered, dict[str, jax.Array]]:
    """The train step for this state, which may be abstract, and batches of the config, with the numbers of task and
    optimiser and the seed as its third argument; and their values, see hyper.py."""
    numbers = Numbers()
    task_, tx = parts.make(numbers.take)
    plain = step.make_step(task_, tx, seed=numbers.take("seed", config.seed), accumulate=config.accumulate)
    batch = abstract_batch(config, mesh, config.batch_size, train=True, **data._asdict())
    program, hyper = traced(plain, numbers, state, batch)
    everywhere = sharding.replicated(mesh)
    abstract = {name: sharding.placed(value, everywhere) for name, value in hyper.items()}
    return step.lower_step(program, state, batch, abstract), hyper


class Data(NamedTuple):
    """Facts of the training data that decide the shapes of a batch, see `example`."""

    fields: tuple[Field, ...]
    classes: int
    slots: int = 0


def data(config: ConfigDict, source: Source) -> Data:
    """The Data of a source: the fields that the task learns, and the label. UserError for too few data.slots."""
    learns = declared(config).learns
    fields = fields_for(source, learns.fields if learns else ())
    return Data(fields, len(source.classes), reader.slots(config, source))


def learning_rate(config: ConfigDict, length: Length) -> Callable[[int], jax.Array]:
    """A function step -> learning rate, compiled."""
    numbers = Numbers()
    taken = Length(*(numbers.take(name, value) for name, value in length._asdict().items()))
    rate = optim.schedule(optim.taken(config.optim, numbers.take), taken)
    program, hyper = traced(rate, numbers, 0)
    compiled = jax.jit(program)
    return lambda step: compiled(step, hyper)


def modules(config: ConfigDict) -> tuple[str, ...]:
    """Top-level names of the network's parameters in the order in which it creates them."""
    net, shape, names = model(config, 1), reader.contract(config).shape, []

    def init(key: jax.Array, image: jax.Array) -> PyTree:
        variables = net.init({"params": key, "dropout": key}, image, train=False)
        names.extend(variables["params"])  # here, since what eval_shape returns is sorted
        return variables

    jax.eval_shape(init, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    return tuple(names)


def body(config: ConfigDict) -> str:
    """A pattern of all of the network's parameters but its last layer's."""
    return f"^model/(?!{re.escape(modules(config)[-1])}(/|$))"


def metric(config: ConfigDict, name: str, classes: tuple[str, ...]) -> Metric:
    """The metric of the eval `name`, whose data has these classes."""
    return metric_factory(name, config.evals[name])(classes=len(classes), names=classes)


def measures(config: ConfigDict, name: str, classes: tuple[str, ...], training: tuple[str, ...]) -> dict[str, Metric]:
    """The metrics that the eval `name` hands to `evals.run`: its own, and where something is predicted OUTCOMES.

    classes: those of the evaluation's data, as `eval_data` gives it; training: those of the network. Where the data
    has some of them alone, the others are no possible answer.
    """
    classes, predicts = among(config, classes, training), declared(config).predicts
    if predicts is None:
        return {name: metric(config, name, classes)}
    made = {name: metric(config, name, classes), OUTCOMES: predicts.per_sample(len(classes))}
    columns = [training.index(c) for c in classes]
    return made if classes == training else {name: over_classes(m, columns) for name, m in made.items()}


def among(config: ConfigDict, classes: tuple[str, ...], training: tuple[str, ...]) -> tuple[str, ...]:
    """Among which classes or values the answers of an evaluation are: those of its data, or those of the network where
    the task learns without labels and predicts something of its own."""
    task_ = declared(config)
    return training if task_.predicts is not None and task_.learns is None else classes


def metric_factory(name: str, entry: ConfigDict) -> Callable:
    """What makes the metric of an entry of `evals`."""
    spec = {k: v for k, v in entry.items() if k not in config_lib.EVAL}
    spec["name"] = entry.get("metric", config_lib.EVAL["metric"])
    return config_lib.factory(jaxvision.metrics, spec, f"evals.{name}", also=tuple(config_lib.EVAL))


def example(
    config: ConfigDict,
    rows: int = 2,
    *,
    train: bool = False,
    fields: Sequence[Field] = (LABEL["class"],),
    classes: int = 0,
    slots: int = 0,
) -> Batch:
    """An abstract batch, for shapes: of evaluation, or as the training's transforms make it. `fields`, number of
    `classes` and `slots` are of the source; a task's init does not look at them."""
    shapes = transforms.shapes(config.data.transforms if train else (), reader.contract(config))
    spec = batch_spec(shapes, fields, rows, classes=classes, slots=slots, train=train)
    return {name: jax.ShapeDtypeStruct(array.shape, canonical(array.dtype)) for name, array in spec.items()}


def zeros(config: ConfigDict) -> Batch:
    """A batch of zeros, in the shapes of `example`: what `Task.init` is called with."""
    return {k: np.zeros(v.shape, v.dtype) for k, v in example(config).items()}


def jit_once(f: Callable, **options: Any) -> Callable:
    """`jax.jit` of what runs once, such as an `init`: on a CPU compiled with little optimisation, in a fifth of the
    time. The numbers are the same to rounding. What XLA_FLAGS says about optimisation stays."""
    if jax.default_backend() == "cpu" and "xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""):
        options["compiler_options"] = {"xla_backend_optimization_level": 1}
    return jax.jit(f, **options)


def abstract_init(task_: Task, config: ConfigDict) -> tuple[PyTree, PyTree]:
    """Abstract (params, extra): shapes without computing anything. UserError where the model refuses its options."""
    try:
        return jax.eval_shape(lambda k, b: task_.init(k, b, None), jax.random.key(0), example(config))
    except (TypeError, ValueError, ArithmeticError, LookupError) as error:
        options = ", ".join(f"{k}={v!r}" for k, v in config.model.items())
        raise UserError(f"model {options} at {reader.contract(config).canvas} px: {error}") from error


def abstract_batch(config: ConfigDict, mesh: Mesh, rows: int, **options: Any) -> Batch:
    """An abstract batch of `rows` rows, split over the mesh; see `example`."""
    split = sharding.batch_sharding(mesh)
    return {name: sharding.placed(leaf, split) for name, leaf in example(config, rows, **options).items()}
