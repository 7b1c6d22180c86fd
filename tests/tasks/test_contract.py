"""What every task and every wrapper must keep to, over tasks.TASKS and tasks.WRAPPERS.

A new task or wrapper adds a line to CASES; a test fails until it does.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxvision import models, sharding, tasks
from jaxvision.data.contract import InputContract
from jaxvision.data.sources.common import KINDS
from jaxvision.step import init_state, make_step

CONTRACT = InputContract(size=8, resize=8)
CLASSES = 3


def model(norm, outputs=CLASSES):
    return models.resnet18(classes=outputs, depths=(1,), width=8, stem="small", norm=norm, zero_init=False)


def classification(norm, **options):
    return tasks.classification(model(norm), CONTRACT, **options)


def values():
    """Labels in units far from those of the network's outputs."""
    return np.array([[90.0, 2.0], [100.0, 2.001], [110.0, 2.004]], np.float32)


# name -> norm -> Task
CASES = {
    "binary": lambda norm: tasks.binary(model(norm, 1), CONTRACT, label_smoothing=0.1, pos_weight=2.0),
    "multilabel": lambda norm: tasks.multilabel(model(norm), CONTRACT, focal=1.0, pos_weight=(1.0, 2.0, 3.0)),
    "ordinal": lambda norm: tasks.ordinal(model(norm, 1), CONTRACT, classes=CLASSES),
    "regression": lambda norm: tasks.regression(model(norm, 2), CONTRACT, loss="huber", classes=2, labels=values),
    "classification": lambda norm: classification(norm, label_smoothing=0.1),
    "ema": lambda norm: tasks.ema(classification(norm), decay=0.9),
    "mixup": lambda norm: tasks.mixup(classification(norm), classes=CLASSES, alpha=0.2),
    "cutmix": lambda norm: tasks.cutmix(classification(norm), classes=CLASSES, alpha=1.0),
    "adversarial": lambda norm: tasks.adversarial(classification(norm), epsilon=4.0, steps=2),
}
NAMES = sorted(CASES)
# Tasks whose loss is a mean over samples that do not see each other: what accumulation leaves unchanged. Mixing
# pairs rows within a micro-batch, and a random start draws for the shape it is given.
MEANS = ["binary", "classification", "ema", "multilabel", "ordinal", "regression"]
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


def test_every_task_is_here():
    assert set(CASES) == {*tasks.TASKS, *tasks.WRAPPERS} == set(tasks.__all__)
    assert set(tasks.OUTPUTS) <= set(tasks.LABELS) <= set(tasks.TASKS)
    assert set(tasks.LABELS.values()) <= set(KINDS)


def batch(rows=8, seed=0, name=""):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (rows, 8, 8, 3)).astype(np.uint8),
        "label": LABELLED.get(name, CLASS)[0](rows),
        "index": np.arange(rows, dtype=np.int32),
        "mask": np.ones(rows, bool),
    }


@functools.cache
def ready(name, norm="batch"):
    """The task, its fresh (params, extra), and its compiled loss with gradients."""
    task = CASES[name](norm)
    params, extra = jax.jit(task.init)(jax.random.key(0), batch(name=name))

    @jax.jit
    def gradients(params, extra, data):
        return jax.value_and_grad(task.loss, has_aux=True)(
            params, extra, data, key=jax.random.key(1), step=jnp.int32(0)
        )

    return task, params, extra, gradients


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
def test_gradients_reach_every_parameter(name):
    _, params, extra, gradients = ready(name)
    _, grads = gradients(params, extra, batch(name=name))
    assert "model" in params
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        assert np.all(np.isfinite(g)), path
        assert np.abs(g).max() > 0, path


@pytest.mark.parametrize("name", NAMES)
def test_overfits_8_images(name):
    task = CASES[name]("batch")
    tx = optax.adam(0.01)
    data = jax.tree.map(jnp.asarray, batch(name=name))
    state = init_state(task, tx, jax.random.key(0), data, None)
    step = jax.jit(make_step(task, tx, seed=0))
    for _ in range(100):
        state, _ = step(state, data)
    _, (key, _), read = LABELLED.get(name, CLASS)
    predicted = np.asarray(jax.jit(task.predict)(state.params, state.extra, data)[key])
    label = np.asarray(data["label"])
    np.testing.assert_array_equal(read(predicted), read(label) if key == "values" else label)


