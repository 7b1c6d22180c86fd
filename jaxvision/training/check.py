"""Whether what a config names fits together: before data is read, and once it is open, before anything is compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ml_collections import ConfigDict

from jaxvision import config as config_lib
from jaxvision import metrics, targets, tasks
from jaxvision.data import reader, transforms
from jaxvision.data.sample import VALUE, label_field
from jaxvision.data.sources import Source, absent, only_present, with_classes
from jaxvision.data.sources.classes import classes_differ
from jaxvision.errors import UserError, nearest
from jaxvision.task import Metric
from jaxvision.training import build, optim


def check(config: ConfigDict) -> None:
    """Checks every name and argument in the config, before any data is read or compiled. Raises UserError."""
    config_lib.check(config)
    build.factories(config)
    optim.check(config.optim)
    transforms.build(config.data.transforms, reader.contract(config))
    for name, entry in config.evals.items():
        _check_metric(config, name, entry)
        _check_subset(name, entry)
        _check_bank(config, name, entry)
    _check_wrappers(config)


def _check_metric(config: ConfigDict, name: str, entry: ConfigDict) -> None:
    task_, metric = config.task.name, build.metric_factory(name, entry)(classes=2)
    predicts = build.declared(config).predicts
    if metric.of_features:
        return
    if predicts is None:
        raise UserError(
            f"evals.{name}.metric {_metric_of(entry)} measures predictions, and task {task_} makes none, only "
            f"features: set config.evals.{name}.metric = {_metrics(lambda other: other.of_features)}"
        )
    if metric.compares not in (None, predicts):
        fit = _metrics(lambda other: other.compares is predicts and not other.of_features)
        raise UserError(
            f"evals.{name}.metric {_metric_of(entry)} is for labels of kind {metric.compares.name!r}, task {task_} "
            f"predicts {predicts.name!r}: set config.evals.{name}.metric = {fit}"
        )


def _metric_of(entry: ConfigDict) -> str:
    return entry.get("metric", config_lib.EVAL["metric"])


def _metrics(fits: Callable[[Metric], bool]) -> str:
    """The names of those metrics that fit, for a message: the default first."""
    first = config_lib.EVAL["metric"]
    names = sorted(metrics.__all__, key=lambda name: (name != first, name))
    return _either(name for name in names if fits(getattr(metrics, name)(classes=2)))


def _either(names: Iterable[str]) -> str:
    return " or ".join(f'"{name}"' for name in names)


def _check_subset(name: str, entry: ConfigDict) -> None:
    metric = build.metric_factory(name, entry)(classes=2)
    says_a_class = metric.compares is targets.class_ and not metric.of_features
    if entry.get("classes") == "subset" and not says_a_class:
        raise UserError(
            f'evals.{name}.classes = "subset" tells among which classes the answer is, and metric {_metric_of(entry)} '
            "measures no such answer: remove it"
        )


def _check_bank(config: ConfigDict, name: str, entry: ConfigDict) -> None:
    metric = build.metric_factory(name, entry)(classes=2)
    if metric.bank and not entry.get("bank"):
        raise UserError(
            f"evals.{name}: {entry.metric} compares with labelled images: name them, "
            f'as evals.{name}.bank = "{entry.get("data", "").replace("test", "train") or config.data.train}"'
        )
    if entry.get("bank") and not metric.bank:
        raise UserError(f"evals.{name}.bank is {entry.bank!r}, and its metric compares with no other images: remove it")


def _check_wrappers(config: ConfigDict) -> None:
    task_, declared = config.task.name, build.declared(config)
    for name, _ in config.wrap:
        wrapper = getattr(tasks, name)
        part = getattr(wrapper, "needs", "")
        if part and getattr(declared.learns, part, None) is None:
            learns = f"learns {declared.learns.name}" if declared.learns else "learns without labels"
            raise UserError(f"wrap.{name} {wrapper.does}, and task {task_} {learns}: remove it")
        if name == "ema" and declared.averages:
            raise UserError(
                f"wrap.ema averages the weights, and task {task_} predicts with averaged weights of its own: remove it"
            )


def figures(config: ConfigDict, measured: dict[str, Metric]) -> None:
    """Raises UserError unless checkpoint.best and stop.metric name a figure of an evaluation's metric."""
    best, _, figure = config.checkpoint.best.partition("/")
    stop = config.stop
    for key, value, evaluation, wanted in (
        ("checkpoint.best", config.checkpoint.best, best, figure),
        ("stop.metric", stop.metric, stop.evaluation or config_lib.deciding(config), stop.metric),
    ):
        names = measured[evaluation].names if evaluation in measured else ()
        if wanted and names and wanted not in names:
            shown = [n for n in names if "/" not in n] if "/" not in wanted else list(names)
            there = f"it has {', '.join(shown)}" if len(shown) <= 20 else nearest(wanted, shown)
            raise UserError(f"{key} is {value!r}, and evals.{evaluation} has no {wanted!r}: {there}")


