"""Patterns: several primitives in a row for which ONNX has one operator, which runtimes compute in one pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jax.extend import core

_SHAPES = ("broadcast_in_dim", "reshape", "stop_gradient", "copy")


class Found(NamedTuple):
    """An operator of ONNX for the last of some equations.

    variable: of the jaxpr, what it takes; constants: more operands; attributes: its own.
    """

    op: str
    variable: Any
    constants: tuple[np.ndarray, ...]
    attributes: dict[str, Any]


class Search:
    """Walks from an equation to those that it takes from."""

    def __init__(self, producers: dict[Any, Any], read: Callable[[Any], Any]) -> None:
        self.producers, self.read = producers, read

    def made(self, variable: Any, name: str) -> Any:
        """The equation called `name` that made a variable, or what the variable is a broadcast of; else None."""
        eqn = self.producers.get(_key(variable))
        while eqn is not None and eqn.primitive.name != name and eqn.primitive.name in _SHAPES:
            eqn = self.producers.get(_key(eqn.invars[0]))
        return eqn if eqn is not None and eqn.primitive.name == name else None

    def pair(self, variable: Any, name: str, inner: str) -> tuple[Any, Any]:
        """(the equation that made the one operand, the other operand) of a `name` that takes an `inner`; or Nones."""
        eqn = self.made(variable, name)
        for k in (0, 1) if eqn is not None else ():
            found = self.made(eqn.invars[k], inner)
            if found is not None:
                return found, eqn.invars[1 - k]
        return None, None

    def operand(self, eqn: Any, name: str) -> Any:
        """The equation of a name that made one of the operands of an equation; None if there is none, or for None."""
        made = [self.made(v, name) for v in eqn.invars] if eqn is not None else []
        return next((found for found in made if found is not None), None)

    def constants(self, eqn: Any) -> np.ndarray | None:
        """The constant among the operands of an equation; None if there is none."""
        values = [self.constant(v) for v in eqn.invars] if eqn is not None else []
        return next((value for value in values if value is not None), None)

    def constant(self, variable: Any) -> np.ndarray | None:
        value = self.read(variable) if variable is not None else None
        return value if isinstance(value, np.ndarray) else None

    def mean(self, variable: Any) -> Any:
        """The variable that `variable` is the mean of, over the last axis; None if it is no mean."""
        eqn = self.made(variable, "div")
        total = self.made(eqn.invars[0], "reduce_sum") if eqn is not None else None
        count = self.constant(eqn.invars[1]) if eqn is not None else None
        if total is None or count is None or count.size != 1:
            return None
        shape = total.invars[0].aval.shape
        last = len(shape) - 1
        return total.invars[0] if total.params["axes"] == (last,) and shape[last] == float(count.reshape(())) else None

    def layer_norm(self, eqn: Any) -> Found | None:
        """(x - mean) * (rsqrt(max(0, mean of squares - mean^2) + epsilon) * scale) + bias, over the last axis."""
        if eqn.primitive.name != "add":
            return None
        for k in (0, 1):
            bias, product = self.constant(eqn.invars[1 - k]), self.made(eqn.invars[k], "mul")
            if bias is None or product is None or product.outvars[0] is not eqn.invars[k]:
                continue
            centred, by = self.pair(product.outvars[0], "mul", "sub")
            root, scale = self.pair(by, "mul", "rsqrt") if centred is not None else (None, None)
            found = self._normalised(centred, root, self.constant(scale), bias) if root is not None else None
            if found is not None:
                return found
        return None

    def _normalised(self, centred: Any, root: Any, scale: np.ndarray | None, bias: np.ndarray) -> Found | None:
        x, mean = centred.invars
        inside = self.made(root.invars[0], "add")
        epsilon = self.constants(inside)
        variance = self.operand(self.operand(inside, "max"), "sub")
        if scale is None or epsilon is None or variance is None:
            return None
        squares = self.made(self.mean(variance.invars[0]), "square")
        squared = self.made(variance.invars[1], "square")
        width = x.aval.shape[-1]
        same = squares is not None and squared is not None and squares.invars[0] is x
        if not same or self.mean(mean) is not x or self.mean(squared.invars[0]) is not x:
            return None
        if scale.size != width or bias.size != width or scale.shape[-1] != width or bias.shape[-1] != width:
            return None
        attributes = {"axis": -1, "epsilon": float(epsilon.reshape(()))}
        return Found("LayerNormalization", x, (scale.reshape(-1), bias.reshape(-1)), attributes)

    def softmax(self, eqn: Any) -> Found | None:
        """exp(x - max) / sum, over the last axis."""
        if eqn.primitive.name != "div":
            return None
        power, total = self.made(eqn.invars[0], "exp"), self.made(eqn.invars[1], "reduce_sum")
        if power is None or total is None or total.invars[0] is not power.outvars[0]:
            return None
        less = self.made(power.invars[0], "sub")
        if less is None or power.outvars[0] is not eqn.invars[0]:
            return None
        x, largest = less.invars
        top = self.made(largest, "max")
        top = self.made(largest, "reduce_max") if top is None else self.pair(top.outvars[0], "max", "reduce_max")[0]
        last = (len(x.aval.shape) - 1,)
        if top is None or top.invars[0] is not x or top.params["axes"] != last or total.params["axes"] != last:
            return None
        return Found("Softmax", x, (), {"axis": -1})


def _key(variable: Any) -> Any:
    """A variable as a key of a dict; None for a literal, which is none."""
    return None if isinstance(variable, core.Literal) else variable
