"""The load plan: which loaded leaves go where."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util

from jaxvision.errors import UserError, nearest
from jaxvision.task import PyTree
from jaxvision.weights.resize import resize


class Plan(NamedTuple):
    """Names by fate. `given` is what `Task.init` takes; every leaf of both sides is in exactly one list."""

    given: dict[str, Any]
    loaded: list[str]
    resized: list[str]  # "NAME: [1, 197, 768] -> [1, 577, 768], how"; or only how, of the same size
    reinitialised: list[str]  # the head, where classes differ; what only this task has; what `init_policy.fresh` names
    dropped: list[str]  # of the source: the old head, what only its task has, and what `init_policy.ignore` names

    def table(self) -> str:
        lines = [f"  loaded          {len(self.loaded)} leaves"]
        for fate in ("resized", "reinitialised", "dropped"):
            lines += [f"  {fate:<15} {name}" for name in getattr(self, fate)]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, list[str]]:
        return {name: value for name, value in self._asdict().items() if name != "given"}


class Source(NamedTuple):
    """Loaded leaves in our layout, by our names, "params/model/..." and "extra/model/...", whatever their sizes."""

    leaves: dict[str, np.ndarray]
    unused: Sequence[str] = ()  # what else the source holds, by its own names
    called: dict[str, str] = {}  # noqa: RUF012  our name: what the source calls it
    made: dict[str, str] = {}  # noqa: RUF012  our name: how a leaf was made that is more than a copy
    dropped: Sequence[str] = ()  # what else the source holds and no network has: an optimiser's state


def match(
    fresh: dict[str, PyTree],
    source: Source,
    head: set[str],
    same_classes: bool,
    *,
    begin_afresh: Iterable[str] = (),
    ignore: Iterable[str] = (),
) -> Plan:
    """Decides for {"params": {"model": ...}, "extra": {"model": ...}}, by name.

    Args:
      fresh: abstract leaves of the task.
      head: names of the leaves whose shape depends on the class count, here or, where the task has the network
        without its head, in the source, whose head is then dropped.
      same_classes: whether the source's classes are the task's; if not, or if the source has no head, the head starts
        afresh.
      begin_afresh: patterns (`re.search`) of our names that are not loaded, whatever the source has.
      ignore: patterns of names that the source has and that are of no use here.

    Leaves of another size are resized where there is a known way, see `resize`. What a task has beside the network, as
    "params/projector/...", starts afresh where the source has nothing of that name, and is dropped where only the
    source has it.

    Raises UserError for any other leaf that is missing, left over, of another shape or type, or not finite, and for a
    pattern that matches nothing.
    """
    want = traverse_util.flatten_dict(fresh, sep="/")
    have = source.leaves
    for key, patterns, names in (("fresh", begin_afresh, want), ("ignore", ignore, [*source.unused, *have])):
        for pattern in patterns:
            if not any(re.search(pattern, name) for name in names):
                raise UserError(f'init_policy.{key}: "{pattern}" matches no leaf: {nearest(pattern, list(names))}')
    mine = head & want.keys()
    new = {n for n in want if any(re.search(p, n) for p in begin_afresh)}
    new |= set() if same_classes and mine & have.keys() else mine
    # what a task has beside the network (a projector, a probe) is its own: no other task must have it
    here, there = {None, *map(_beside, want)}, {None, *map(_beside, have)}
    new |= {n for n in want if _beside(n) not in there}
    not_mine = {n for n in have if _beside(n) not in here} | (head & have.keys() - want.keys())
    left_over = [*sorted(have.keys() - want.keys() - not_mine), *source.unused]
    dropped = [n for n in left_over if any(re.search(p, n) for p in ignore)]
    left_over = [n for n in left_over if n not in dropped]
    missing, wrong, unfit, given, resized = [], [], [], {}, []
    for name in sorted(want.keys() - new):
        called = source.called.get(name, name)
        if name not in have:
            missing.append(name if called == name else f"{name} ({called} there)")
            continue
        array = have[name]
        if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
            unfit.append(f"{called} is {array.dtype}")
            continue
        if not np.isfinite(array).all():
            unfit.append(f"{called} has {int((~np.isfinite(array)).sum())} values that are not finite")
            continue
        array = np.asarray(array, np.float32)
        shape = tuple(want[name].shape)
        note = source.made.get(name, "")
        if array.shape != shape:
            sizes = f"{list(array.shape)} -> {list(shape)}"
            found = resize(name, array, shape)
            if found is None:
                wrong.append(f"{name} ({sizes.replace(' -> ', ' there, ')} here)")
                continue
            array, how = found
            note = f"{sizes}, {how}{note and ', ' + note}"
        if note:
            resized.append(f"{name}: {note}")
        given[name] = array
    problems = [
        ("missing in the source", missing),
        ("of no use here", left_over),
        ("of another shape", wrong),
        ("damaged", unfit),
    ]
    if any(names for _, names in problems):
        text = "; ".join(f"{what}: {_some(names)}" for what, names in problems if names)
        raise UserError(f"init: these weights are of another network: {text}. {_advice(missing + wrong, left_over)}")
    return Plan(
        traverse_util.unflatten_dict(given, sep="/"),
        [n for n in given if not any(r.startswith(n + ": ") for r in resized)],
        resized,
        sorted(new),
        sorted([*dropped, *source.dropped, *(source.called.get(n, n) for n in (new & have.keys()) | not_mine)]),
    )


def _beside(name: str) -> str | None:
    """ "params/projector" of what lies beside the network, None of the network's own."""
    part, _, rest = name.partition("/")
    top = rest.partition("/")[0]
    return None if top == "model" else f"{part}/{top}"


def _advice(mine: list[str], theirs: list[str]) -> str:
    """The line of config that would allow the load."""
    text = "Use the model that they were trained with"
    lines = []
    for key, names in (("fresh", mine), ("ignore", theirs)):
        if names:
            first = re.escape(names[0].split(" ")[0]).replace("\\", "") + "$"
            lines.append(f'config.init_policy.{key} = ("{first}",)')
    return f"{text}, or allow it by name: {' and '.join(lines)}" if lines else text


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def head_names(one: PyTree, other: PyTree) -> set[str]:
    """Leaves whose shapes differ between two abstract trees of the same task, built for two class counts."""
    a, b = (traverse_util.flatten_dict(t, sep="/") for t in (one, other))
    return {n for n in a if n not in b or a[n].shape != b[n].shape}


def averaged(loaded: dict[str, PyTree]) -> Source:
    """The leaves that a checkpoint predicts with.

    These are its averaged weights where it kept some (ema), else its weights; and the units of its predictions, where
    they have some (regression).
    """
    average = loaded["extra"].get("ema", {"params": loaded["params"], "model": loaded["extra"].get("model", {})})
    units = {name: loaded["extra"][name] for name in ("scale",) if name in loaded["extra"]}
    tree = {"params": average["params"], "extra": {"model": average.get("model", {}), **units}}
    return Source({n: np.asarray(leaf) for n, leaf in traverse_util.flatten_dict(tree, sep="/").items()})


def count(params: PyTree) -> int:
    """Number of parameters of an abstract or concrete tree."""
    return sum(int(leaf.size) for leaf in jax.tree.leaves(params))