@pytest.mark.parametrize("name", NAMES)
def test_padding_is_ignored(name):
    _, params, extra, gradients = ready(name, "none")
    padded, garbage = batch(name=name), batch(seed=1, name=name)
    garbage["label"] = garbage["label"][::-1].copy()
    padded["mask"] = garbage["mask"] = np.arange(8) < 6
    for key in ("image", "label", "index"):
        garbage[key][:6] = padded[key][:6]
    (one, _), grads_one = gradients(params, extra, padded)
    (two, _), grads_two = gradients(params, extra, garbage)
    assert one == two
    jax.tree.map(np.testing.assert_array_equal, grads_one, grads_two)


@pytest.mark.parametrize("name", NAMES)
def test_1_device_equals_8(name):
    _, params, extra, gradients = ready(name, "none")
    results = []
    for devices in (jax.devices()[:1], jax.devices()[:8]):
        mesh = sharding.make_mesh(devices=devices)
        data = sharding.put_batch(batch(16, name=name), sharding.batch_sharding(mesh), 16)
        copies = jax.device_put((params, extra), sharding.replicated(mesh))
        (loss, _), grads = gradients(*copies, data)
        results.append((float(loss), jax.device_get(grads)))
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-6)
    difference = optax.global_norm(jax.tree.map(np.subtract, results[0][1], results[1][1]))
    assert difference <= 1e-3 * optax.global_norm(results[0][1])


@pytest.mark.parametrize("name", MEANS)
def test_accumulation_1_equals_4(name):
    task = CASES[name]("none")
    tx = optax.sgd(0.1)
    data = batch(name=name)
    state = init_state(task, tx, jax.random.key(0), data, None)
    one, logs_one = jax.jit(make_step(task, tx, seed=0))(state, data)
    four, logs_four = jax.jit(make_step(task, tx, seed=0, accumulate=4))(state, data)
    assert float(logs_one["loss"]) == pytest.approx(float(logs_four["loss"]), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one, four)


@pytest.mark.parametrize("name", NAMES)
def test_given_leaves_override_fresh_ones(name):
    task, params, _, _ = ready(name)
    kernel = np.full_like(params["model"]["conv1"]["kernel"], 0.25)
    mean = np.full(8, 0.5, np.float32)
    given = {
        "params": {"model": {"conv1": {"kernel": kernel}}},
        "extra": {"model": {"batch_stats": {"bn1": {"mean": mean}}}},
    }
    new, extra = task.init(jax.random.key(0), batch(), given)
    np.testing.assert_array_equal(new["model"]["conv1"]["kernel"], kernel)
    np.testing.assert_array_equal(extra["model"]["batch_stats"]["bn1"]["mean"], mean)
    np.testing.assert_array_equal(new["model"]["fc"]["kernel"], params["model"]["fc"]["kernel"])
    if "ema" in extra:  # copies are made after loading
        np.testing.assert_array_equal(extra["ema"]["params"]["model"]["conv1"]["kernel"], kernel)
    with pytest.raises(ValueError, match="params/model/conv1/kernel"):
        task.init(jax.random.key(0), batch(), {"params": {"model": {"conv1": {"kernel": kernel[:1]}}}})
    with pytest.raises(ValueError, match="params/model/cnov1/kernel has no place"):
        task.init(jax.random.key(0), batch(), {"params": {"model": {"cnov1": {"kernel": kernel}}}})


@pytest.mark.parametrize("name", NAMES)
def test_predict_has_a_row_a_sample(name):
    task, params, extra, _ = ready(name)
    out = jax.eval_shape(task.predict, params, extra, {"image": batch()["image"]})
    key, width = LABELLED.get(name, CLASS)[1]
    assert (out[key].shape, out[key].dtype) == ((8, width), jnp.float32)
    assert out["features"].shape == (8, 8)
    assert all(v.shape[0] == 8 for v in out.values())
