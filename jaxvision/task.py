"""Task and Metric: the two interfaces that everything else plugs into."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

PyTree = Any
Batch = dict[str, Any]


def leaf_name(path: tuple) -> str:
    """Like "model/layer1_0/conv1/kernel", of a path as jax.tree_util gives it."""
    import jax

    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaf_names(tree: PyTree) -> list[str]:
    """Of all leaves, in their order."""
    import jax

    return [leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def keep(params: PyTree, extra: PyTree, step: Any) -> PyTree:
    """The `after_step` of a task that has nothing to do there."""
    return extra


class Task(NamedTuple):
    """What to learn. `batch` holds global arrays [B, ...]; batch["mask"] bool[B], False = padding.

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
    """

    init: Callable[..., tuple[PyTree, PyTree]]
    loss: Callable[..., tuple[Any, tuple[PyTree, dict[str, Any]]]]
    predict: Callable[[PyTree, PyTree, Batch], dict[str, Any]]
    after_step: Callable[[PyTree, PyTree, Any], PyTree] = keep
    frozen: tuple[str, ...] = ()


# Metrics of which less is better; of all others more is.
LOWER = ("loss", "mse", "mae")
ALARM = "alarm_"  # a training log of this name is above 0 where something is wrong


class Metric(NamedTuple):
    """How good predictions are. Padding never counts.

    A name with a slash, `accuracy/cat`, is a part of what stands before it: recorded, but in no curve or line of text.

    update: on the device, (predictions, batch) -> a tree of sums over the rows where batch["mask"]; or, if
      `gather`, of rows [B, ...], of which the evaluator keeps those that are no padding.
    finish: on the host, numpy tree (sums added up, or rows concatenated) -> dict[str, float].
    gather: True where every row is needed (COCO AP, HOTA, k-NN).
    bank: name of a second source whose rows are gathered first and handed to `finish` as its second
      argument (k-NN, linear probe on frozen features). Only with `gather`.
    names: of the figures that `finish` gives: known before anything is measured, so that a config can
      name one. Parts of a figure that depends on the data, `accuracy/cat`, may be absent in the end.
    check: (the bank's labels) raises ValueError where `finish` could make nothing of such a bank.
    draw: (matplotlib axes, what `finish` takes..., class names) draws a picture of it, where there is something to see.
    """

    update: Callable[[dict[str, Any], Batch], PyTree]
    finish: Callable[..., dict[str, float]]
    gather: bool = False
    bank: str = ""
    draw: Callable[..., None] | None = None
    names: tuple[str, ...] = ()
    check: Callable[[Any], None] | None = None
