"""What every task and every wrapper must keep to, over tasks.TASKS and tasks.WRAPPERS.

A new task or wrapper adds a line to CASES; a test fails until it does.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxvision import models, targets, tasks
from jaxvision.data.contract import InputContract
from jaxvision.deploy.inference import outputs_of
from jaxvision.runtime import sharding
from jaxvision.task import leaf_name
from jaxvision.training import build
from jaxvision.training.step import TrainState, init_state, make_step

CONTRACT = InputContract(size=8, resize=8)
CLASSES = 3


def model(norm, outputs=CLASSES):
    return models.resnet18(classes=outputs, depths=(1,), width=8, stem="small", norm=norm, zero_init=False)


def classification(norm, **options):
    return tasks.classification(model(norm), CONTRACT, **options)


def transformer():
    return models.vit_tiny_patch16_224(classes=CLASSES, patch=2, width=8, depth=1, heads=2, positions="sincos")


def values():
    """Labels in units far from those of the network's outputs."""
    return np.array([[90.0, 2.0], [100.0, 2.001], [110.0, 2.004]], np.float32)


# name -> norm -> Task
CASES = {
    "byol": lambda norm: tasks.byol(model(norm), CONTRACT, hidden=16, width=8, norm=norm),
    "dino": lambda norm: tasks.dino(model(norm), CONTRACT, outputs=16, hidden=16, bottleneck=8),
    "mae": lambda norm: tasks.mae(transformer(), CONTRACT, decoder_width=8, decoder_depth=1, decoder_heads=2),
    "moco": lambda norm: tasks.moco(model(norm), CONTRACT, widths=(16, 8), norm=norm),
    "rotation": lambda norm: tasks.rotation(model(norm), CONTRACT),
    "simclr": lambda norm: tasks.simclr(model(norm), CONTRACT, widths=(16, 8), norm=norm),
    "simsiam": lambda norm: tasks.simsiam(model(norm), CONTRACT, width=16, bottleneck=8, norm=norm),
    "binary": lambda norm: tasks.binary(model(norm, 1), CONTRACT, label_smoothing=0.1, pos_weight=2.0),
    "multilabel": lambda norm: tasks.multilabel(model(norm), CONTRACT, focal=1.0, pos_weight=(1.0, 2.0, 3.0)),
    "ordinal": lambda norm: tasks.ordinal(model(norm, 1), CONTRACT, classes=CLASSES),
    "regression": lambda norm: tasks.regression(model(norm, 2), CONTRACT, loss="huber", classes=2, labels=values),
    "classification": lambda norm: classification(norm, label_smoothing=0.1),
    "ema": lambda norm: tasks.ema(classification(norm), decay=0.9),
    "mixup": lambda norm: tasks.mixup(classification(norm), classes=CLASSES, alpha=0.2),
    "cutmix": lambda norm: tasks.cutmix(classification(norm), classes=CLASSES, alpha=1.0),
    "adversarial": lambda norm: tasks.adversarial(classification(norm), epsilon=4.0, steps=2),
    "l2_sp": lambda norm: tasks.l2_sp(classification(norm), strength=0.1, head_strength=1e-4),
    "linear_probe": lambda norm: tasks.linear_probe(model(norm), CONTRACT, classes=CLASSES, norm=norm == "batch"),
    "distillation": lambda norm: tasks.distillation(
        model(norm), CONTRACT, classification(norm), teacher="some", temperature=2.0, alpha=10.0
    ),
}
NAMES = sorted(CASES)
# Tasks whose loss is a mean over samples that do not see each other: what accumulation leaves unchanged. Mixing
# pairs rows within a micro-batch, and a random start draws for the shape it is given.
MEANS = [
    *("binary", "classification", "distillation", "ema", "l2_sp", "linear_probe", "multilabel", "ordinal", "regression")
]
# name -> (labels of as many rows, what is predicted, how the predictions are read as labels); else those of a class.
LABELLED = {
    "binary": (lambda rows: np.arange(rows, dtype=np.int32) % 2, ("logits", 2), lambda x: np.argmax(x, -1)),
    "multilabel": (
        lambda rows: np.array([[i % 2, i % 3 == 0, i % 4 < 2] for i in range(rows)], np.float32),
        ("logits", CLASSES),
        lambda x: x > 0,
    ),
    "regression": (lambda rows: values()[np.arange(rows) % 3], ("values", 2), lambda x: np.round(x * [0.1, 1000])),
}
CLASS = (lambda rows: np.arange(rows, dtype=np.int32) % CLASSES, ("logits", CLASSES), lambda x: np.argmax(x, -1))
# How many views, and smaller ones, the tasks see that compare views.
VIEWS = {"byol": (2, 0), "dino": (2, 1), "moco": (2, 0), "simclr": (2, 0), "simsiam": (2, 0)}


