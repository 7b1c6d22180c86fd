"""Numbers of a config as arguments of a compiled program: with other numbers the program is the same.

A task or an optimiser is built twice from a config: first with its numbers, which are checked; then, while its step is
traced, with a `Number` in the place of each. To Python a `Number` is its value: comparisons and branches see it, and
arithmetic with other numbers happens in Python, in double precision, as it would without. Where a `Number` meets an
array, or is handed to a function that JAX compiles by itself, its value becomes an argument of the program. So the
program computes what it would with constants, and the code of tasks and optimisers need not know. Results differ in the
last bit where XLA makes something of a constant that it cannot make of an argument: of a division by it a product, of a
product with 1 nothing.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np


class Numbers:
    """The numbers of one program. `guards`: what its branches asked of them, and were told."""

    def __init__(self) -> None:
        self.arrays: dict[str, jax.Array] = {}
        self.guards: dict[str, Any] = {}

    def take(self, name: str, value: Any) -> Any:
        """A `Number` in the place of an int or a float; anything else as it is."""
        return Number(self, name, value) if type(value) in (int, float) else value

    def array(self, number: Number) -> jax.Array:
        """The argument of the program for this number, as weakly typed as Python's numbers are."""
        value, kind = number.value, type(number.value)
        dtype = jnp.float32 if kind is float else jnp.int32 if value < 2**31 else jnp.uint32
        if number.name not in self.arrays:
            with jax.ensure_compile_time_eval():  # an array, also where something is being traced
                self.arrays[number.name] = jax.device_put(np.asarray(value, dtype))
        # A copy, of which nobody can see while it is traced that it is a constant: `x ** 2` would become `x * x`.
        copy = jnp.array(self.arrays[number.name], copy=True)
        return copy if dtype == jnp.uint32 else jax.lax.convert_element_type(copy, kind)


class Number:
    """An int or a float of a config, or what Python computed from some; see above. `name` is the formula."""

    def __init__(self, numbers: Numbers, name: str, value: Any) -> None:
        self.numbers, self.name, self.value = numbers, name, value

    def __jax_array__(self) -> jax.Array:
        return self.numbers.array(self)

    def _seen(self, what: str, answer: Any) -> Any:
        """Notes what Python was told about the value, which the program then depends on, and returns it."""
        self.numbers.guards[what] = answer
        return answer

    def __bool__(self) -> bool:
        return self._seen(f"bool({self.name})", bool(self.value))

    def __float__(self) -> float:
        return self._seen(f"float({self.name})", float(self.value))

    def __int__(self) -> int:
        return self._seen(f"int({self.name})", int(self.value))

    __index__ = __int__

    def __hash__(self) -> int:
        return hash(self._seen(f"float({self.name})", self.value))

    def __repr__(self) -> str:
        return repr(self._seen(f"float({self.name})", self.value))

    def __format__(self, spec: str) -> str:
        return format(self._seen(f"float({self.name})", self.value), spec)

    def __round__(self) -> Number:
        return Number(self.numbers, f"round({self.name})", round(self.value))

    def __floor__(self) -> Number:
        return Number(self.numbers, f"floor({self.name})", math.floor(self.value))

    def __neg__(self) -> Number:
        return Number(self.numbers, f"-({self.name})", -self.value)


# What a compiled function gets of a `Number` is its array.
jax.tree_util.register_pytree_node(Number, lambda number: ((number.__jax_array__(),), None), lambda _, parts: parts[0])


def _arithmetic(symbol: str, function: Callable[[Any, Any], Any]) -> tuple[Callable, Callable]:
    """The method for `number symbol other`, and that for `other symbol number`."""

    def there(self: Number, other: Any) -> Any:
        if isinstance(other, Number):
            return Number(self.numbers, f"({self.name} {symbol} {other.name})", function(self.value, other.value))
        if isinstance(other, int | float):
            return Number(self.numbers, f"({self.name} {symbol} {other!r})", function(self.value, other))
        return function(self.__jax_array__(), other)

    def back(self: Number, other: Any) -> Any:
        if isinstance(other, int | float):
            return Number(self.numbers, f"({other!r} {symbol} {self.name})", function(other, self.value))
        return function(other, self.__jax_array__())

    return there, back


def _comparison(symbol: str, function: Callable[[Any, Any], Any]) -> Callable:
    def compared(self: Number, other: Any) -> Any:
        if isinstance(other, Number):
            return self._seen(f"{self.name} {symbol} {other.name}", function(self.value, other.value))
        if isinstance(other, int | float):
            return self._seen(f"{self.name} {symbol} {other!r}", function(self.value, other))
        return NotImplemented if isinstance(other, str) or other is None else function(self.__jax_array__(), other)

    return compared


for _symbol, _name in (("+", "add"), ("-", "sub"), ("*", "mul"), ("/", "truediv"), ("**", "pow")):
    _there, _back = _arithmetic(_symbol, getattr(operator, _name))
    setattr(Number, f"__{_name}__", _there)
    setattr(Number, f"__r{_name}__", _back)
for _symbol, _name in (("<", "lt"), ("<=", "le"), (">", "gt"), (">=", "ge"), ("==", "eq"), ("!=", "ne")):
    setattr(Number, f"__{_name}__", _comparison(_symbol, getattr(operator, _name)))


def traced(f: Callable[..., Any], numbers: Numbers, *arguments: Any) -> tuple[Callable[..., Any], dict[str, jax.Array]]:
    """(arguments..., hyper) -> what `f` gives, with its `Number`s as the dict `hyper`; and the values they have.

    arguments: of the shapes that f is called with; they may be abstract.
    """
    closed, shapes = jax.make_jaxpr(f, return_shape=True)(*arguments)
    names = {id(array): name for name, array in numbers.arrays.items()}
    used = [names.get(id(const), "") for const in closed.consts]
    structure = jax.tree.structure(shapes)

    def program(*arguments_and_hyper: Any) -> Any:
        *given, hyper = arguments_and_hyper
        consts = [hyper[name] if name else const for name, const in zip(used, closed.consts, strict=True)]
        run = jax.extend.core.jaxpr_as_fun(jax.extend.core.ClosedJaxpr(closed.jaxpr, consts))
        return jax.tree.unflatten(structure, run(*jax.tree.leaves(given)))

    program.__name__ = f.__name__  # what compiled files and profiles call it

    return program, {name: numbers.arrays[name] for name in used if name}
