"""Leaves for another size of image, patch or number of channels."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

from jaxvision import models
from jaxvision.errors import UserError
from jaxvision.weights import torch
from jaxvision.weights.plan import Source, match
from jaxvision.weights.resize import resize

RNG = np.random.default_rng(0)


def random(*shape):
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_positions_keep_the_prefix_and_a_parabola(prefix):
    """A parabola over the grid is the same on the finer one, away from the border: Keys's cubic gives those exactly,
    and straight lines between the old positions would miss it by 1e-3. The prefix is untouched."""

    def parabola(side):
        rows, columns = (np.mgrid[:side, :side] + 0.5) / side
        return (2 * rows - 3 * columns + rows**2).astype(np.float32)

    first = random(1, prefix, 1)
    array = np.concatenate([first, parabola(14).reshape(1, -1, 1)], 1)
    made, how = resize("params/model/pos_embedding", array, (1, prefix + 24 * 24, 1))
    np.testing.assert_array_equal(made[:, :prefix], first)
    got = made[0, prefix:, 0].reshape(24, 24)
    np.testing.assert_allclose(got[4:-4, 4:-4], parabola(24)[4:-4, 4:-4], atol=1e-5)
    assert how == "bicubic from 14 x 14 to 24 x 24 positions"


@pytest.mark.parametrize(("old", "new"), [(14, 14), (14, 24)])
def test_a_class_token_without_a_position_gets_zeros(old, new):
    """As in DeiT III and big_vision: added to the token, they are the same function."""
    array = random(1, old * old, 4)
    made, how = resize("params/model/pos_embedding", array, (1, 1 + new * new, 4))
    assert not made[:, 0].any()
    want = array if new == old else resize("pos_embedding", array, (1, new * new, 4))[0]
    np.testing.assert_array_equal(made[:, 1:], want)
    assert "zeros for the class token" in how


def test_positions_that_are_no_square_are_refused():
    assert resize("pos_embedding", random(1, 197, 4), (1, 198 + 24, 4)) is None
    assert resize("pos_embedding", random(1, 197, 4), (1, 577, 8)) is None


def test_relative_tables():
    made, how = resize("x/relative_position_bias_table", np.ones((169, 3), np.float32), (529, 3))
    np.testing.assert_allclose(made, np.ones((529, 3)), atol=1e-6)
    assert how == "bicubic from windows of 7 to 12"


@pytest.mark.parametrize(("old", "new"), [(3, 1), (1, 3), (3, 4), (1, 4)])
def test_first_convolutions_answer_grey_alike(old, new):
    """All channels equal: the response is the same whatever their number."""
    kernel = random(7, 7, old, 8)
    made, _ = resize("conv1/kernel", kernel, (7, 7, new, 8))
    if old == 3 and new == 4:  # the fourth repeats the first: alike only for kernels alike in their colours
        kernel = np.repeat(kernel[:, :, :1], 3, 2)
        made, _ = resize("conv1/kernel", kernel, (7, 7, new, 8))
    np.testing.assert_allclose(made.sum(2), kernel.sum(2), rtol=1e-5, atol=1e-5)
    assert resize("conv1/kernel", random(7, 7, 5, 8), (7, 7, 2, 8)) is None


def test_larger_patches_give_the_same_tokens():
    """FlexiViT's law: of a patch that is enlarged bilinearly the new kernel makes what the old made of the patch."""
    kernel, patch = random(4, 4, 3, 8), random(4, 4, 3)
    made, _ = resize("conv_proj/kernel", kernel, (8, 8, 3, 8))
    larger = np.asarray(jax.image.resize(patch, (8, 8, 3), "bilinear"))
    np.testing.assert_allclose(
        np.einsum("hwc,hwcd->d", larger, made), np.einsum("hwc,hwcd->d", patch, kernel), rtol=1e-3
    )


def test_whatever_else_differs_is_refused():
    assert resize("conv1/kernel", random(3, 3, 3, 8), (7, 7, 3, 8)) is None
    assert resize("fc/kernel", random(8, 10), (8, 11)) is None
    assert resize("bn1/scale", random(8), (4,)) is None


def tree(*names):
    """Abstract leaves f32[2] by name, nested."""
    return traverse_util.unflatten_dict({n: jax.ShapeDtypeStruct((2,), np.float32) for n in names}, sep="/")


def source(*names):
    return Source({n: random(2) for n in names})


HEAD = {"params/model/fc/kernel", "params/model/fc/bias"}


@pytest.mark.parametrize("same_classes", [True, False])
def test_a_source_without_a_head_leaves_it_afresh(same_classes):
    fresh = tree("params/model/conv/kernel", *HEAD)
    plan = match(fresh, source("params/model/conv/kernel"), HEAD, same_classes)
    assert plan.loaded == ["params/model/conv/kernel"]
    assert plan.reinitialised == sorted(HEAD)
    assert plan.dropped == []
    assert "reinitialised   params/model/fc/bias" in plan.table()
    assert "fc" not in plan.given["params"]["model"]


