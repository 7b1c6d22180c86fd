"""A flat list of JAX primitives as an ONNX graph.

Written for what the networks here are made of (`RULES`), and checked on all families in the tests. It knows two things
that a translation primitive by primitive does not. A convolution's output stays in ONNX's order of axes, channels
first, until something needs another (`Value.perm`), so no transposition is left between two convolutions. And what JAX
broadcasts explicitly ONNX broadcasts by itself, so nothing is expanded unless it must be (`Value.sides`).

jax2onnx (0.17), which does this for JAX in general, was tried first: its max_pool put a ResNet-50's
logits off by 8 % of their scale, a ViT-S/16 came to 1,600 nodes (here 464), and it holds orbax-checkpoint back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from jax.extend import core
from onnx import TensorProto, helper, numpy_helper

from jaxvision.deploy.patterns import Found, Search
from jaxvision.errors import UserError

OPSET = 18  # of December 2022: axes of reductions as inputs
IR_VERSION = 9
TYPES = {
    "float32": TensorProto.FLOAT,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "uint8": TensorProto.UINT8,
    "bool": TensorProto.BOOL,
}


class Value(NamedTuple):
    """A tensor of the graph.

    Its axes, put in the order `perm`, are those of the array that it stands for; where `sides` is 1 and the array's
    side is not, the array is that tensor broadcast.
    """

    name: str
    sides: tuple[Any, ...]  # of the array's axes, 1 where it is to be broadcast
    perm: tuple[int, ...]  # tensor axis k is the array's axis perm[k]


Operand = Value | np.ndarray
ONE = np.array(1, np.float32)


class Graph:
    """The ONNX graph as converted so far."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.sides: dict[str, str] = {}  # a symbolic side -> the name of its value, int64[1]
        self._made: dict[tuple, Value] = {}  # other forms of values, each made once
        self._seen: dict[tuple, str] = {}

    def node(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, array: Any) -> str:
        array = np.asarray(array)
        key = (array.dtype.str, array.shape, array.tobytes()) if array.size <= 64 else (id(array),)
        if key not in self._seen:
            name = f"constant_{len(self.constants)}"
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
            self._seen[key] = name
            if array.size > 64:
                self._made[key] = array  # so that its id stays its own
        return self._seen[key]

    def ints(self, *values: int) -> str:
        return self.constant(np.asarray(values, np.int64))

    def shape(self, sides: Sequence[Any]) -> str:
        """int64[n], of sides that are numbers or symbols."""
        if all(isinstance(n, int) for n in sides):
            return self.ints(*sides)
        parts = [self.ints(n) if isinstance(n, int) else self.side(n) for n in sides]
        return self.node("Concat", parts, axis=0)

    def side(self, symbol: Any) -> str:
        if str(symbol) not in self.sides:
            raise Unknown(f"the side {symbol}, which is none of an input's")
        return self.sides[str(symbol)]

    def straight(self, value: Operand) -> Value:
        """Value with its axes in the array's order."""
        if isinstance(value, np.ndarray):
            return Value(self.constant(value), value.shape, tuple(range(value.ndim)))
        if value.perm == tuple(range(len(value.perm))):
            return value
        return self.ordered(value, tuple(range(len(value.perm))))

    def ordered(self, value: Value, perm: tuple[int, ...]) -> Value:
        """Value with its axes in the order `perm`."""
        if value.perm == perm:
            return value
        key = (value.name, value.perm, perm)
        if key not in self._made:
            name = self.node("Transpose", [value.name], perm=[value.perm.index(axis) for axis in perm])
            self._made[key] = value._replace(name=name, perm=perm)
        return self._made[key]

    def whole(self, value: Operand, sides: Sequence[Any]) -> Value:
        """Value with its axes in the array's order, broadcast to `sides`."""
        value = self.straight(value)
        if tuple(value.sides) == tuple(sides):
            return value
        name = self.node("Expand", [value.name, self.shape(sides)])
        return value._replace(name=name, sides=tuple(sides))

    def reshaped(self, value: Operand, sides: Sequence[Any]) -> Value:
        """Value reshaped to `sides`, of which at most one may be symbolic.

        The value itself must be whole: not still to be broadcast.
        """
        value = self.straight(value)
        if tuple(value.sides) == tuple(sides):
            return value
        if sum(not isinstance(n, int) for n in sides) > 1:
            to = self.shape(sides)
        else:
            to = self.ints(*(n if isinstance(n, int) else -1 for n in sides))
        return Value(self.node("Reshape", [value.name, to]), tuple(sides), tuple(range(len(sides))))


