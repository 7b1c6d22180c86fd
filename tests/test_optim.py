"""Optimisers against torch's written-out rules, schedules against their formulas, groups by name."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxvision import config as config_lib
from jaxvision import optim
from jaxvision.errors import UserError

PARAMS = {
    "layer1": {"kernel": jnp.full((2, 3), 2.0), "bias": jnp.full((3,), 2.0)},
    "fc": {"kernel": jnp.ones((3, 2))},
}


def settings(**changes):
    config = config_lib.default().optim
    config.update({"schedule": "constant", **changes})
    return config


def run(config, steps=3, total=10, gradient=1.0):
    tx, _ = optim.make(config, total, PARAMS)
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(steps):
        updates, state = tx.update(jax.tree.map(lambda p: jnp.full_like(p, gradient), params), state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_sgd_is_torchs():
    weight, bias, velocity_w, velocity_b = 2.0, 2.0, 0.0, 0.0
    for _ in range(3):
        velocity_w = 0.9 * velocity_w + (1.0 + 0.1 * weight)
        velocity_b = 0.9 * velocity_b + 1.0
        weight, bias = weight - 0.05 * velocity_w, bias - 0.05 * velocity_b
    got = run(settings(name="sgd", lr=0.05, momentum=0.9, weight_decay=0.1))
    np.testing.assert_allclose(got["layer1"]["kernel"], weight, rtol=1e-5)
    np.testing.assert_allclose(got["layer1"]["bias"], bias, rtol=1e-5)  # no decay on a bias


def test_adamw_is_torchs():
    weight, m, v = 2.0, 0.0, 0.0
    for t in range(1, 4):
        weight *= 1 - 0.01 * 0.1
        m, v = 0.9 * m + 0.1, 0.999 * v + 0.001
        weight -= 0.01 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    got = run(settings(name="adamw", lr=0.01, weight_decay=0.1))
    np.testing.assert_allclose(got["layer1"]["kernel"], weight, rtol=1e-5)


def test_lars_first_step():
    # trust * |w| / |g + decay * w|, then lr; the bias takes a plain step
    got = run(settings(name="lars", lr=1.0, weight_decay=0.1, trust=0.01), steps=1)
    g = 1.0 + 0.1 * 2.0
    np.testing.assert_allclose(got["layer1"]["kernel"], 2.0 - 0.01 * (2.0 / g) * g, rtol=1e-5)
    np.testing.assert_allclose(got["layer1"]["bias"], 1.0, rtol=1e-5)


def test_lamb_first_step():
    # Adam's first step is 1 everywhere; with decay 1.2; scaled to the norm of the weights
    got = run(settings(name="lamb", lr=0.1, weight_decay=0.1), steps=1)
    np.testing.assert_allclose(got["layer1"]["kernel"], 2.0 - 0.1 * 2.0, rtol=1e-4)


def test_clip_bounds_the_global_norm():
    got = run(settings(name="sgd", lr=1.0, momentum=0.0, clip=0.5), steps=1, gradient=100.0)
    moved = optax.global_norm(jax.tree.map(jnp.subtract, PARAMS, got))
    assert float(moved) == pytest.approx(0.5, rel=1e-5)


def test_groups_multiply_and_freeze_exactly():
    config = settings(name="adamw", lr=0.01, weight_decay=0.1, groups=(("fc", 10.0), ("bias", 0.0)))
    got, plain = run(config), run(settings(name="adamw", lr=0.01, weight_decay=0.1))
    np.testing.assert_array_equal(got["layer1"]["bias"], PARAMS["layer1"]["bias"])  # bit-equal
    np.testing.assert_array_equal(got["layer1"]["kernel"], plain["layer1"]["kernel"])
    one, ten = (
        run(config, 1)["fc"]["kernel"],
        run(settings(name="adamw", lr=0.1, weight_decay=0.1), 1)["fc"]["kernel"],
    )
    np.testing.assert_allclose(one, ten, rtol=1e-6)


def test_frozen_leaf_with_nan_gradient_stays():
    tx, _ = optim.make(settings(name="sgd", groups=(("fc", 0.0),), clip=1.0), 10, PARAMS)
    grads = {**jax.tree.map(jnp.ones_like, PARAMS), "fc": {"kernel": jnp.full((3, 2), jnp.nan)}}
    updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
    assert np.all(updates["fc"]["kernel"] == 0)
    assert np.all(np.isfinite(updates["layer1"]["kernel"]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [(dict(groups=(("head", 2.0),)), "no parameter's name matches 'head'.*fc/kernel"),
     (dict(groups=(("(", 2.0),)), "no regular expression"),
     (dict(groups=(("fc", -1.0),)), "at least 0"),
     (dict(name="sdg"), "did you mean 'sgd'"),
     (dict(name="sgd", b1=0.9), 'unknown key "optim.b1" for sgd')],
)  # fmt: skip
def test_errors(changes, words):
    with pytest.raises(UserError, match=words):
        optim.make(settings(**changes), 10, PARAMS)


def test_cosine_with_warmup():
    rate = optim.schedule(settings(lr=2.0, warmup=0.2, final=0.1, schedule="cosine"), 100)
    assert float(rate(0)) == pytest.approx(2.0 / 21)
    assert float(rate(20)) == pytest.approx(2.0)
    assert float(rate(60)) == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    assert float(rate(100)) == pytest.approx(0.2)
    assert float(rate(1000)) == pytest.approx(0.2)


def test_linear_and_step():
    rate = optim.schedule(settings(lr=1.0, schedule="linear"), 10)
    np.testing.assert_allclose([float(rate(s)) for s in (0, 5, 10)], [1.0, 0.5, 0.0], atol=1e-6)
    rate = optim.schedule(settings(lr=1.0, milestones=(1 / 3, 2 / 3), schedule="step"), 90)
    np.testing.assert_allclose([float(rate(s)) for s in (29, 30, 59, 60, 89)], [1, 0.1, 0.1, 0.01, 0.01], rtol=1e-5)