def test_half_a_head_is_an_error():
    fresh = tree("params/model/conv/kernel", *HEAD)
    with pytest.raises(UserError, match="missing in the source: params/model/fc/kernel"):
        match(fresh, source("params/model/conv/kernel", "params/model/fc/bias"), HEAD, True)


@pytest.mark.parametrize("same_classes", [True, False])
def test_a_task_without_the_networks_head_drops_the_sources(same_classes):
    """A linear probe of a classifier's features: its own layer begins afresh, the classifier's is not an obstacle."""
    fresh = tree("params/model/conv/kernel", "params/head/kernel", "extra/model/batch_stats/bn/mean")
    theirs = source("params/model/conv/kernel", "extra/model/batch_stats/bn/mean", *HEAD)
    plan = match(fresh, theirs, HEAD | {"params/head/kernel"}, same_classes)
    assert plan.loaded == ["extra/model/batch_stats/bn/mean", "params/model/conv/kernel"]
    assert plan.reinitialised == ["params/head/kernel"]
    assert plan.dropped == sorted(HEAD)


def test_what_lies_beside_the_network_is_the_tasks_own():
    """From self-supervision to a probe and back: the projector is dropped, or starts afresh; both are listed."""
    net, projector = "params/model/conv/kernel", ["params/projector/0/kernel", "params/projector/1/kernel"]
    plan = match(tree(net, "params/head/kernel"), source(net, *projector), {"params/head/kernel"}, True)
    assert (plan.loaded, plan.reinitialised, plan.dropped) == ([net], ["params/head/kernel"], projector)
    plan = match(tree(net, *projector), source(net, "params/head/kernel"), set(), True)
    assert (plan.loaded, plan.reinitialised, plan.dropped) == ([net], projector, ["params/head/kernel"])
    with pytest.raises(UserError, match="missing in the source: params/projector/1/kernel"):
        match(tree(net, *projector), source(net, projector[0]), set(), True)
    with pytest.raises(UserError, match="of no use here: params/model/other/kernel"):
        match(tree(net), source(net, "params/model/other/kernel"), set(), True)


def test_the_head_of_the_same_classes_still_crosses():
    fresh = tree("params/model/conv/kernel", *HEAD)
    plan = match(fresh, source("params/model/conv/kernel", *HEAD), HEAD, True)
    assert (len(plan.loaded), plan.reinitialised, plan.dropped) == (3, [], [])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "resized", "fresh"),
    [
        ("vit_b_16", {"data.size": 384, "data.resize": 384},
         ["params/model/pos_embedding: [1, 197, 768] -> [1, 577, 768], bicubic from 14 x 14 to 24 x 24 positions"], []),
        ("resnet50", {"data.channels": 1, "data.mean": "(0.5,)", "data.std": "(0.25,)", "classes": 10},
         ["params/model/conv1/kernel: [7, 7, 3, 64] -> [7, 7, 1, 64], summed over the colours"],
         ["params/model/fc/bias", "params/model/fc/kernel"]),
    ],
)  # fmt: skip
def test_real_networks_are_adapted_and_train(tmp_path, command, name, options, resized, fresh):
    """ViT-B/16 from 224 to 384 px; ResNet-50 with 10 classes and 1 channel: the plan names each changed leaf."""
    origin = models.origins(name)["torchvision"]
    model = getattr(models, name)(classes=1000)
    shapes = jax.eval_shape(
        lambda k: model.init(k, np.zeros((1, 224, 224, 3), np.float32), train=False), jax.random.key(0)
    )
    leaves = {n: 0.02 * random(*leaf.shape) for n, leaf in traverse_util.flatten_dict(shapes, sep="/").items()}
    leaves |= {n: np.abs(v) + 1 for n, v in leaves.items() if n.endswith("/var")}
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(torch.to_state_dict(leaves, origin, model), path)
    classes = options.pop("classes", 1000)
    config = tmp_path / "config.py"
    config.write_text("import jaxvision.config\nconfig = jaxvision.config.default()\n")
    done = command(
        "jaxvision.train", "--config", str(config), "--workdir", str(tmp_path / "run"),
        f"--config.data.train=fake:1000x400?classes={classes}", "--config.steps=2", "--config.batch_size=2",
        f"--config.model.name={name}", f"--config.init=torchvision:{name}.IMAGENET1K_V1={path}",
        *("--config.data.transforms=(('resize', {}), ('center_crop', {}))", "--config.optim.lr=0.001"),
        *(f"--config.{key}={value}" for key, value in options.items()), timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    plan = json.loads((tmp_path / "run" / "load_plan.json").read_text())
    assert plan["resized"] == resized
    assert plan["reinitialised"] == fresh
    assert all(line in done.stdout for line in [*resized, *fresh])
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(losses).all()