class Unknown(Exception):
    """An operation or form of one that has no rule for its conversion here."""


def to_onnx(closed: Any, inputs: Sequence[str], outputs: Sequence[str], name: str = "jaxvision") -> onnx.ModelProto:
    """A model of `deploy.flat.flatten`'s closed jaxpr.

    Args:
      closed: jax.extend.core.ClosedJaxpr of float32, int32, uint8 and bool arrays; symbolic sides stay symbolic.
      inputs, outputs: their names, in the jaxpr's order.

    Raises UserError if there is a primitive, or a form of one, that no rule knows.
    """
    graph, jaxpr = Graph(), closed.jaxpr
    values: dict[Any, Operand] = {v: np.asarray(c) for v, c in zip(jaxpr.constvars, closed.consts)}
    for variable, called in zip(jaxpr.invars, inputs):
        sides = tuple(variable.aval.shape)
        values[variable] = Value(called, sides, tuple(range(len(sides))))
        for axis, side in enumerate(sides):
            if not isinstance(side, int) and str(side) not in graph.sides:
                graph.sides[str(side)] = graph.node("Shape", [called], start=axis, end=axis + 1)
    producers: dict[Any, Any] = {}

    def read(variable: Any) -> Operand:
        if isinstance(variable, core.Literal):
            return np.asarray(variable.val, variable.aval.dtype)  # type: ignore[attr-defined]
        return values[variable]

    search = Search(producers, read)
    for eqn in jaxpr.eqns:
        found = search.layer_norm(eqn) or search.softmax(eqn)
        if found is not None:
            values[eqn.outvars[0]] = _operator(graph, found, read(found.variable))
            producers[eqn.outvars[0]] = eqn
            continue
        rule = RULES.get(eqn.primitive.name)
        try:
            if rule is None:
                raise Unknown(f"the primitive {eqn.primitive.name}")
            context = Context(graph, eqn, producers, read)
            outputs_of = rule(context, *(read(v) for v in eqn.invars))
            values |= zip(eqn.outvars, outputs_of if isinstance(outputs_of, list) else [outputs_of])
        except Unknown as error:
            raise UserError(
                f"the network needs {error}, for which there is no ONNX here: use --format stablehlo, which has all"
            ) from None
        producers[eqn.outvars[0]] = eqn
    for variable, called in zip(jaxpr.outvars, outputs):
        last = graph.whole(read(variable), variable.aval.shape)
        graph.nodes.append(helper.make_node("Identity", [last.name], [called], name=called))
    made = helper.make_graph(
        _needed(graph.nodes, outputs),
        name,
        [_info(called, v.aval) for v, called in zip(jaxpr.invars, inputs)],
        [_info(called, v.aval) for v, called in zip(jaxpr.outvars, outputs)],
        list(graph.constants.values()),
    )
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(made, opset_imports=opset, ir_version=IR_VERSION, producer_name="jaxvision")
    onnx.checker.check_model(model, full_check=True)
    return model


def _operator(graph: Graph, found: Found, x: Operand) -> Value:
    value = graph.whole(x, found.variable.aval.shape)
    name = graph.node(found.op, [value.name, *map(graph.constant, found.constants)], **found.attributes)
    return value._replace(name=name)


def _needed(nodes: Sequence[Any], outputs: Sequence[str]) -> list[Any]:
    """The nodes that an output depends on.

    What an operator replaced is left out.
    """
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted & set(node.output):
            kept.append(node)
            wanted |= set(node.input)
    return kept[::-1]


