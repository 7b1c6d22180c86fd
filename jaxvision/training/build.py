"""From a config to the things it names: contract, task, optimiser, metrics."""

from __future__ import annotations

import math
import os
import re
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
from jaxvision.config import Config
from jaxvision.data import reader, transforms
from jaxvision.data.sources import Source, absent, hold_out, only_present, with_classes
from jaxvision.data.sources.classes import classes_differ
from jaxvision.data.sources.common import SCALAR
from jaxvision.errors import UserError, nearest
from jaxvision.metrics.classification import over_classes
from jaxvision.metrics.outcomes import OUTCOMES, outcomes
from jaxvision.runtime import sharding
from jaxvision.task import Batch, Metric, PyTree, Task
from jaxvision.training import optim


def check(config: Config) -> None:
    """Checks every name and argument in the config, before any data is read or compiled. Raises UserError."""
    config_lib.check(config)
    _factories(config)
    optim.check(config.optim)
    transforms.build(config.data.transforms, reader.contract(config))
    for name, entry in config.evals.items():
        _check_metric(config, name, entry)
        _check_subset(name, entry)
        _check_bank(config, name, entry)
    _check_wrappers(config)


def _check_metric(config: Config, name: str, entry: Config) -> None:
    task_, metric = config.task.name, entry.get("metric", config_lib.EVAL["metric"])
    learns, measures = jaxvision.tasks.LABELS.get(task_), jaxvision.metrics.LABELS.get(metric)
    if learns is None and metric not in jaxvision.metrics.OF_FEATURES:
        fit = " or ".join(f'"{m}"' for m in jaxvision.metrics.OF_FEATURES)
        raise UserError(
            f"evals.{name}.metric {metric} measures predictions, and task {task_} makes none, only features: "
            f"set config.evals.{name}.metric = {fit}"
        )
    if learns and measures and learns != measures:
        of_predictions = {m: k for m, k in jaxvision.metrics.LABELS.items() if m not in jaxvision.metrics.OF_FEATURES}
        fit = _named(of_predictions, learns)
        raise UserError(
            f"evals.{name}.metric {metric} is for labels of kind {measures!r}, task {task_} learns {learns!r}: "
            f"set config.evals.{name}.metric = {fit}"
        )


def _check_subset(name: str, entry: Config) -> None:
    metric = entry.get("metric", config_lib.EVAL["metric"])
    says_a_class = jaxvision.metrics.LABELS.get(metric) == "class" and metric not in jaxvision.metrics.OF_FEATURES
    if entry.get("classes") == "subset" and not says_a_class:
        raise UserError(
            f'evals.{name}.classes = "subset" tells among which classes the answer is, and metric {metric} measures no '
            "such answer: remove it"
        )


def _check_bank(config: Config, name: str, entry: Config) -> None:
    metric = _metric_factory(name, entry)(classes=2)
    if metric.bank and not entry.get("bank"):
        raise UserError(
            f"evals.{name}: {entry.metric} compares with labelled images: name them, "
            f'as evals.{name}.bank = "{entry.get("data", "").replace("test", "train") or config.data.train}"'
        )
    if entry.get("bank") and not metric.bank:
        raise UserError(f"evals.{name}.bank is {entry.bank!r}, and its metric compares with no other images: remove it")


def _check_wrappers(config: Config) -> None:
    task_ = config.task.name
    kind = jaxvision.tasks.LABELS.get(task_)
    for name in config.wrap:
        kinds, does = jaxvision.tasks.NEEDS.get(name, ((kind,), ""))
        if kind not in kinds:
            learns = f"learns {kind}" if kind else "learns without labels"
            raise UserError(f"wrap.{name} {does}, and task {task_} {learns}: remove it")
        if name == "ema" and task_ in jaxvision.tasks.AVERAGING:
            raise UserError(
                f"wrap.ema averages the weights, and task {task_} predicts with averaged weights of its own: remove it"
            )


def _named(kinds: dict[str, str], kind: str) -> str:
    """The names in LABELS that go with a kind of labels."""
    return " or ".join(f'"{name}"' for name, theirs in kinds.items() if theirs == kind)


def resolve(config: Config) -> Config:
    """A copy in which nothing depends on the machine any more: what config.json holds."""
    config = Config(config.to_dict())
    if config.dtype == "auto":
        config.dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if not config.data.resize:
        config.data.resize = math.floor(config.data.size / 0.875)
    _hold_out(config)
    return config


def without_data(config: Config) -> list[str]:
    """Names of the evaluations that name no data: `resolve` holds out a tenth of the training data for them."""
    return [name for name, entry in config.evals.items() if not entry.get("data")]


def _hold_out(config: Config) -> None:
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
    """The flax module that the config names, with so many outputs."""
    dtype = jnp.dtype("float32" if config.dtype == "auto" else config.dtype)
    return _factories(config)[0](classes=classes, dtype=dtype)