def test_every_task_is_here():
    assert set(CASES) == {*tasks.TASKS, *tasks.WRAPPERS} == set(tasks.__all__)


@pytest.mark.parametrize("name", tasks.TASKS)
def test_a_task_says_what_its_factory_declares(name):
    factory, task = getattr(tasks, name), CASES[name]("none")
    assert (task.learns, task.predicts, task.names) == (factory.learns, factory.predicts, factory.names)
    assert factory.learns is None or factory.learns in targets.every()
    if factory.predicts is None:
        return
    state, images = jax.eval_shape(task.init, jax.random.key(0), batch(name=name)), {"image": batch()["image"]}
    made = jax.eval_shape(lambda *state: outputs_of(task, task.predict(*state, images)), *state)
    classes = made[factory.predicts.main].shape[1]
    assert {k: v.shape[1:] for k, v in made.items()} == factory.predicts.outputs(classes)


def batch(rows=8, seed=0, name=""):
    """For the task `name`; of one image a row unless it compares views."""
    rng = np.random.default_rng(seed)
    count, smaller = VIEWS.get(name, (0, 0))
    shape = (rows, count, 8, 8, 3) if count else (rows, 8, 8, 3)
    local = {"local": rng.integers(0, 256, (rows, smaller, 4, 4, 3)).astype(np.uint8)} if smaller else {}
    return {
        "image": rng.integers(0, 256, shape).astype(np.uint8),
        **local,
        "label": LABELLED.get(name, CLASS)[0](rows),
        "index": np.arange(rows, dtype=np.int32),
        "mask": np.ones(rows, bool),
    }


@functools.cache
def ready(name, norm="batch"):
    """The task, its fresh (params, extra), and its compiled loss with gradients."""
    task = CASES[name](norm)
    params, extra = build.jit_once(task.init)(jax.random.key(0), batch(name=name))

    @jax.jit
    def gradients(params, extra, data):
        return jax.value_and_grad(task.loss, has_aux=True)(
            params, extra, data, key=jax.random.key(1), step=jnp.int32(0)
        )

    return task, params, extra, gradients


def on_devices(count, name, data):
    """The loss with gradients of 16 rows split over so many devices, without BatchNorm."""
    _, params, extra, gradients = ready(name, "none")
    mesh = sharding.make_mesh(devices=jax.devices()[:count])
    rows = sharding.put_batch(data, sharding.batch_sharding(mesh), 16)
    return gradients(*jax.device_put((params, extra), sharding.replicated(mesh)), rows)


@pytest.mark.parametrize("name", NAMES)
def test_loss_is_finite_and_structure_is_kept(name):
    task, params, extra, gradients = ready(name)
    (loss, (after, logs)), _ = gradients(params, extra, batch(name=name))
    assert loss.shape == ()
    assert loss.dtype == jnp.float32
    assert jnp.isfinite(loss)
    assert all(v.shape == () and v.dtype == jnp.float32 for v in logs.values())
    after = jax.eval_shape(task.after_step, params, after, jnp.int32(0))
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), extra, after)
    assert all(jax.tree.leaves(same))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter_that_is_not_frozen(name):
    task, params, extra, gradients = ready(name)
    _, grads = gradients(params, extra, batch(name=name))
    assert "model" in params
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        assert np.all(np.isfinite(g)), path
        frozen = any(re.search(pattern, leaf_name(path)) for pattern in task.frozen)
        assert np.any(g != 0) != frozen, path


@pytest.mark.parametrize("name", NAMES)
def test_overfits_8_images(name):
    task = CASES[name]("batch")
    if name == "dino":  # its loss says nothing while its goals move
        still = dict(momentum=1.0, centre_momentum=1.0, teacher_temperature=0.2, teacher_temperature_start=0.2)
        task = tasks.dino(model("batch"), CONTRACT, outputs=16, hidden=16, bottleneck=8, **still)
    tx = optax.adam(0.1 if name == "linear_probe" else 0.01)
    state = build.jit_once(lambda k, b: init_state(task, tx, k, b, None))(jax.random.key(0), batch(name=name))
    step = jax.jit(make_step(task, tx, seed=0))
    data = jax.tree.map(jnp.asarray, batch(name=name))
    losses = []
    for _ in range(70):
        state, logs = step(state, data)
        losses.append(float(logs["loss"]))
    if (
        getattr(getattr(tasks, name), "learns", targets.class_) is None
    ):  # a lower bound, not 0, is where these losses end: see tests/losses
        assert np.mean(losses[-10:]) < losses[0] - 0.1 * abs(losses[0])
        return
    _, (key, _), read = LABELLED.get(name, CLASS)
    predicted = np.asarray(jax.jit(task.predict)(state.params, state.extra, data)[key])
    label = np.asarray(data["label"])
    np.testing.assert_array_equal(read(predicted), read(label) if key == "values" else label)