def _info(name: str, aval: Any) -> Any:
    return helper.make_tensor_value_info(
        name, TYPES[str(aval.dtype)], [n if isinstance(n, int) else str(n) for n in aval.shape]
    )


# --------------------------------------------------------------------------- rules


class Context(NamedTuple):
    """A rule's view of one equation.

    A rule is a function (context, operands...) -> the value of the equation's output.
    """

    graph: Graph
    eqn: Any
    producers: dict[Any, Any]
    read: Callable[[Any], Operand]

    @property
    def params(self) -> Mapping[str, Any]:
        return self.eqn.params

    @property
    def shape(self) -> tuple[Any, ...]:
        return tuple(self.eqn.outvars[0].aval.shape)

    def given(self, k: int) -> tuple[Any, ...]:
        """The sides of an operand's array."""
        return tuple(self.eqn.invars[k].aval.shape)


def _elementwise(op: str) -> Callable[..., Value]:
    def rule(context: Context, *operands: Operand) -> Value:
        graph, rank = context.graph, len(context.shape)
        found = [v for v in operands if isinstance(v, Value) and len(v.perm) == rank]
        # the order of the largest: what is broadcast is cheaper to turn
        perm = max(found, key=lambda v: sum(n != 1 for n in v.sides)).perm if found else tuple(range(rank))
        names = []
        for v in operands:
            if isinstance(v, np.ndarray):
                names.append(graph.constant(v.transpose(perm) if v.ndim == rank else v))
            else:
                names.append((graph.ordered(v, perm) if len(v.perm) == rank else v).name)
        shapes = [v.sides if isinstance(v, Value) else v.shape for v in operands]
        shapes = [s for s in shapes if len(s) == rank]
        sides = tuple(next((s[k] for s in shapes if s[k] != 1), 1) for k in range(rank))
        return Value(graph.node(op, names), sides, perm)

    return rule


def _add(context: Context, a: Operand, b: Operand) -> Operand:
    for x, other in ((a, b), (b, a)):
        if isinstance(other, np.ndarray) and not other.any() and _covers(x, other):
            return x
    return _elementwise("Add")(context, a, b)


def _multiply(context: Context, a: Operand, b: Operand) -> Operand:
    for x, other in ((a, b), (b, a)):
        if isinstance(other, np.ndarray) and (other == 1).all() and _covers(x, other):
            return x
    return _elementwise("Mul")(context, a, b)


def _covers(x: Operand, other: np.ndarray) -> bool:
    """Whether combining with `other` leaves the sides of x as they are."""
    return isinstance(x, Value) and (other.ndim == 0 or all(n in (1, m) for n, m in zip(other.shape, x.sides)))


def _maximum(context: Context, a: Operand, b: Operand) -> Value:
    for x, other in ((a, b), (b, a)):
        if isinstance(other, np.ndarray) and other.dtype == np.float32 and not other.any() and _covers(x, other):
            return x._replace(name=context.graph.node("Relu", [x.name]))  # type: ignore[union-attr]
    return _elementwise("Max")(context, a, b)


def _same(context: Context, x: Operand) -> Operand:
    return x


def _square(context: Context, x: Operand) -> Value:
    return _elementwise("Mul")(context, x, x)


def _rsqrt(context: Context, x: Operand) -> Value:
    root = _elementwise("Sqrt")(context, x)
    return root._replace(name=context.graph.node("Reciprocal", [root.name]))


def _integer_pow(context: Context, x: Operand) -> Value:
    return _elementwise("Pow")(context, x, np.array(context.params["y"], np.float32))


def _erfc(context: Context, x: Operand) -> Value:
    """1 - erf(x); of -x c, which is what GELU asks for, 1 + erf(x c): runtimes know that form."""
    graph, one = context.graph, context.graph.constant(ONE)
    search = Search(context.producers, context.read)
    minus, factor = search.pair(context.eqn.invars[0], "mul", "neg")
    inner, by = (context.read(minus.invars[0]), search.constant(factor)) if minus is not None else (None, None)
    if isinstance(inner, Value) and by is not None and by.size == 1 and minus.outvars[0].aval.shape == context.shape:
        scaled = graph.node("Mul", [inner.name, graph.constant(by.reshape(()))])
        return inner._replace(name=graph.node("Add", [graph.node("Erf", [scaled]), one]))
    return _elementwise("Sub")(context, ONE, _elementwise("Erf")(context, x))


