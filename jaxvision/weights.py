"""Which loaded leaves go where: the load plan."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
from flax import traverse_util

from jaxvision.errors import UserError
from jaxvision.task import PyTree


class Plan(NamedTuple):
    """Names by fate. `given` is what `Task.init` takes; every leaf of both sides is in exactly one list."""

    given: dict[str, Any]
    loaded: list[str]
    reinitialised: list[str]  # the head, where the classes differ
    dropped: list[str]  # of the source: the old head

    def table(self) -> str:
        lines = [f"  loaded          {len(self.loaded)} leaves"]
        lines += [f"  reinitialised   {name}" for name in self.reinitialised]
        lines += [f"  dropped         {name}" for name in self.dropped]
        return "\n".join(lines)


def plan(fresh: dict[str, PyTree], loaded: dict[str, PyTree], head: set[str], same_classes: bool) -> Plan:
    """Decides for {"params": {"model": ...}, "extra": {"model": ...}}, by name.

    Args:
      fresh: abstract leaves of the task.
      loaded: numpy leaves of the source.
      head: names of the leaves whose shape depends on the class count.
      same_classes: whether the source's class names are the task's; if not, the head starts afresh.

    Raises UserError for any other leaf that is missing, left over or of another shape.
    """
    want = traverse_util.flatten_dict(fresh, sep="/")
    have = traverse_util.flatten_dict(loaded, sep="/")
    new_head = set() if same_classes else head
    body = want.keys() - new_head
    missing = sorted(body - have.keys())
    left_over = sorted(have.keys() - want.keys())
    wrong = sorted(
        f"{n} ({list(have[n].shape)} there, {list(want[n].shape)} here)"
        for n in body & have.keys()
        if tuple(have[n].shape) != tuple(want[n].shape)
    )
    problems = [
        ("missing in the source", missing),
        ("of no use here", left_over),
        ("of another shape", wrong),
    ]
    if any(names for _, names in problems):
        text = "; ".join(f"{what}: {_some(names)}" for what, names in problems if names)
        raise UserError(
            f"init: these weights are of another network: {text}. Use the model that they were trained with"
        )
    given = traverse_util.unflatten_dict({n: have[n] for n in sorted(body)}, sep="/")
    return Plan(given, sorted(body), sorted(new_head), sorted(new_head & have.keys()))


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def head_names(one: PyTree, other: PyTree) -> set[str]:
    """Leaves whose shapes differ between two abstract trees of the same task, built for two class counts."""
    a, b = (traverse_util.flatten_dict(t, sep="/") for t in (one, other))
    return {n for n in a if n not in b or a[n].shape != b[n].shape}


def averaged(loaded: dict[str, PyTree]) -> dict[str, PyTree]:
    """What the source predicts with: its averaged weights where it kept some (ema), else its weights."""
    if "ema" in loaded["extra"]:
        average = loaded["extra"]["ema"]
        return {"params": average["params"], "extra": {"model": average.get("model", {})}}
    return {"params": loaded["params"], "extra": {"model": loaded["extra"].get("model", {})}}


def count(params: PyTree) -> int:
    """Number of parameters of an abstract or concrete tree."""
    return sum(int(leaf.size) for leaf in jax.tree.leaves(params))
