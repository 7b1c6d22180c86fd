"""Networks of every family as ONNX graphs, computed by onnxruntime; and the rules by themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest

from jaxvision import models
from jaxvision.data.contract import InputContract
from jaxvision.deploy.jaxpr import flatten
from jaxvision.deploy.onnx_graph import RULES, to_onnx
from jaxvision.errors import UserError
from jaxvision.ops.resize import evaluation_pixels
from jaxvision.tasks.common import network
from tests.models.published import SMALL


def computed(model: onnx.ModelProto, *arrays: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {given.name: array for given, array in zip(session.get_inputs(), arrays)})[0]


def both(function, *arrays, symbolic=None):
    """(onnxruntime's, JAX's) output of a function of arrays; `symbolic` are shapes for all of them."""
    shapes = symbolic or [a.shape for a in arrays]
    scope = jax.export.SymbolicScope()
    shapes = [jax.export.symbolic_shape(s, scope=scope) if isinstance(s, str) else s for s in shapes]
    specs = [jax.ShapeDtypeStruct(s, a.dtype) for s, a in zip(shapes, arrays)]
    model = to_onnx(flatten(function, *specs), [f"x{k}" for k in range(len(arrays))], ["y"])
    return computed(model, *arrays), np.asarray(jax.jit(function)(*arrays))


FIRST = ("resnet", "vit", "swin", "mobilenet", "mixer")  # by default; the others are slow
FAMILIES = [pytest.param(f, marks=() if f.partition(",")[0] in FIRST else pytest.mark.slow) for f in SMALL]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_of_every_family(family):
    """From crops, and from whole images of two sizes; any number of them; no leaf at its initial value."""
    name, options, size = SMALL[family]
    contract = InputContract(size=size, resize=size + 5)
    net = network(getattr(models, name)(classes=10, **options), contract)
    rng = np.random.default_rng(0)

    def random(leaf):
        return np.asarray(leaf + 0.02 * np.abs(rng.normal(size=leaf.shape)), np.float32)

    crop = jax.ShapeDtypeStruct((1, size, size, 3), np.uint8)
    shapes = jax.eval_shape(net.init, jax.random.key(0), crop)
    leaves = jax.tree.map(lambda s: rng.normal(0, 0.1, s.shape).astype(np.float32), shapes)
    params, extra = jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.abs(leaf) + 1 if str(path[-1].key) == "var" else random(leaf), leaves
    )
    images = [rng.integers(0, 256, (2, *sides, 3), np.uint8) for sides in ((size + 20, size + 41), (2 * size, size))]
    cases = {
        f"b, {size}, {size}, 3": ((lambda x: x), [rng.integers(0, 256, (n, size, size, 3), np.uint8) for n in (1, 3)]),
        "b, h, w, 3": ((lambda x: evaluation_pixels(x, contract)), images),
    }
    logits = jax.jit(lambda x: net.apply(params, extra, x)["logits"])
    for shape, (pixels, arrays) in cases.items():
        spec = jax.ShapeDtypeStruct(jax.export.symbolic_shape(shape), np.uint8)
        closed = flatten(lambda x, pixels=pixels: net.apply(params, extra, pixels(x))["logits"], spec)
        model = to_onnx(closed, ["images"], ["logits"], name)
        assert [d.dim_param or d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim] == ["b", 10]
        for array in arrays:
            want = np.asarray(logits(np.asarray(pixels(array))))
            np.testing.assert_allclose(computed(model, array), want, atol=1e-5 * np.abs(want).max())


def test_between_convolutions_nothing_is_transposed():
    model = models.resnet50(classes=10, depths=(1, 1, 1, 1), width=8)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
    spec = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, 32, 32, 3"), np.float32)
    graph = to_onnx(flatten(lambda x: model.apply(variables, x, train=False)["logits"], spec), ["x"], ["y"]).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("Transpose") == 1  # of what comes in
    assert kinds.count("Conv") == 17
    assert kinds.count("Relu") == 13
    assert "Expand" not in kinds


A, B = (np.random.default_rng(k).normal(size=(3, 4, 5)).astype(np.float32) for k in (0, 1))
ROW = np.arange(5, dtype=np.float32)


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: a * ROW + b / (1 + ROW[None, None]),
        lambda a, b: jnp.maximum(a, 0) + jnp.minimum(b, ROW) - jnp.clip(a, -0.5, 0.25),
        lambda a, b: jnp.where(a > b, a, 2 * b) + (a != b) + (a <= b) * (b >= 0.1),
        lambda a, b: jnp.exp(a) + jnp.log(b * b + 1) + jnp.tanh(a) + jax.nn.sigmoid(b) + jnp.sqrt(jnp.abs(a)),
        lambda a, b: jax.nn.softmax(a @ b.swapaxes(1, 2)),
        lambda a, b: jax.nn.gelu(a, approximate=False) + jax.lax.erfc(b) + jax.nn.silu(a),
        lambda a, b: jnp.einsum("abc,adc->bda", a, b),
        lambda a, b: jnp.einsum("abc,dbc->ad", a, b),
        lambda a, b: jnp.concatenate([a[:, :1], jnp.broadcast_to(ROW, (3, 2, 5)), b[:, 1:]], axis=1),
        lambda a, b: a[..., 2] + b[:, :, 0] * a[1, :, 3],
        lambda a, b: a[:, ::2, 1::2].reshape(3, -1).T + b[:, 1::2, ::3].reshape(3, -1).T.sum(),
        lambda a, b: jnp.pad(a, ((0, 0), (1, 2), (0, 1)), constant_values=3) - 1,
        lambda a, b: (
            jnp.roll(a, 2, axis=1) + a.max(axis=2, keepdims=True) - b.min(axis=(0, 1)) + a.mean((1, 2))[:, None, None]
        ),
        lambda a, b: jax.lax.rsqrt(a * a + 1) ** 3 + jnp.square(b) + jax.lax.integer_pow(a, 3),
        lambda a, b: jnp.mod(a, 0.7) + jax.lax.rem(a, jnp.float32(0.7)) + jnp.floor(b) + jnp.ceil(a) + jnp.sign(b),
        lambda a, b: (a.transpose(2, 0, 1) + 1).transpose(1, 2, 0) * b,
        lambda a, b: sum(k * part for k, part in enumerate(jnp.unstack(a, axis=1))) + jnp.split(b, [1, 3], 2)[1].sum(),
        lambda a, b: jnp.split(a, [1], 1)[0] + jnp.split(a, [1], 1)[1] * b[:, :3],
        lambda a, b: jnp.stack([a[:, 0], b[:, 1], 2 * a[:, 2]], axis=-1) + jnp.stack([a[0], b[0]], 1).sum(),
        lambda a, b: jax.nn.log_softmax(a) + jax.nn.log_sigmoid(b) + jnp.log1p(a * a) + jnp.cumsum(b, 1) + jnp.expm1(a),
        lambda a, b: jnp.expand_dims(a, 1).squeeze(1) + jax.lax.stop_gradient(b),
    ],
)
def test_rules(function):
    """Of known sizes, and with the first side unknown where the function allows it (all here do)."""
    got, want = both(function, A, B)
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-6)
    assert got.dtype == want.dtype


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: jnp.concatenate([jnp.broadcast_to(ROW, (a.shape[0], 1, 5)), a], 1),
        lambda a, b: a.reshape(a.shape[0], -1) @ np.ones((20, 2), np.float32),
        lambda a, b: jax.nn.softmax(jnp.einsum("bnd,bmd->bnm", a, b)) @ a,
        lambda a, b: a.mean(1, keepdims=True) + b[:, 2:, ::2].max(-1)[:, None, :1],
        lambda a, b: a[:, 1:3, ::2] + b[:, 3, 4][:, None, None] + b[:, ::2, 1:4],
        lambda a, b: a[:, [1, 3]] * b[:, :2],
        lambda a, b: a * jnp.arange(a.shape[0], dtype=jnp.float32)[:, None, None] + jnp.float32(a.shape[0]),
    ],
)
def test_rules_with_an_unknown_side(function):
    got, want = both(function, A, B, symbolic=["n, 4, 5", "n, 4, 5"])
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [((1, 1), (1, 1)), ((0, 1), (2, 0))])
def test_convolutions_and_pools(stride, padding):
    x = np.random.default_rng(0).normal(size=(2, 9, 8, 6)).astype(np.float32)
    kernel = np.random.default_rng(1).normal(size=(3, 3, 2, 12)).astype(np.float32)

    def function(x):
        how = dict(dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=3)
        y = jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, **how)
        around = ((0, 0), *padding, (0, 0))
        y = jax.lax.reduce_window(y, -np.inf, jax.lax.max, (1, 3, 3, 1), (1, stride, 1, 1), around)
        return jax.lax.reduce_window(y, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 1, 1, 1), "VALID")

    got, want = both(function, x)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_what_has_no_rule_is_named():
    with pytest.raises(UserError, match="the network needs the primitive sort, for which there is no ONNX here: use"):
        both(lambda a: jnp.sort(a), A)
    with pytest.raises(UserError, match="a gather at places that are not constant"):
        both(lambda a: a[jnp.floor(a[0, 0, 0:1]).astype(jnp.int32)], A)
    with pytest.raises(UserError, match="a gather at places that are no grid"):
        both(lambda a: a[:, np.array([0, 1, 3])], A)


def test_every_rule_is_of_a_primitive_that_there_is():
    """A misspelt name would never be asked for."""
    import jax.extend.core.primitives as known

    names = {p.name for p in vars(known).values() if hasattr(p, "multiple_results")}
    from jax._src.export import shape_poly

    names.add(shape_poly.dim_as_value_p.name)
    from jax._src.ad_util import add_any_p, stop_gradient_p

    names |= {add_any_p.name, stop_gradient_p.name if hasattr(stop_gradient_p, "name") else "stop_gradient"}
    assert set(RULES) - names <= {"optimization_barrier", "expand_dims", "stop_gradient", "split", "stack", "unstack"}


def kinds(function, *shapes):
    closed = flatten(function, *(jax.ShapeDtypeStruct(s, np.float32) for s in shapes))
    names = [f"x{k}" for k in range(len(shapes))]
    return [node.op_type for node in to_onnx(closed, names, ["y"]).graph.node]


def normalised(x, scale=1 + ROW, bias=ROW, epsilon=1e-3, axis=-1, of=None):
    mean = x.mean(axis, keepdims=True)
    squares = jnp.square(x if of is None else of).mean(axis, keepdims=True)
    variance = jnp.maximum(0.0, squares - jnp.square(mean))
    return (x - mean) * (jax.lax.rsqrt(variance + epsilon) * scale) + bias


def test_a_layer_norm_and_a_softmax_are_one_operator():
    both_in_one = lambda a: jax.nn.softmax(normalised(a))  # noqa: E731
    assert kinds(both_in_one, A.shape) == ["LayerNormalization", "Softmax", "Identity"]
    got, want = both(both_in_one, 3 + A)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    gelu = kinds(lambda a: jax.nn.gelu(a, approximate=False), A.shape)
    assert "Neg" not in gelu
    assert gelu.count("Erf") == 1


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: normalised(a, of=b),  # another's squares
        lambda a, b: normalised(a, axis=1),  # another axis
        lambda a, b: normalised(a, scale=np.float32(2), bias=np.float32(1)),
        lambda a, b: normalised(a, bias=B),
        lambda a, b: jax.nn.softmax(a, axis=1),
        lambda a, b: (
            jnp.exp(a - b.max(-1, keepdims=True)) / jnp.exp(a - b.max(-1, keepdims=True)).sum(-1, keepdims=True)
        ),
        lambda a, b: jnp.exp(a - a.max(-1, keepdims=True)) / jnp.exp(b).sum(-1, keepdims=True),
        lambda a, b: (
            jnp.exp(a - a.max(-1, keepdims=True)) / jnp.exp(a - a.max(-1, keepdims=True)).sum(1, keepdims=True)
        ),
    ],
)
def test_what_only_looks_like_one_is_computed_as_it_stands(function):
    found = kinds(function, A.shape, A.shape)
    assert "LayerNormalization" not in found
    assert "Softmax" not in found
    got, want = both(function, A, B)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
