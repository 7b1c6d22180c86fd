"""The one step: randomness from (seed, step), 1 = 8 devices, nothing copied twice."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxvision import models, tasks
from jaxvision.data.contract import InputContract
from jaxvision.data.pipeline import train_batches
from jaxvision.data.sources import open_source
from jaxvision.data.transforms import build
from jaxvision.runtime import sharding
from jaxvision.task import Task
from jaxvision.training.step import TrainState, init_state, lower_step, make_step
from tests import flags

CONTRACT = InputContract(size=16, resize=16)


def digits(steps, batch_size=64):
    source = open_source("digits:train")
    transforms = build((("resize", {}), ("shift", dict(share=0.1))), CONTRACT)
    return train_batches(source, transforms, CONTRACT, batch_size=batch_size, seed=0, start=0, stop=steps)


def on(devices, tree, batch):
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    split = sharding.batch_sharding(mesh)
    return jax.device_put(tree, sharding.replicated(mesh)), sharding.put_batch(batch, split, len(batch["mask"]))


@pytest.mark.slow  # test_contract.py of the tasks has one state of it
def test_1_and_8_devices_at_20_states_along_a_resnet18_run():
    model = models.resnet18(classes=10, depths=(1, 1, 1, 1), width=8, stem="small")
    task = tasks.classification(model, CONTRACT)
    tx = optax.sgd(0.05, momentum=0.9)
    batches = list(digits(20))
    state = jax.jit(lambda k: init_state(task, tx, k, {"image": batches[0]["image"]}, None))(jax.random.key(0))

    @functools.partial(jax.jit, compiler_options=flags.DEFAULTS)
    def gradients(params, extra, batch):
        (loss, _), grads = jax.value_and_grad(task.loss, has_aux=True)(
            params, extra, batch, key=jax.random.key(0), step=0
        )
        return loss, grads

    step = jax.jit(make_step(task, tx, seed=0))
    for batch in batches:
        results = [jax.device_get(gradients(*tree, data)) for tree, data in
                   (on(n, (state.params, state.extra), batch) for n in (1, 8))]  # fmt: skip
        assert results[0][0] == pytest.approx(results[1][0], abs=1e-6)
        difference = optax.global_norm(jax.tree.map(np.subtract, results[0][1], results[1][1]))
        assert difference <= 1e-3 * optax.global_norm(results[0][1])
        state, _ = step(state, batch)


@pytest.mark.slow
def test_1_and_8_devices_over_20_steps_in_float64():
    with jax.enable_x64(True):
        model = models.resnet18(classes=10, depths=(1, 1), width=4, stem="small", dtype=jnp.float64)
        task = tasks.classification(model, CONTRACT)
        tx = optax.sgd(0.05, momentum=0.9)
        batches = list(digits(20, 16))
        fresh = jax.jit(lambda k: init_state(task, tx, k, {"image": batches[0]["image"]}, None))(jax.random.key(0))
        double = lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x  # noqa: E731
        fresh = jax.tree.map(double, fresh)
        step = jax.jit(make_step(task, tx, seed=0))
        ends = []
        for devices in (1, 8):
            state = fresh
            for batch in batches:
                state, _ = step(*on(devices, state, batch))
            ends.append(jax.device_get(state))
        for a, b in zip(*map(jax.tree.leaves, ends), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-9)
        assert ends[0].params["model"]["conv1"]["kernel"].dtype == np.float64
        moved = np.abs(ends[0].params["model"]["conv1"]["kernel"] - fresh.params["model"]["conv1"]["kernel"])
        assert moved.max() > 1e-3  # it did train


def recorder():
    """A task that logs what randomness and rows it was given."""

    def loss(params, extra, batch, *, key, step):
        value = params["w"] * jnp.mean(batch["x"])
        noise = jax.random.uniform(key)
        extra = {
            "seen": jnp.roll(extra["seen"], -1).at[-1].set(batch["x"][0]),
            "noise": extra["noise"] + noise,
        }
        return value, (extra, {"noise": noise})

    def init(key, batch, given):
        return {"w": jnp.float32(1)}, {"seen": jnp.zeros(4), "noise": jnp.float32(0)}

    return Task(init, loss, lambda p, e, b: {})


BATCH = {"x": np.arange(8, dtype=np.float32), "mask": np.ones(8, bool)}


def test_micro_batch_a_holds_the_rows_that_are_a_modulo_the_count():
    state = init_state(recorder(), optax.sgd(0.0), jax.random.key(0), BATCH, None)
    state, _ = jax.jit(make_step(recorder(), optax.sgd(0.0), seed=0, accumulate=4))(state, BATCH)
    np.testing.assert_array_equal(state.extra["seen"], [0, 1, 2, 3])  # first row of each micro-batch


def test_a_step_of_micro_batches_takes_the_mean_and_each_has_randomness_of_its_own():
    state = init_state(recorder(), optax.sgd(0.1), jax.random.key(0), BATCH, None)
    state, logs = jax.jit(make_step(recorder(), optax.sgd(0.1), seed=3, accumulate=2))(state, BATCH)
    assert float(state.params["w"]) == pytest.approx(1 - 0.1 * 3.5)  # the gradient is the mean of 0 to 7
    assert float(logs["loss"]) == pytest.approx(3.5)
    key = jax.random.fold_in(jax.random.key(3), 0)
    drawn = [float(jax.random.uniform(jax.random.fold_in(key, a))) for a in (0, 1)]
    assert float(state.extra["noise"]) == pytest.approx(sum(drawn))
    assert float(logs["noise"]) == pytest.approx(sum(drawn) / 2)


def test_randomness_is_a_function_of_seed_and_step():
    def noise(seed, at, accumulate=1):
        state = init_state(recorder(), optax.sgd(0.0), jax.random.key(9), BATCH, None).replace(step=jnp.int32(at))
        return float(make_step(recorder(), optax.sgd(0.0), seed=seed, accumulate=accumulate)(state, BATCH)[1]["noise"])

    assert noise(0, 5) == noise(0, 5)
    assert len({noise(0, 5), noise(0, 6), noise(1, 5), noise(0, 5, 2)}) == 4
    want = jax.random.uniform(jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 7), 0))
    assert noise(3, 7) == pytest.approx(float(want))


def test_a_batch_that_cannot_be_split_is_named():
    state = init_state(recorder(), optax.sgd(0.0), jax.random.key(0), BATCH, None)
    with pytest.raises(ValueError, match="8 rows cannot be split into 3"):
        make_step(recorder(), optax.sgd(0.0), seed=0, accumulate=3)(state, BATCH)


def test_after_step_sees_the_new_parameters_once():
    task = recorder()._replace(after_step=lambda p, e, step: {**e, "noise": p["w"] * 100 + step})
    state = init_state(task, optax.sgd(0.1), jax.random.key(0), BATCH, None)
    state, _ = jax.jit(make_step(task, optax.sgd(0.1), seed=0, accumulate=2))(state, BATCH)
    assert float(state.extra["noise"]) == pytest.approx(100 * float(state.params["w"]))
    assert int(state.step) == 1


def test_donated_state_is_not_kept():
    state, batch = on(8, init_state(recorder(), optax.sgd(0.1, momentum=0.9), jax.random.key(0), BATCH, None), BATCH)
    step = make_step(recorder(), optax.sgd(0.1, momentum=0.9), seed=0)
    compiled = lower_step(lambda state, batch, hyper: step(state, batch), state, batch, {}).compile()
    after, _ = compiled(state, batch, {})
    assert isinstance(after, TrainState)
    assert state.params["w"].is_deleted()
