"""Whether what a config names fits together: before data is read, and once it is open, before anything is compiled."""

from __future__ import annotations

from ml_collections import ConfigDict as Config

import jaxvision.metrics
import jaxvision.tasks
from jaxvision import config as config_lib
from jaxvision.data import reader, transforms
from jaxvision.data.sources import Source, absent, only_present, with_classes
from jaxvision.data.sources.classes import classes_differ
from jaxvision.data.sources.common import SCALAR
from jaxvision.errors import UserError, nearest
from jaxvision.task import Metric
from jaxvision.training import build, optim


def check(config: Config) -> None:
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
    metric = build.metric_factory(name, entry)(classes=2)
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
    for name, _ in config.wrap:
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


def figures(config: Config, metrics: dict[str, Metric]) -> None:
    """Raises UserError unless checkpoint.best and stop.metric name a figure of an evaluation's metric."""
    best, _, figure = config.checkpoint.best.partition("/")
    stop = config.stop
    for key, value, evaluation, wanted in (
        ("checkpoint.best", config.checkpoint.best, best, figure),
        ("stop.metric", stop.metric, stop.evaluation or config_lib.deciding(config), stop.metric),
    ):
        names = metrics[evaluation].names if evaluation in metrics else ()
        if wanted and names and wanted not in names:
            shown = [n for n in names if "/" not in n] if "/" not in wanted else list(names)
            there = f"it has {', '.join(shown)}" if len(shown) <= 20 else nearest(wanted, shown)
            raise UserError(f"{key} is {value!r}, and evals.{evaluation} has no {wanted!r}: {there}")


def kind(config: Config, source: Source, of: str = "") -> None:
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


def every_class(source: Source) -> None:
    """Raises UserError if a class of the training data has no sample."""
    names = absent(source) if source.kind == "class" else ()
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
        kind(config, source, f"evals.{name}")
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
    check = build.metric(config, name, bank.classes).check
    if check is None or bank.kind not in SCALAR or getattr(bank, "reads_for_labels", False):
        return
    try:
        check(bank.labels)
    except ValueError as error:
        raise UserError(f"evals.{name}.bank, {bank.uri}: {error}") from error


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