def kind(config: ConfigDict, source: Source, of: str = "") -> None:
    """Raises UserError unless the task learns the kind of labels that the source has.

    of: whose data it is, such as "evals.val", where it is not the training's: then other data is the way out.
    """
    learns = build.declared(config).learns
    if learns is None or learns.name == source.kind:
        return
    labelled = f"task {config.task.name} learns labels of kind {learns.name!r}, and {source.uri} has"
    if of:
        has = repr(source.kind) if targets.find(source.kind) else "none"
        raise UserError(f"{of}: {labelled} {has}: name data with such labels")
    if targets.find(source.kind) is None:
        free = ", ".join(name for name in tasks.TASKS if getattr(tasks, name).learns is None)
        raise UserError(f"{labelled} none: name labelled data, or set config.task.name to what learns without ({free})")
    others = _either(name for name in tasks.TASKS if getattr(tasks, name).learns is targets.find(source.kind))
    raise UserError(f"{labelled} {source.kind!r}: set config.task.name = {others}")


def every_class(source: Source) -> None:
    """Raises UserError if a class of the training data has no sample."""
    field = label_field(source)
    names = absent(source) if field is not None and field.classes == VALUE else ()
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise UserError(
            f"{source.uri} has no sample of the class {', '.join(map(repr, names[:5]))}{more}: remove it from the "
            "class list, or add images"
        )


def classes(uri: str, theirs: tuple[str, ...], mine: tuple[str, ...]) -> None:
    """Raises UserError unless the classes of a source are those of the training data, `mine`, in their order."""
    if tuple(theirs) != tuple(mine):
        differ = classes_differ(theirs, mine, "there", "the training data")
        raise UserError(f"the classes of {uri} are not those of the training data: {differ}")


def eval_data(
    config: ConfigDict, name: str, data: Source, bank: Source | None, training: tuple[str, ...]
) -> tuple[Source, Source | None]:
    """The data and the bank of an evaluation, with labels that count in the classes of the training by their names.

    Of a task that learns no labels they are the classes of the bank, or of the data if the bank lacks some. Classes may
    be absent, see `eval_lines`. With `evals.NAME.classes` "subset" the data's list is of those that have samples.
    Raises UserError for a class that is not known, and unless both have the labels that the metric compares.
    """
    learns = build.declared(config).learns
    metric = build.metric_factory(name, config.evals[name])(classes=2)
    compares = metric.compares if learns or metric.of_features else None  # else the task tells the truth
    for source in (data, bank):
        if source is None:
            continue
        kind(config, source, f"evals.{name}")
        if compares and source.kind != compares.name:
            raise UserError(
                f"evals.{name}: {_metric_of(config.evals[name])} compares with labels of kind {compares.name!r}, and "
                f"{source.uri} has {source.kind!r}"
            )
    whose = (training, "the training data")
    if learns is None and bank is not None:
        whole = bank if set(data.classes) <= set(bank.classes) else data
        whose = (whole.classes, whole.uri)
    if learns or bank is not None:
        data, bank = with_classes(data, *whose), bank and with_classes(bank, *whose)
    _check_subset(name, config.evals[name])
    if config.evals[name].get("classes") == "subset":
        data = only_present(data)
    if bank is not None:
        _check_bank_labels(config, name, bank)
    return data, bank


def _check_bank_labels(config: ConfigDict, name: str, bank: Source) -> None:
    check = build.metric(config, name, bank.classes).check
    if check is None or getattr(bank, "reads_for_labels", False):
        return
    try:
        check(bank.labels)
    except ValueError as error:
        raise UserError(f"evals.{name}.bank, {bank.uri}: {error}") from error


def eval_lines(
    config: ConfigDict, name: str, data: Source, bank: Source | None, training: tuple[str, ...]
) -> list[str]:
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
        target = targets.find(source.kind)
        told = target.lacking(len(names), count) if target else ""
        lines.append(f"{what}{told} ({few})")
    return lines
