"""Numbers as arguments of a program: to Python they are numbers, and a program with them computes what it did without.

Weights after some steps are equal to the bit to those of a program that has the numbers as constants. (Not so with
`clip=1.0`, of which XLA makes nothing where it is a constant: then a last bit may differ.)
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvision import config as config_lib
from jaxvision import targets
from jaxvision.runtime import sharding
from jaxvision.training import build
from jaxvision.training.hyper import Number, Numbers, traced
from jaxvision.training.step import init_state, make_step


def test_arithmetic_is_pythons_and_what_meets_an_array_is_an_argument():
    numbers = Numbers()
    b, n = numbers.take("b", 0.9), numbers.take("n", 449)
    assert isinstance(1 - b, Number)
    assert (1 - b).value == 1 - 0.9  # in double precision: float32(1) - float32(0.9) is another number
    assert (2 * b / 3 - -b).value == 2 * 0.9 / 3 + 0.9
    assert round(b * n).value == 404
    assert (b**2).value == 0.9**2
    assert numbers.arrays == {}
    program, hyper = traced(lambda x: (1 - b) * x + jnp.minimum(b, x) ** n, numbers, jnp.float32(0))
    assert set(hyper) == {"(1 - b)", "b", "n"}
    assert hyper["(1 - b)"] == np.float32(1 - 0.9)
    x = jnp.float32(0.5)
    assert jax.jit(program)(x, hyper) == jax.jit(lambda x: (1 - 0.9) * x + jnp.minimum(0.9, x) ** 449)(x)
    assert jax.jit(program)(x, {**hyper, "(1 - b)": jnp.float32(2)}) >= 1  # an argument, and no constant
    assert numbers.take("name", "sgd") == "sgd"
    assert numbers.take("nesterov", True) is True


def test_what_python_asks_is_kept_as_a_guard():
    numbers = Numbers()
    b = numbers.take("b", 0.25)
    assert b
    assert b > 0
    assert b != 1
    assert b >= numbers.take("c", 0.25)
    assert f"{b:.1f} {b}" == "0.2 0.25"
    assert b != "balanced"
    assert numbers.guards == {
        "bool(b)": True, "b > 0": True, "b != 1": True, "b >= c": True, "float(b)": 0.25
    }  # fmt: skip


NETWORKS = {
    "resnet": dict(name="resnet18", depths=(1,), width=8, stem="small"),
    "vit": dict(name="vit_tiny_patch16_224", patch=2, width=16, depth=1, heads=2),
}
OPTIMISERS = {
    "sgd": (dict(momentum=0.87, nesterov=True), dict(momentum=0.77, nesterov=True)),
    "adamw": (dict(b1=0.87, b2=0.97, eps=1e-7), dict(b1=0.77, b2=0.98, eps=2e-7)),
    "lamb": (dict(b1=0.87, b2=0.97, eps=1e-6), dict(b1=0.77, b2=0.98, eps=2e-7)),
    "lars": (dict(momentum=0.87, trust=0.002), dict(momentum=0.77, trust=0.003)),
}
SHARED = (
    dict(lr=0.013, weight_decay=0.03, warmup_share=0.13, clip=0.7, final=0.1),
    dict(lr=0.023, weight_decay=0.07, warmup_share=0.41, clip=0.3, final=0.2),
)


def recipe(network, optimiser, which, **wrap):
    config = config_lib.default()
    config.data.update(train="fake:64x8?classes=3", size=8)
    config.model, config.batch_size, config.dtype, config.evals = NETWORKS[network], 8, "float32", {}
    config.steps, config.seed = 47 + 10 * which, which
    config.optim.update(name=optimiser, **OPTIMISERS[optimiser][which], **SHARED[which])
    config.task.label_smoothing = (0.13, 0.23)[which]
    config.wrap = tuple(wrap.items())
    return build.resolve(config)


def lowered(config):
    """(plain step, its lowered form with arguments, their values, a function that makes a state)."""
    labels, mesh = functools.partial(np.arange, 3), sharding.make_mesh(devices=jax.devices()[:1])
    parts = build.parts(config, 3, labels, teaching=None, length=config_lib.Length(config.steps, 11.5))
    program, hyper = build.lower_step(
        config, parts, mesh, build.abstract_state(config, parts, mesh), build.Data(targets.class_.fields, 3)
    )
    plain = make_step(parts.task, parts.tx, seed=config.seed)
    init = functools.partial(init_state, parts.task, parts.tx, jax.random.key(0), build.zeros(config), None)
    return plain, program, hyper, init


def batch(config):
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (8, 8, 8, 3), np.uint8),
        "label": rng.integers(0, 3, 8).astype(np.int32),
        "index": np.arange(8, dtype=np.int32),
        "mask": np.ones(8, bool),
    }


def same_weights(network, optimiser, steps, **wrap):
    """After so many steps, with constants and with arguments; and with other numbers the program is the same."""
    config = recipe(network, optimiser, 0, **wrap)
    plain, program, hyper, init = lowered(config)
    assert {"seed", "optim.lr", "optim.weight_decay", "(1.0 - task.label_smoothing)"} <= hyper.keys()
    constants = jax.jit(plain).lower(*jax.eval_shape(lambda: (init(), batch(config)))).compile()
    arguments = program.compile()
    data, one, two = batch(config), jax.jit(init)(), jax.jit(init)()
    for _ in range(steps):
        one, _ = constants(one, data)
        two, _ = arguments(two, data, hyper)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(a, b)
    _, again, others, _ = lowered(recipe(network, optimiser, 1, **wrap))
    assert again.as_text() == program.as_text()
    assert any(hyper[name] != others[name] for name in hyper)


@pytest.mark.parametrize("durations", [dict(warmup_steps=5), dict(warmup_epochs=0.3)], ids=str)
def test_another_duration_is_the_same_program(durations):
    """In steps and in epochs, as in shares; and the step is the one that constants would make."""
    texts, ends = [], []
    for times in (1, 2):
        config = recipe("resnet", "sgd", 0)
        config.optim.update(warmup_share=0.0, **{key: value * times for key, value in durations.items()})
        _, program, hyper, _ = lowered(config)
        texts.append(program.as_text())
        ends.append({name: float(value) for name, value in hyper.items() if "warmup" in name})
    assert texts[0] == texts[1]
    assert ends[0] != ends[1]


def test_weights_and_program_are_the_same():
    same_weights("resnet", "sgd", 12, ema=dict(decay=0.93))


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_weights_and_program_are_the_same_for_all_optimisers(network, optimiser):
    same_weights(network, optimiser, 50)


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrap",
    [dict(mixup=dict(alpha=0.3, cutmix_alpha=0.7, probability=0.8)), dict(cutmix=dict(alpha=0.6)),
     dict(adversarial=dict(epsilon=3.3, step_size=1.1)), dict(l2_sp=dict(strength=0.13, head_strength=0.017))],
    ids=lambda wrap: next(iter(wrap)),
)  # fmt: skip
def test_weights_and_program_are_the_same_for_all_wrappers(wrap):
    same_weights("resnet", "sgd", 12, **wrap)