def task(
    config: Config,
    classes: int,
    labels: Callable[[], np.ndarray] | None = None,
    *,
    teaching: Task | None = None,
    total_steps: int = 0,
) -> Task:
    """Model in task in wrappers, as the config names them.

    `labels` gives those of the training data, which some settings need and which may take long to read; without it
    such a task still predicts, and init makes the right shapes. `teaching`: the trained task that it learns from.
    `total_steps`: of a training, else 0.
    """
    _, make_task, wrappers = _factories(config)
    network = model(config, jaxvision.tasks.OUTPUTS.get(config.task.name, classes))
    more = () if teaching is None else (teaching,)
    built = make_task(network, reader.contract(config), *more, classes=classes, labels=labels, total_steps=total_steps)
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


def body(config: Config) -> str:
    """A pattern of all of the network's parameters but its last layer's."""
    return f"^model/(?!{re.escape(modules(config)[-1])}(/|$))"


def metric(config: Config, name: str, classes: tuple[str, ...]) -> Metric:
    """The metric of the eval `name`, whose data has these classes."""
    return _metric_factory(name, config.evals[name])(classes=len(classes), names=classes)


def measures(config: Config, name: str, classes: tuple[str, ...], training: tuple[str, ...]) -> dict[str, Metric]:
    """The metrics that the eval `name` hands to `evals.run`: its own, and where labels are predicted OUTCOMES.

    classes: those of the evaluation's data, as `eval_data` gives it; training: those of the network. Where the data
    has some of them alone, the others are no possible answer.
    """
    kind = jaxvision.tasks.LABELS.get(config.task.name)
    if not kind:
        return {name: metric(config, name, classes)}
    made = {name: metric(config, name, classes), OUTCOMES: outcomes(classes=len(classes), kind=kind)}
    columns = [training.index(c) for c in classes]
    return made if classes == training else {name: over_classes(m, columns) for name, m in made.items()}


def _metric_factory(name: str, entry: Config) -> Callable:
    spec = {k: v for k, v in entry.items() if k not in config_lib.EVAL}
    spec["name"] = entry.get("metric", config_lib.EVAL["metric"])
    return config_lib.factory(jaxvision.metrics, spec, f"evals.{name}", also=tuple(config_lib.EVAL))


def example(config: Config, rows: int = 2, *, train: bool = False, kind: str = "class", classes: int = 0) -> Batch:
    """An abstract batch, for shapes: of evaluation, or as the training's transforms make it. `kind` of the labels and
    number of `classes` are the source's; a task's init does not look at them."""
    shapes = transforms.shapes(config.data.transforms if train else (), reader.contract(config))
    label, dtype = ((rows,), jnp.int32) if kind in SCALAR else ((rows, classes), jnp.float32)
    return {
        **{name: jax.ShapeDtypeStruct((rows, *shape), jnp.uint8) for name, shape in shapes.items()},
        "label": jax.ShapeDtypeStruct(label, dtype),
        "index": jax.ShapeDtypeStruct((rows,), jnp.int32),
        "mask": jax.ShapeDtypeStruct((rows,), jnp.bool_),
    }


def zeros(config: Config) -> Batch:
    """A batch of zeros, in the shapes of `example`: what `Task.init` is called with."""
    return {k: np.zeros(v.shape, v.dtype) for k, v in example(config).items()}


def jit_once(f: Callable, **options: Any) -> Callable:
    """`jax.jit` of what runs once, such as an `init`: on a CPU compiled with little optimisation, in a fifth of the
    time. The numbers are the same to rounding. What XLA_FLAGS says about optimisation stays."""
    if jax.default_backend() == "cpu" and "xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""):
        options["compiler_options"] = {"xla_backend_optimization_level": 1}
    return jax.jit(f, **options)


def abstract_init(task_: Task, config: Config) -> tuple[PyTree, PyTree]:
    """Abstract (params, extra): shapes without computing anything. UserError where the model refuses its options."""
    try:
        return jax.eval_shape(lambda k, b: task_.init(k, b, None), jax.random.key(0), example(config))
    except (TypeError, ValueError, ArithmeticError, LookupError) as error:
        options = ", ".join(f"{k}={v!r}" for k, v in config.model.items())
        raise UserError(f"model {options} at {config.data.size} px: {error}") from error


def check_classes(uri: str, theirs: tuple[str, ...], mine: tuple[str, ...]) -> None:
    """Raises UserError unless the classes of a source are those of the training data, `mine`, in their order."""
    if tuple(theirs) != tuple(mine):
        differ = classes_differ(theirs, mine, "there", "the training data")
        raise UserError(f"the classes of {uri} are not those of the training data: {differ}")


