"""Published sizes, torch's geometry, gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvision import models


def init(model, size=64):
    return jax.eval_shape(lambda k, x: model.init(k, x, train=False), jax.random.key(0), jnp.zeros((1, size, size, 3)))


@pytest.mark.parametrize(("name", "top"), [("resnet18", 512), ("resnet50", 2048)])
def test_stages(name, top):
    model = getattr(models, name)(classes=10, dtype=jnp.bfloat16)
    variables = init(model, 65)
    out = jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, jnp.zeros((2, 65, 65, 3)))
    # torch: floor((n + 2p - k) / s) + 1 at each stride of 2: 65 -> 33 -> 17, 9, 5, 3
    assert {k: v.shape for k, v in out.items()} == {
        "c2": (2, 17, 17, top // 8), "c3": (2, 9, 9, top // 4), "c4": (2, 5, 5, top // 2), "c5": (2, 3, 3, top),
        "features": (2, top), "logits": (2, 10),
    }  # fmt: skip
    assert out["c5"].dtype == jnp.bfloat16
    assert out["features"].dtype == out["logits"].dtype == jnp.float32
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(variables))


def test_small_stem_keeps_the_resolution():
    model = models.resnet18(classes=10, stem="small", width=8)
    out = jax.eval_shape(lambda v, x: model.apply(v, x, train=False), init(model, 16), jnp.zeros((1, 16, 16, 3)))
    assert out["c2"].shape == (1, 16, 16, 8)
    assert out["c5"].shape == (1, 2, 2, 64)


def test_strided_convolution_pads_as_torch():
    """A 3x3 stride-2 convolution of an even-sized image reads from pixel -1 in torch; "SAME" reads from 0."""
    model = models.resnet18(classes=2, depths=(1, 1), width=4, stem="small", norm="none")
    image = np.zeros((1, 8, 8, 3), np.float32)
    variables = model.init(jax.random.key(0), image, train=False)
    params = jax.tree.map(np.array, variables["params"])
    kernel = np.zeros((3, 3, 4, 8), np.float32)
    kernel[0, 0, 0, 0] = 1.0  # the output at (i, j) is the input at (2i - 1, 2j - 1)
    params["layer2_0"]["conv1"]["kernel"] = kernel
    params["layer2_0"]["conv1"]["bias"] = np.zeros(8, np.float32)
    x = np.arange(64, dtype=np.float32).reshape(1, 8, 8, 1).repeat(4, -1)
    from jaxvision.models.resnet import BasicBlock, _conv, _no_norm

    conv = partial(_conv, bias=True, dtype=jnp.float32)
    block = BasicBlock(channels=8, stride=2, conv=conv, norm=_no_norm, zero_init=False)
    _, seen = block.apply({"params": params["layer2_0"]}, x, capture_intermediates=True)
    got = np.asarray(seen["intermediates"]["conv1"]["__call__"][0])[0, :, :, 0]
    want = np.zeros((4, 4))
    want[1:, 1:] = x[0, 1:7:2, 1:7:2, 0]
    np.testing.assert_array_equal(got, want)


def test_zero_init_makes_blocks_the_identity():
    model = models.resnet18(classes=3, depths=(2,), width=4, stem="small")
    params = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)["params"]
    assert np.all(params["layer1_0"]["bn2"]["scale"] == 0)
    assert np.all(params["layer1_0"]["bn1"]["scale"] == 1)


def test_wrong_option_is_named():
    with pytest.raises(ValueError, match="stem 'tiny'"):
        init(models.resnet18(classes=2, stem="tiny"))
