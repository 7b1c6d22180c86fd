"""Every wrapper around every task: it trains, or the config is refused by both names before any data is read."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxvision import tasks
from jaxvision.errors import UserError
from jaxvision.training import build, check
from jaxvision.training.step import init_state, make_step
from tests.tasks.test_contract import CASES, CLASSES, batch
from tests.tiny import make_tiny_config

WRAP = {
    "adversarial": lambda task, classes: tasks.adversarial(task),
    "cutmix": lambda task, classes: tasks.cutmix(task, classes=classes),
    "ema": lambda task, classes: tasks.ema(task, decay=0.9),
    "l2_sp": lambda task, classes: tasks.l2_sp(task),
    "mixup": lambda task, classes: tasks.mixup(task, classes=classes, cutmix_alpha=1.0),
}
UNLABELLED = [name for name in tasks.TASKS if getattr(tasks, name).learns is None]
REFUSED = {
    ("ema", "dino"),
    *((wrapper, name) for wrapper in ("adversarial", "cutmix", "mixup") for name in UNLABELLED),
}
PAIRS = [(wrapper, name) for wrapper in tasks.WRAPPERS for name in tasks.TASKS]


def wrapped(wrapper, name):
    return WRAP[wrapper](CASES[name]("none"), 2 if name == "binary" else CLASSES)


def stepped(wrapper, name):
    """(fresh state as a function, step) of the pair."""
    task, tx = wrapped(wrapper, name), optax.sgd(0.01)
    return task, lambda: init_state(task, tx, jax.random.key(0), batch(name=name), None), make_step(task, tx, seed=0)


def config_of(wrapper, name):
    config = make_tiny_config()
    config.init, config.evals, config.stop.patience = "some", {}, 0
    config.task = dict(name=name, **({"teacher": "some"} if name == "distillation" else {}))
    config.wrap = ((wrapper, {}),)
    config.checkpoint.best = ""
    return config


def test_every_wrapper_is_here():
    assert set(WRAP) == set(tasks.WRAPPERS)


@pytest.mark.parametrize(("wrapper", "name"), PAIRS)
def test_a_config_is_refused_by_both_names_or_taken(wrapper, name):
    config = config_of(wrapper, name)
    if (wrapper, name) in REFUSED:
        with pytest.raises(UserError, match=rf"wrap\.{wrapper} .*task {name} "):
            check.check(config)
    else:
        check.check(config)


@pytest.mark.parametrize(("wrapper", "name"), [p for p in PAIRS if p not in REFUSED])
def test_a_step_keeps_the_state_and_predicts_rows(wrapper, name):
    """Traced, not compiled: what a pair cannot do together shows in the shapes."""
    task, fresh, step = stepped(wrapper, name)
    state = jax.eval_shape(fresh)
    data = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, batch(name=name)))
    after, logs = jax.eval_shape(step, state, data)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert logs["loss"].shape == ()
    one = {**data, "image": jax.eval_shape(lambda: jnp.asarray(batch()["image"]))}
    assert jax.eval_shape(task.predict, state.params, state.extra, one)["features"].shape[0] == 8


@pytest.mark.slow
@pytest.mark.parametrize(("wrapper", "name"), [p for p in PAIRS if p not in REFUSED])
def test_two_steps_are_finite(wrapper, name):
    _, fresh, step = stepped(wrapper, name)
    state, step = build.jit_once(fresh)(), build.jit_once(step)
    for _ in range(2):
        state, logs = step(state, jax.tree.map(jnp.asarray, batch(name=name)))
    assert all(np.isfinite(float(v)) for v in logs.values())


def test_ema_around_a_task_that_averages_says_so():
    task = wrapped("ema", "dino")
    with pytest.raises(ValueError, match="averages its weights itself"):
        jax.eval_shape(task.init, jax.random.key(0), batch(name="dino"))