@pytest.mark.parametrize("name", NAMES)
def test_padding_is_ignored(name):
    padded, garbage = batch(16, name=name), batch(16, seed=1, name=name)
    garbage["label"] = garbage["label"][::-1].copy()
    padded["mask"] = garbage["mask"] = np.arange(16) < 13
    for key in padded.keys() - {"mask"}:
        garbage[key][:13] = padded[key][:13]
    (one, _), grads_one = on_devices(1, name, padded)
    (two, _), grads_two = on_devices(1, name, garbage)
    assert one == two
    jax.tree.map(np.testing.assert_array_equal, grads_one, grads_two)


@pytest.mark.parametrize("name", NAMES)
def test_1_device_equals_8(name):
    results = []
    for count in (1, 8):
        (loss, _), grads = on_devices(count, name, batch(16, name=name))
        results.append((float(loss), jax.device_get(grads)))
    assert results[0][0] == pytest.approx(results[1][0], rel=5e-7, abs=1e-6)  # float32 has 7 digits
    difference = optax.global_norm(jax.tree.map(np.subtract, results[0][1], results[1][1]))
    assert difference <= 1e-3 * optax.global_norm(results[0][1])


@pytest.mark.parametrize("name", [n for n in NAMES if n in MEANS])
def test_accumulation_1_equals_4(name):
    task, params, extra, _ = ready(name, "none")
    tx = optax.sgd(0.1)
    data = batch(name=name)
    state = TrainState(jnp.int32(0), params, extra, tx.init(params))
    one, logs_one = jax.jit(make_step(task, tx, seed=0))(state, data)
    four, logs_four = jax.jit(make_step(task, tx, seed=0, accumulate=4))(state, data)
    assert float(logs_one["loss"]) == pytest.approx(float(logs_four["loss"]), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one, four)


@pytest.mark.parametrize("name", NAMES)
def test_given_leaves_override_fresh_ones(name):
    task, params, before, _ = ready(name)
    first, other = ("conv_proj", "ln") if name == "mae" else ("conv1", "bn1")
    kernel = np.full_like(params["model"][first]["kernel"], 0.25)
    given = {"params": {"model": {first: {"kernel": kernel}}}}
    if before["model"]:
        given["extra"] = {"model": {"batch_stats": {"bn1": {"mean": np.full(8, 0.5, np.float32)}}}}
    init = build.jit_once(task.init)
    new, extra = init(jax.random.key(0), batch(name=name), given)
    np.testing.assert_array_equal(new["model"][first]["kernel"], kernel)
    if before["model"]:
        np.testing.assert_array_equal(extra["model"]["batch_stats"]["bn1"]["mean"], 0.5)
    np.testing.assert_array_equal(new["model"][other]["scale"], params["model"][other]["scale"])
    for copy in ("ema", "target"):  # copies are made after loading
        if copy in extra:
            np.testing.assert_array_equal(extra[copy]["params"]["model"][first]["kernel"], kernel)
    for wrong, words in (
        ({first: {"kernel": kernel[:1]}}, f"params/model/{first}/kernel"),
        ({"cnov1": {"kernel": kernel}}, "params/model/cnov1/kernel has no place"),
    ):
        with pytest.raises(ValueError, match=words):
            jax.eval_shape(task.init, jax.random.key(0), batch(name=name), {"params": {"model": wrong}})


@pytest.mark.parametrize("name", NAMES)
def test_predict_has_a_row_a_sample(name):
    task, params, extra, _ = ready(name)
    out = jax.eval_shape(task.predict, params, extra, {"image": batch()["image"]})
    assert out["features"].shape == (8, 8)
    if getattr(getattr(tasks, name), "learns", targets.class_) is not None:
        key, width = LABELLED.get(name, CLASS)[1]
        assert (out[key].shape, out[key].dtype) == ((8, width), jnp.float32)
    assert all(v.shape[0] == 8 for v in out.values())