def _expm1(context: Context, x: Operand) -> Value:
    """tanh(x / 2) (e^x + 1), which loses nothing near 0."""
    half, power = _elementwise("Mul")(context, x, np.array(0.5, np.float32)), _elementwise("Exp")(context, x)
    tanh, more = _elementwise("Tanh")(context, half), _elementwise("Add")(context, power, ONE)
    return _elementwise("Mul")(context, tanh, more)


def _cumsum(context: Context, x: Operand) -> Value:
    graph, value = context.graph, _whole(context, 0, x)
    axis = graph.constant(np.int64(value.perm.index(context.params["axis"])))
    return value._replace(name=graph.node("CumSum", [value.name, axis], reverse=int(context.params["reverse"])))


def _log1p(context: Context, x: Operand) -> Value:
    return _elementwise("Log")(context, _elementwise("Add")(context, x, ONE))


def _clamp(context: Context, low: Operand, x: Operand, high: Operand) -> Value:
    above = _elementwise("Max")(context, x, low)
    return _elementwise("Min")(context, above, high)


def _select(context: Context, which: Operand, *cases: Operand) -> Value:
    if len(cases) != 2 or context.eqn.invars[0].aval.dtype != bool:
        raise Unknown("a selection among more than two")
    return _elementwise("Where")(context, which, cases[1], cases[0])


def _not_equal(context: Context, a: Operand, b: Operand) -> Value:
    equal = _elementwise("Equal")(context, a, b)
    return equal._replace(name=context.graph.node("Not", [equal.name]))


def _bitwise(op: str) -> Callable[..., Value]:
    def rule(context: Context, a: Operand, b: Operand) -> Value:
        logical = context.eqn.outvars[0].aval.dtype == bool
        return _elementwise(op if logical else f"Bitwise{op}")(context, a, b)

    return rule


def _cast(context: Context, x: Operand) -> Operand:
    dtype = np.dtype(context.params["new_dtype"])
    if context.eqn.invars[0].aval.dtype == dtype:
        return x
    if isinstance(x, np.ndarray):
        return x.astype(dtype)
    return x._replace(name=context.graph.node("Cast", [x.name], to=TYPES[str(dtype)]))


def _remainder(context: Context, a: Operand, b: Operand) -> Value:
    value = _elementwise("Mod")(context, a, b)
    context.graph.nodes[-1].attribute.append(helper.make_attribute("fmod", 1))  # the sign of a, as in C
    return value


def _side(context: Context) -> Value:
    graph = context.graph
    number = graph.node("Squeeze", [graph.side(context.params["dim"]), graph.ints(0)])
    return Value(graph.node("Cast", [number], to=TensorProto.INT32), (), ())


def _iota(context: Context, *_: Any) -> Operand:
    shape, axis = context.shape, context.params["dimension"]
    side, dtype = shape[axis], np.dtype(context.params["dtype"])
    apart = [1] * len(shape)
    apart[axis] = side
    if isinstance(side, int):
        return (
            np.broadcast_to(np.arange(side, dtype=dtype).reshape(apart), shape)
            if _static(shape)
            else np.arange(side, dtype=dtype).reshape(apart)
        )
    graph = context.graph
    zero, one = graph.constant(np.int64(0)), graph.constant(np.int64(1))
    count = graph.node("Squeeze", [graph.side(side), graph.ints(0)])
    numbers = graph.node("Cast", [graph.node("Range", [zero, count, one])], to=TYPES[str(dtype)])
    return graph.reshaped(Value(numbers, (side,), (0,)), apart)


def _static(shape: Sequence[Any]) -> bool:
    return all(isinstance(n, int) for n in shape)