def eval_data(
    config: Config, name: str, data: Source, bank: Source | None, training: tuple[str, ...]
) -> tuple[Source, Source | None]:
    """The data and the bank of an evaluation, with labels that count in the classes of the training by their names.

    Of a task that learns no labels they are the classes of the bank, or of the data if the bank lacks some. Classes may
    be absent, see `eval_lines`. With `evals.NAME.classes` "subset" the data's list is of those that have samples.
    Raises UserError for a class that is not known, and unless both have the labels that the metric compares.
    """
    metric = config.evals[name].get("metric", config_lib.EVAL["metric"])
    measures = jaxvision.metrics.LABELS.get(metric)
    for source in (data, bank):
        if source is None:
            continue
        check_kind(config, source, f"evals.{name}")
        if measures and source.kind != measures:
            raise UserError(
                f"evals.{name}: {metric} compares with labels of kind {measures!r}, and {source.uri} has "
                f"{source.kind!r}"
            )
    whose = (training, "the training data")
    if config.task.name not in jaxvision.tasks.LABELS and bank is not None:
        whole = bank if set(data.classes) <= set(bank.classes) else data
        whose = (whole.classes, whole.uri)
    if config.task.name in jaxvision.tasks.LABELS or bank is not None:
        data, bank = with_classes(data, *whose), bank and with_classes(bank, *whose)
    _check_subset(name, config.evals[name])
    if config.evals[name].get("classes") == "subset":
        data = only_present(data)
    if bank is not None:
        _check_bank_labels(config, name, bank)
    return data, bank


def _check_bank_labels(config: Config, name: str, bank: Source) -> None:
    check = metric(config, name, bank.classes).check
    if check is None or bank.kind not in SCALAR or getattr(bank, "reads_for_labels", False):
        return
    try:
        check(bank.labels)
    except ValueError as error:
        raise UserError(f"evals.{name}.bank, {bank.uri}: {error}") from error


def check_figures(config: Config, metrics: dict[str, Metric]) -> None:
    """Raises UserError unless checkpoint.best and stop.metric name a figure of an evaluation's metric."""
    best, _, figure = config.checkpoint.best.partition("/")
    stop = config.stop
    for key, value, evaluation, wanted in (
        ("checkpoint.best", config.checkpoint.best, best, figure),
        ("stop.metric", stop.metric, stop.evaluation or best or next(iter(metrics), ""), stop.metric),
    ):
        names = metrics[evaluation].names if evaluation in metrics else ()
        if wanted and names and wanted not in names:
            shown = [n for n in names if "/" not in n] if "/" not in wanted else list(names)
            there = f"it has {', '.join(shown)}" if len(shown) <= 20 else nearest(wanted, shown)
            raise UserError(f"{key} is {value!r}, and evals.{evaluation} has no {wanted!r}: {there}")


def eval_lines(config: Config, name: str, data: Source, bank: Source | None, training: tuple[str, ...]) -> list[str]:
    """Lines for people about classes of an evaluation that have no sample. data, bank: as `eval_data` gives them."""
    lines = []
    if config.evals[name].get("classes") == "subset" and data.classes != training:
        answers = f"the {len(data.classes)} classes with samples, of the network's {len(training)}"
        lines.append(f"evals.{name}: the answer is one of {answers}")
    for source, what in ((data, f"evals.{name}"), (bank, f"evals.{name}.bank")):
        names = absent(source) if source is not None else ()
        if not names or source is None:
            continue
        few, count = ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else ""), len(source.classes)
        if source.kind == "tags":
            told = f": {len(names)} of the {count} tags have no known yes, or no known no, and are in no mean"
        else:
            told = f" has {count - len(names)} of the {count} classes, and no sample of the other {len(names)}"
        lines.append(f"{what}{told} ({few})")
    return lines


def check_kind(config: Config, source: Source, of: str = "") -> None:
    """Raises UserError unless the task learns the kind of labels that the source has.

    of: whose data it is, such as "evals.val", where it is not the training's: then other data is the way out.
    """
    learns = jaxvision.tasks.LABELS.get(config.task.name, source.kind)
    if learns == source.kind:
        return
    if of:
        has = "none" if source.kind == "none" else repr(source.kind)
        raise UserError(
            f"{of}: task {config.task.name} learns labels of kind {learns!r}, and {source.uri} has {has}: name data "
            "with such labels"
        )
    if source.kind == "none":
        free = ", ".join(name for name in jaxvision.tasks.TASKS if name not in jaxvision.tasks.LABELS)
        raise UserError(
            f"task {config.task.name} learns labels of kind {learns!r}, and {source.uri} has none: name labelled data, "
            f"or set config.task.name to what learns without ({free})"
        )
    raise UserError(
        f"task {config.task.name} learns labels of kind {learns!r}, and {source.uri} has {source.kind!r}: "
        f"set config.task.name = {_named(jaxvision.tasks.LABELS, source.kind)}"
    )


def check_every_class(source: Source) -> None:
    """Raises UserError if a class of the training data has no sample."""
    names = absent(source) if source.kind == "class" else ()
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise UserError(
            f"{source.uri} has no sample of the class {', '.join(map(repr, names[:5]))}{more}: remove it from the "
            "class list, or add images"
        )


def abstract_batch(config: Config, mesh: Mesh, rows: int, **options: Any) -> Batch:
    """An abstract batch of `rows` rows, split over the mesh; see `example`."""
    split = sharding.batch_sharding(mesh)
    return {name: sharding.placed(leaf, split) for name, leaf in example(config, rows, **options).items()}
