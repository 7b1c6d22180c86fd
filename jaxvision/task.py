"""Task, Metric and Target: the interfaces that everything else plugs into."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

PyTree = Any
Batch = dict[str, Any]


def leaf_name(path: tuple) -> str:
    """Name of a leaf, like "model/layer1_0/conv1/kernel", of a path as jax.tree_util gives it."""
    import jax

    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaf_names(tree: PyTree) -> list[str]:
    """Names of all leaves, in their order."""
    import jax

    return [leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def keep(params: PyTree, extra: PyTree, step: Any) -> PyTree:
    """The `after_step` of a task that has nothing to do there."""
    return extra


def unchanged(batch: Batch) -> Batch:
    """The `truth` of a task that learns what its data say, or nothing that can be measured."""
    return batch


class Target(NamedTuple):
    """A kind of labels and predictions: all that loader, report, export and attacks ask of it. No other code branches
    on the kind.

    name: that sources have as their `kind`, and certificates.
    fields: of a sample (data.sample.Field), that a task needs to learn it.
    outputs: (number of classes) -> name -> shape of a row of each array that is predicted and exported.
    main: the output whose numbers a certificate compares.
    per_sample: (number of classes) -> a Metric that measures nothing and gathers a row a sample, for the report.
    rows: names of the arrays of such a row, by which a report knows the kind.
    prediction: (class names, an image's row of each output, its data.warp.Warp) -> what `Predictor.predict` gives: it
      has `to_dict` and `text`, both with the `options` of the kind as keyword arguments.
    options: of an answer, by name, with their defaults: flags of predict.
    columns, cells: (class names, options) -> heads of a table of answers; (a `to_dict`) -> a row of it.
    same: (outputs of the trained network, of the exported, scale of `main`) -> (bool [N], whether both say the same of
      an image; how many of them are ties).
    score: (outputs, samples with their fields and "warp") -> figures of how good they are, for a certificate.
    counts: (a source) -> pieces of a report: how often what comes.
    words: (class names, a sample's fields) -> what is known of it, for people.
    section: (eval/NAME.json, rows, pictures) -> pieces of a report, see report.evaluation.
    complete: what a task predicts -> with all that `outputs` name; jax.
    lacking: (how many of the classes have no sample, how many there are) -> the end of a sentence about the data.
    objective: (predictions, batch) -> f32[B], which attacks raise; None: nothing to attack.
    soft: (labels, number of classes) -> labels as float rows whose weighted means are labels of mixed images; None:
      they cannot be mixed.
    scores: (names of what a task predicts) -> how `of_logits` makes outputs of a bare network's logits; and of_logits:
      (logits, that). None: no other library has such a network.
    """

    name: str
    fields: tuple[Any, ...]
    outputs: Callable[[int], dict[str, tuple[int, ...]]]
    main: str
    per_sample: Callable[[int], Metric]
    rows: frozenset[str]
    prediction: Callable[[tuple[str, ...], Mapping[str, Any], Any], Any]
    options: Mapping[str, Any]
    columns: Callable[..., list[str]]
    cells: Callable[[dict[str, Any]], list[Any]]
    same: Callable[[Mapping[str, Any], Mapping[str, Any], float], tuple[Any, int]]
    score: Callable[[Mapping[str, Any], Sequence[Mapping[str, Any]]], dict[str, float]]
    counts: Callable[[Any], list[Any]]
    words: Callable[[Sequence[str], Mapping[str, Any]], str]
    section: Callable[[Mapping[str, Any], Mapping[str, Any], Any], list[Any]]
    complete: Callable[[dict[str, Any]], dict[str, Any]] = unchanged
    lacking: Callable[[int, int], str] = "{} of {}".format
    objective: Callable[[dict[str, Any], Batch], Any] | None = None
    soft: Callable[[Any, int], Any] | None = None
    scores: Callable[[Sequence[str]], str] | None = None
    of_logits: Callable[[Any, str], dict[str, Any]] | None = None


class Task(NamedTuple):
    """A learning task as pure functions: initialisation, loss, predictions, what follows an optimiser step.

    `batch` holds global arrays [B, ...]; batch["mask"] bool[B], False = padding.

    `params` is differentiated; the network is always under params["model"], heads and projectors beside it.
    `extra` is carried, sharded and saved, never differentiated: batch statistics under extra["model"],
    teachers, queues, averages. Wrappers make their copies from what `init` returns, so after loading.

    init: (key, batch, given) -> (params, extra). `given` = {"params": ..., "extra": ...}: loaded leaves that
      override fresh ones, each part of the tree present or absent as a whole leaf.
    loss: (params, extra, batch, *, key, step) -> (f32[], (extra, logs: dict[str, f32[]])). A log "alarm_NAME" above 0
      in most steps between two log lines is told to people and kept in summary.json.
    predict: (params, extra, batch) -> dict[str, array [B, ...]]: what evaluate, predict and export call.
    after_step: (params, extra, step) -> extra, once an optimiser step, with the new params and the number of
      steps done before this one (teachers, averages of weights). Not in `loss`, which runs several times a
      step under accumulation.
    frozen: patterns (`re.search`) of the names of leaves of `params` that never move, as "^model/": the optimiser
      keeps nothing for them, and its decay leaves them alone.
    truth: batch -> the batch with what `predict` should have said of its images, where that can be told from them.
    standalone: (a leaf of the network's last layer, all leaves by name) -> that leaf of a network whose logits say by
      themselves what the task predicts, one a class or value; None: it stays.
    learns, predicts, names: see `declares`.
    """

    init: Callable[..., tuple[PyTree, PyTree]]
    loss: Callable[..., tuple[Any, tuple[PyTree, dict[str, Any]]]]
    predict: Callable[[PyTree, PyTree, Batch], dict[str, Any]]
    after_step: Callable[[PyTree, PyTree, Any], PyTree] = keep
    frozen: tuple[str, ...] = ()
    truth: Callable[[Batch], Batch] = unchanged
    standalone: Callable[[Any, Mapping[str, Any]], Any] | None = None
    learns: Target | None = None
    predicts: Target | None = None
    names: tuple[str, ...] = ()


def declares(
    learns: Target | None = None,
    *,
    predicts: Target | None = None,
    names: tuple[str, ...] = (),
    averages: bool = False,
) -> Callable[[Callable[..., Task]], Callable[..., Task]]:
    """Decorator: what a factory of a Task says before anything is built; the Task that it makes says it, too.

    Args:
      learns: the kind of labels that the task needs; None: it learns from images alone.
      predicts: what it predicts; by default what it learns. None: features alone.
      names: of the classes or values that it predicts, where they are not those of the data.
      averages: whether it predicts with averaged weights of its own, extra["ema"], as the wrapper `ema` does.
    """
    predicted = predicts or learns

    def decorate(factory: Callable[..., Task]) -> Callable[..., Task]:
        @functools.wraps(factory)
        def make(*args: Any, **arguments: Any) -> Task:
            return factory(*args, **arguments)._replace(learns=learns, predicts=predicted, names=names)

        said = {"learns": learns, "predicts": predicted, "names": names, "averages": averages}
        return _with_attributes(make, said)

    return decorate


def needs(part: str, does: str) -> Callable[[Callable[..., Task]], Callable[..., Task]]:
    """Decorator: what a wrapper asks of the task that it wraps, that its `learns` has `part` of a Target.

    `does`: why.
    """
    return lambda wrapper: _with_attributes(wrapper, {"needs": part, "does": does})


def _with_attributes(function: Callable[..., Task], values: Mapping[str, Any]) -> Callable[..., Task]:
    for name, value in values.items():
        setattr(function, name, value)
    return function


# Metrics of which less is better; of all others more is.
LOWER = ("loss", "mse", "mae")
ALARM = "alarm_"  # a training log of this name is above 0 where something is wrong
# By this name the evaluator knows the metric `Target.per_sample`; an evaluation, which is a file's name, has no slash.
OUTCOMES = "/outcomes"


class Metric(NamedTuple):
    """How good predictions are. Padding never counts.

    A name with a slash, `accuracy/cat`, is a part of what stands before it: recorded, but in no curve or line of text.

    update: on the device, (predictions, batch) -> a tree of sums over the rows where batch["mask"]; or, if
      `gather`, of rows [B, ...], of which the evaluator keeps those that are no padding.
    finish: on the host, numpy tree (sums added up, or rows concatenated) -> dict[str, float].
    gather: True where every row is needed (COCO AP, HOTA, k-NN).
    compact: on each host after each batch, before rows are gathered: (rows of `update` [n, ...], the source's own truth
      of their samples, in the files' pixels: dicts of its fields, and "warp", a data.warp.Warp) -> one small value a
      sample, of which `finish` gets the list in the source's order. So masks of a whole set are never held. Only with
      `gather`.
    bank: name of a second source whose rows are gathered first and handed to `finish` as its second
      argument (k-NN, linear probe on frozen features). Only with `gather`.
    names: of the figures that `finish` gives: known before anything is measured, so that a config can
      name one. Parts of a figure that depends on the data, `accuracy/cat`, may be absent in the end.
    check: (the bank's labels) raises ValueError where `finish` could make nothing of such a bank.
    draw: (matplotlib axes, what `finish` takes..., class names) draws a picture of it, where there is something to see.
    compares: the kind of labels that it compares with; None: any.
    of_features: whether it looks at "features" alone, which every task gives, and not at what the task predicts.
    """

    update: Callable[[dict[str, Any], Batch], PyTree]
    finish: Callable[..., dict[str, float]]
    gather: bool = False
    bank: str = ""
    draw: Callable[..., None] | None = None
    names: tuple[str, ...] = ()
    check: Callable[[Any], None] | None = None
    compares: Target | None = None
    of_features: bool = False
    compact: Callable[[Any, list[dict[str, Any]]], Sequence[Any]] | None = None