def _broadcast(context: Context, x: Operand, *_: Any) -> Operand:
    """Rule for broadcast_in_dim.

    Only axes of 1 are put in; the rest ONNX does where it is needed.
    """
    shape, axes = context.shape, context.params["broadcast_dimensions"]
    if isinstance(x, np.ndarray):
        apart = [1] * len(shape)
        for axis, n in zip(axes, x.shape):
            apart[axis] = n
        x = x.reshape(apart)
        return np.broadcast_to(x, shape) if _static(shape) and math.prod(shape) <= 4096 else x
    sides: list[Any] = [1] * len(shape)
    for axis, n in zip(axes, x.sides):
        sides[axis] = n
    return _spread(context.graph, x, sides, axes)


def _spread(graph: Graph, x: Value, sides: Sequence[Any], axes: Sequence[int]) -> Value:
    """x's axes as `axes` of more; the new ones are 1, and stand where they do in the array."""
    if len(sides) == len(x.sides):
        return x
    x = graph.straight(x)
    new = [k for k in range(len(sides)) if k not in axes]
    return Value(graph.node("Unsqueeze", [x.name, graph.ints(*new)]), tuple(sides), tuple(range(len(sides))))


def _reshape(context: Context, x: Operand) -> Operand:
    if isinstance(x, np.ndarray) and _static(context.shape):
        return np.broadcast_to(x, context.given(0)).reshape(context.shape)
    return context.graph.reshaped(context.graph.whole(x, context.given(0)), context.shape)


def _squeeze(context: Context, x: Operand) -> Operand:
    axes = context.params["dimensions"]
    if isinstance(x, np.ndarray):
        return x.squeeze(tuple(axes))
    return _without(context.graph, x, axes)


def _transpose(context: Context, x: Operand) -> Operand:
    """Rule for transpose.

    Nothing moves: the tensor's axes are other ones of the array.
    """
    order = context.params["permutation"]
    if isinstance(x, np.ndarray):
        return x.transpose(order)
    return Value(x.name, tuple(x.sides[k] for k in order), tuple(order.index(axis) for axis in x.perm))


def _reduce(op: str) -> Callable[..., Value]:
    def rule(context: Context, x: Operand) -> Value:
        graph, axes = context.graph, tuple(context.params["axes"])
        value = graph.straight(x) if isinstance(x, np.ndarray) else x
        if any(value.sides[k] != context.given(0)[k] for k in axes):
            value = graph.whole(value, context.given(0))
        places = [value.perm.index(axis) for axis in axes]
        name = graph.node(op, [value.name, graph.ints(*sorted(places))], keepdims=0)
        left = [axis for axis in range(len(value.sides)) if axis not in axes]
        perm = tuple(left.index(axis) for axis in value.perm if axis not in axes)
        return Value(name, tuple(value.sides[k] for k in left), perm)

    return rule


def _concatenate(context: Context, *parts: Operand) -> Value:
    graph, axis = context.graph, context.params["dimension"]
    found = [v for v in parts if isinstance(v, Value)]
    perm = found[0].perm if found else tuple(range(len(context.shape)))
    names = []
    for k, v in enumerate(parts):
        if isinstance(v, np.ndarray) and not _partial(v, context.given(k)):
            names.append(graph.constant(v.transpose(perm)))
        else:
            names.append(graph.ordered(_whole(context, k, v), perm).name)
    return Value(graph.node("Concat", names, axis=perm.index(axis)), context.shape, perm)


def _stack(context: Context, *parts: Operand) -> Value:
    graph, axis = context.graph, context.params["axis"]
    names = [graph.straight(_whole(context, k, v)).name for k, v in enumerate(parts)]
    opened = [graph.node("Unsqueeze", [name, graph.ints(axis)]) for name in names]
    return Value(graph.node("Concat", opened, axis=axis), context.shape, tuple(range(len(context.shape))))


def _whole(context: Context, k: int, v: Operand) -> Value:
    """Operand k in any order of axes, with nothing left to be broadcast."""
    if isinstance(v, Value) and not _partial(v, context.given(k)):
        return v
    return context.graph.whole(v, context.given(k))


def _partial(v: Operand, sides: Sequence[Any]) -> bool:
    """Whether the value is still to be broadcast."""
    return tuple(v.sides if isinstance(v, Value) else v.shape) != tuple(sides)


def _cut(graph: Graph, x: Value, starts: Sequence[int], stops: Sequence[Any], steps: Sequence[int]) -> Value:
    """x[starts:stops:steps]; where an axis is whole, in silence."""
    cuts = [
        (x.perm.index(k), start, stop, step)
        for k, (start, stop, step, n) in enumerate(zip(starts, stops, steps, x.sides))
        if (start, step) != (0, 1) or stop != n
    ]
    if not cuts:
        return x
    if not all(isinstance(v, int) for cut in cuts for v in cut):
        raise Unknown("a slice along a symbolic side")
    axes, first, last, by = (graph.ints(*column) for column in zip(*cuts))
    sides = list(x.sides)
    for place, start, stop, step in cuts:
        sides[x.perm[place]] = -(-(stop - start) // step)
    return x._replace(name=graph.node("Slice", [x.name, first, last, axes, by]), sides=tuple(sides))


def _slice(context: Context, x: Operand) -> Value:
    steps = context.params["strides"] or (1,) * len(context.shape)
    x = _whole(context, 0, x)
    return _cut(context.graph, x, context.params["start_indices"], context.params["limit_indices"], steps)


def _gather(context: Context, x: Operand, index: Operand) -> Value:
    """x[..., 3], x[:, 1::2, ::2] and the like, which JAX writes as a gather at constant places: as slices."""
    how, sizes = context.params["dimension_numbers"], context.params["slice_sizes"]
    if how.operand_batching_dims or not isinstance(index, np.ndarray):
        raise Unknown("a gather at places that are not constant")
    graph, x = context.graph, _whole(context, 0, x)
    starts, stops, steps = [0] * len(sizes), list(sizes), [1] * len(sizes)
    along: dict[int, int] = {}  # an axis of the index -> the axis of x that it runs along
    for k, axis in enumerate(how.start_index_map):
        places = index[..., k]
        runs = [j for j in range(places.ndim) if places.shape[j] > 1 and np.diff(places, axis=j).any()]
        line = (
            np.moveaxis(places, runs[0], -1).reshape(-1, places.shape[runs[0]])[0] if runs else places.reshape(-1)[:1]
        )
        gaps = set(np.diff(line).tolist()) or {1}
        whole_axis = not isinstance(sizes[axis], int)
        if (
            len(runs) > 1
            or len(gaps) > 1
            or min(gaps) < 1
            or (runs and sizes[axis] != 1)
            or (whole_axis and line.any())
        ):
            raise Unknown("a gather at places that are no grid")
        if runs:
            along[runs[0]] = axis
        if not whole_axis:
            starts[axis], steps[axis], stops[axis] = int(line[0]), gaps.pop(), int(line[-1]) + sizes[axis]
    gone = [axis for axis in how.collapsed_slice_dims if axis not in along.values()]
    left = [axis for axis in range(len(sizes)) if axis not in gone]
    apart = [k for k in range(len(context.shape)) if k not in how.offset_dims]
    if [along.get(j) for j in range(len(apart))] != [left[k] for k in apart if k < len(left)]:
        raise Unknown("a gather that moves axes")
    cut = graph.straight(_cut(graph, x, starts, stops, steps))
    return _without(graph, cut, gone) if gone else cut


def _split(context: Context, x: Operand) -> list[Operand]:
    return [*_parts(context, x, context.params["axis"], context.params["sizes"])]


def _unstack(context: Context, x: Operand) -> list[Operand]:
    """x[0], x[1], ... along an axis; a primitive of its own from jax 0.12 on."""
    axis = context.params["axis"]
    parts = _parts(context, x, axis, (1,) * context.given(0)[axis])
    return [_without(context.graph, part, (axis,)) for part in parts]


def _parts(context: Context, x: Operand, axis: int, sizes: Sequence[int]) -> list[Value]:
    whole, start, parts = _whole(context, 0, x), 0, []
    for size in map(int, sizes):  # numpy's, in a split
        starts, stops = [0] * len(whole.sides), list(whole.sides)
        starts[axis], stops[axis] = start, start + size
        parts.append(_cut(context.graph, whole, starts, stops, [1] * len(starts)))
        start += size
    return parts


def _without(graph: Graph, x: Operand, axes: Sequence[int]) -> Value:
    """x without axes of 1."""
    x = graph.straight(x)
    sides = tuple(n for k, n in enumerate(x.sides) if k not in axes)
    return Value(graph.node("Squeeze", [x.name, graph.ints(*axes)]), sides, tuple(range(len(sides))))


def _pad(context: Context, x: Value, filling: Operand) -> Value:
    edges = context.params["padding_config"]
    if any(low < 0 or high < 0 or inner for low, high, inner in edges) or not isinstance(filling, np.ndarray):
        raise Unknown("a padding that cuts, lies within, or is not constant")
    graph, x = context.graph, _whole(context, 0, x)
    pads = [edges[axis][side] for side in (0, 1) for axis in x.perm]
    name = graph.node("Pad", [x.name, graph.ints(*pads), graph.constant(filling)])
    return Value(name, context.shape, x.perm)


def _product(context: Context, a: Operand, b: Operand) -> Value:
    """Rule for dot_general, which gives batch axes, then a's own, then b's own.

    One axis of each is left as it is, more are joined for the product.
    """
    graph = context.graph
    (mine, theirs), (batch_a, batch_b) = context.params["dimension_numbers"]
    own_a, own_b = (
        [k for k in range(len(context.given(n))) if k not in (*c, *batch)]
        for n, c, batch in ((0, mine, batch_a), (1, theirs, batch_b))
    )

    def laid(v: Operand, k: int, first: Sequence[int], second: Sequence[int], batch: Sequence[int]) -> str:
        """[batch..., first, second], the axes of each joined; without `first` if that is empty and second is all."""
        sides = context.given(k)
        if isinstance(v, np.ndarray):
            v = np.broadcast_to(v, sides).transpose((*batch, *first, *second))
            n = [math.prod(sides[j] for j in part) for part in (first, second)]
            return graph.constant(v.reshape([sides[j] for j in batch] + n))
        turned = graph.ordered(_whole(context, k, v), (*batch, *first, *second)).name
        if len(first) == len(second) == 1:
            return turned
        joined = [sides[j] for j in batch] + [_joined([sides[j] for j in part]) for part in (first, second)]
        if sum(not isinstance(n, int) for n in joined) > 1:
            raise Unknown("a product over several symbolic sides")
        return graph.node("Reshape", [turned, graph.ints(*(n if isinstance(n, int) else -1 for n in joined))])

    if not batch_a and len(mine) == 1 and len(own_b) == 1 and own_a:
        # x @ matrix, whatever axes x has: ONNX does it as it is
        left = graph.ordered(_whole(context, 0, a), (*own_a, *mine)).name
        right = laid(b, 1, theirs, own_b, ())
        return Value(graph.node("MatMul", [left, right]), context.shape, tuple(range(len(context.shape))))
    made = graph.node("MatMul", [laid(a, 0, own_a, mine, batch_a), laid(b, 1, theirs, own_b, batch_b)])
    if len(own_a) != 1 or len(own_b) != 1:
        return graph.reshaped(Value(made, ("?",), (0,)), context.shape)
    return Value(made, context.shape, tuple(range(len(context.shape))))


def _joined(sides: Sequence[Any]) -> Any:
    return math.prod(sides) if _static(sides) else "?"


def _convolution(context: Context, x: Value, kernel: Operand) -> Value:
    params, graph = context.params, context.graph
    how = params["dimension_numbers"]
    if any(n != 1 for n in params["lhs_dilation"]) or params["batch_group_count"] != 1:
        raise Unknown("a transposed convolution")
    if not isinstance(kernel, np.ndarray):
        raise Unknown("a convolution whose kernel is computed")
    x = _whole(context, 0, x)
    weight = graph.constant(kernel.transpose(how.rhs_spec))
    low, high = zip(*params["padding"])
    if min((*low, *high)) < 0:
        raise Unknown("a convolution whose padding cuts")
    name = graph.node(
        "Conv",
        [graph.ordered(x, tuple(how.lhs_spec)).name, weight],
        kernel_shape=[kernel.shape[k] for k in how.rhs_spec[2:]],
        strides=list(params["window_strides"]),
        dilations=list(params["rhs_dilation"]),
        pads=[*low, *high],
        group=params["feature_group_count"],
    )
    return Value(name, context.shape, tuple(how.out_spec))


def _pool(op: str) -> Callable[..., Value]:
    """Rule for a pooling operator over windows of [B, H, W, C]."""

    def rule(context: Context, x: Value, *_: Any) -> Value:
        params, graph = context.params, context.graph
        window, pads = params["window_dimensions"], params["padding"]
        if len(window) != 4 or any(window[k] != 1 or pads[k] != (0, 0) for k in (0, 3)):
            raise Unknown("a pooling over other axes than height and width")
        if any(n != 1 for n in (*params["base_dilation"], *params["window_dilation"])):
            raise Unknown("a dilated pooling")
        x = _whole(context, 0, x)
        more = {"count_include_pad": 1} if op == "AveragePool" else {}
        name = graph.node(
            op,
            [graph.ordered(x, (0, 3, 1, 2)).name],
            kernel_shape=list(window[1:3]),
            strides=list(params["window_strides"][1:3]),
            pads=[pads[1][0], pads[2][0], pads[1][1], pads[2][1]],
            **more,
        )
        if op == "AveragePool":  # JAX's is the sum
            name = graph.node("Mul", [name, graph.constant(np.float32(window[1] * window[2]))])
        return Value(name, context.shape, (0, 3, 1, 2))

    return rule


RULES: dict[str, Callable[..., Operand | list[Operand]]] = {
    "add": _add,
    "add_any": _add,
    "sub": _elementwise("Sub"),
    "mul": _multiply,
    "div": _elementwise("Div"),
    "rem": _remainder,
    "max": _maximum,
    "min": _elementwise("Min"),
    "pow": _elementwise("Pow"),
    "neg": _elementwise("Neg"),
    "abs": _elementwise("Abs"),
    "sign": _elementwise("Sign"),
    "floor": _elementwise("Floor"),
    "ceil": _elementwise("Ceil"),
    "exp": _elementwise("Exp"),
    "log": _elementwise("Log"),
    "tanh": _elementwise("Tanh"),
    "logistic": _elementwise("Sigmoid"),
    "erf": _elementwise("Erf"),
    "sqrt": _elementwise("Sqrt"),
    "eq": _elementwise("Equal"),
    "ne": _not_equal,
    "lt": _elementwise("Less"),
    "le": _elementwise("LessOrEqual"),
    "gt": _elementwise("Greater"),
    "ge": _elementwise("GreaterOrEqual"),
    "not": _elementwise("Not"),
    "and": _bitwise("And"),
    "or": _bitwise("Or"),
    "expm1": _expm1,
    "log1p": _log1p,
    "cumsum": _cumsum,
    "rsqrt": _rsqrt,
    "square": _square,
    "integer_pow": _integer_pow,
    "erfc": _erfc,
    "clamp": _clamp,
    "select_n": _select,
    "convert_element_type": _cast,
    "stop_gradient": _same,
    "copy": _same,
    "optimization_barrier": _same,
    "dim_as_value": _side,
    "iota": _iota,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "expand_dims": _reshape,
    "transpose": _transpose,
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "concatenate": _concatenate,
    "stack": _stack,
    "slice": _slice,
    "gather": _gather,
    "split": _split,
    "unstack": _unstack,
    "pad": _pad,
    "dot_general": _product,
    "conv_general_dilated": _convolution,
    "reduce_window_max": _pool("MaxPool"),
    "reduce_window_sum": _pool("AveragePool"),
}
