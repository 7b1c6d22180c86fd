"""Optimisers against torch's written-out rules, schedules against their formulas, groups by name."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxvision import config as config_lib
from jaxvision.config import Length
from jaxvision.errors import UserError
from jaxvision.task import leaf_names
from jaxvision.training import build, optim
from tests.models.published import SMALL

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
    np.testing.assert_allclose(got["layer1"]["bias"], 2.0 - 0.1, rtol=1e-4)  # Adam's step: no decay, no scaling


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
     (dict(groups=(("", 0.0),)), "nothing is left to train"),
     (dict(unfreeze_share=(("head", 0.5),)), "optim.unfreeze_share: no parameter's name matches 'head'.*fc/kernel"),
     (dict(unfreeze_share=(("(", 0.5),)), "optim.unfreeze_share holds .* no regular expression"),
     (dict(unfreeze_share=(("fc", 1.0),)), r"share of all steps, in \[0, 1\); to freeze for good"),
     (dict(unfreeze_share=(("fc", 0.5),), groups=(("fc", 0.0),)), "all that matches 'fc' is frozen for good"),
     (dict(name="sdg"), "did you mean 'sgd'"),
     (dict(name="sgd", b1=0.9), 'unknown key "optim.b1" for sgd')],
)  # fmt: skip
def test_errors(changes, words):
    with pytest.raises(UserError, match=words):
        optim.make(settings(**changes), 10, PARAMS)


def test_cosine_with_warmup():
    rate = optim.schedule(settings(lr=2.0, warmup_share=0.2, final=0.1, schedule="cosine"), Length(100))
    assert float(rate(0)) == pytest.approx(2.0 / 21)
    assert float(rate(20)) == pytest.approx(2.0)
    assert float(rate(60)) == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    assert float(rate(100)) == pytest.approx(0.2)
    assert float(rate(1000)) == pytest.approx(0.2)


def test_linear_and_step():
    rate = optim.schedule(settings(lr=1.0, schedule="linear"), Length(10))
    np.testing.assert_allclose([float(rate(s)) for s in (0, 5, 10)], [1.0, 0.5, 0.0], atol=1e-6)
    rate = optim.schedule(settings(lr=1.0, milestones_share=(1 / 3, 2 / 3), schedule="step"), Length(90))
    np.testing.assert_allclose([float(rate(s)) for s in (29, 30, 59, 60, 89)], [1, 0.1, 0.1, 0.01, 0.01], rtol=1e-5)


@pytest.mark.parametrize(("form", "one", "two"), [("steps", 20, 30), ("epochs", 2.5, 3.75), ("share", 0.2, 0.3)])
def test_a_duration_is_the_same_in_every_form(form, one, two):
    """100 steps, of which eight are an epoch: to the bit, also which steps a leaf is frozen for."""
    length = Length(100, 8.0)
    durations = dict(warmup_steps=20, milestones_steps=(20, 30))
    mine = {f"warmup_{form}": one, f"milestones_{form}": (one, two)}
    for schedule in ("cosine", "step"):
        want, got = (optim.schedule(settings(schedule=schedule, **d), length) for d in (durations, mine))
        assert all(same_bits(want(step), got(step)) for step in range(101))
    found = []
    for frozen in (dict(unfreeze_steps=(("fc", 20),)), {f"unfreeze_{form}": (("fc", one),)}):
        tx, _ = optim.make(settings(clip=1.0, **frozen), 100, PARAMS, steps_per_epoch=8.0)
        params, state, update = PARAMS, tx.init(PARAMS), jax.jit(tx.update)
        for _ in range(22):
            updates, state = update(jax.tree.map(jnp.ones_like, params), state, params)
            params = optax.apply_updates(params, updates)
            found.append(jax.device_get(params))
    assert all(same_bits(a["fc"]["kernel"], b["fc"]["kernel"]) for a, b in zip(found[:22], found[22:], strict=True))
    assert same_bits(found[19]["fc"]["kernel"], PARAMS["fc"]["kernel"])
    assert not same_bits(found[20]["fc"]["kernel"], PARAMS["fc"]["kernel"])


def test_epochs_need_their_length():
    with pytest.raises(ValueError, match="needs steps_per_epoch"):
        optim.schedule(settings(warmup_epochs=1.0), Length(100))


# --------------------------------------------------------------------------- freezing and layers

OPTIMISERS = [dict(name="sgd", momentum=0.9, lr=0.05), dict(name="adamw", lr=0.01), dict(name="lamb", lr=0.01)]


def path_of(config, steps, total=50, start=PARAMS):
    """Parameters after 0, 1, ..., `steps` steps on gradients that differ from step to step."""
    tx, _ = optim.make(config, total, start)
    update = jax.jit(lambda grads, state, params: tx.update(grads, state, params))
    found, state = [start], tx.init(start)
    for k in range(steps):
        grads = jax.tree.map(lambda p, k=k: jnp.cos(k + jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), start)
        updates, state = update(grads, state, found[-1])
        found.append(jax.jit(optax.apply_updates)(found[-1], updates))
    return jax.device_get(found), state


def same_bits(a, b):
    return np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("options", OPTIMISERS, ids=lambda o: o["name"])
@pytest.mark.parametrize("how", ["groups", "task", "unfreeze_share"])
def test_frozen_leaves_keep_every_bit_for_50_steps(options, how):
    start = {**PARAMS, "fc": {"kernel": PARAMS["fc"]["kernel"].at[0].set(-0.0)}}  # a sum with +0 would lose the sign
    keys = dict(groups=dict(groups=(("fc", 0.0),)), unfreeze_share=dict(unfreeze_share=(("fc", 0.999),)), task={})[how]
    config = settings(weight_decay=0.1, clip=1.0, **keys, **options)
    tx, _ = optim.make(config, 10**6, start, frozen=("^fc/",) if how == "task" else ())
    params, state = start, tx.init(start)
    update = jax.jit(tx.update)
    for _ in range(50):
        updates, state = update(jax.tree.map(jnp.ones_like, params), state, params)
        params = optax.apply_updates(params, updates)
    assert same_bits(params["fc"]["kernel"], start["fc"]["kernel"])
    assert not np.any(params["layer1"]["kernel"] == start["layer1"]["kernel"])
    assert not np.any(params["layer1"]["bias"] == start["layer1"]["bias"])
    size = sum(leaf.size for leaf in jax.tree.leaves(tx.init(start)) if leaf.shape == (3, 2))
    assert bool(size) == (how == "unfreeze_share")  # what is frozen for good takes no memory


@pytest.mark.parametrize("options", OPTIMISERS, ids=lambda o: o["name"])
def test_unfreezing_at_the_exact_step_begins_as_new(options):
    """Free after 0.25 of 50 steps, rounded: 12. From there on, what an optimiser does that begins at that step."""
    config = settings(weight_decay=0.1, unfreeze_share=(("kernel", 0.25),), **options)
    found, _ = path_of(config, 20)
    for k in range(13):
        assert same_bits(found[k]["layer1"]["kernel"], PARAMS["layer1"]["kernel"])
        assert k == 0 or not np.any(found[k]["layer1"]["bias"] == found[k - 1]["layer1"]["bias"])
    assert not np.any(found[13]["layer1"]["kernel"] == PARAMS["layer1"]["kernel"])
    tx, _ = optim.make(settings(weight_decay=0.1, **options), 50, PARAMS)
    params, state = PARAMS, tx.init(PARAMS)
    for k in range(12, 20):
        grads = jax.tree.map(lambda p, k=k: jnp.cos(k + jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), PARAMS)
        updates, state = jax.jit(tx.update)(grads, state, params)
        params = optax.apply_updates(params, updates)
        for module in ("layer1", "fc"):
            np.testing.assert_allclose(found[k + 1][module]["kernel"], params[module]["kernel"], rtol=1e-6)


def test_unfreezing_in_turn_and_the_first_match_counts():
    config = settings(lr=0.1, unfreeze_share=(("bias", 0.0), ("layer1", 0.2), ("", 0.1)))
    found, _ = path_of(config, 12)
    moved = {
        n: next(k for k in range(12) if not same_bits(_leaf(found[k], n), _leaf(found[k + 1], n)))
        for n in leaf_names(PARAMS)
    }
    assert moved == {"fc/kernel": 5, "layer1/bias": 0, "layer1/kernel": 10}


def _leaf(tree, name):
    for key in name.split("/"):
        tree = tree[key]
    return tree


def test_still_frozen_leaves_do_not_count_in_the_clipped_norm():
    config = settings(name="sgd", momentum=0.0, lr=1.0, clip=0.5, unfreeze_share=(("layer1", 0.5),))
    found, _ = path_of(config, 1)
    moved = np.linalg.norm(found[1]["fc"]["kernel"] - found[0]["fc"]["kernel"])
    assert moved == pytest.approx(0.5, rel=1e-5)


def test_weight_decay_on_a_cosine():
    """DINO's schedule; a leaf that is set free later joins it where it is."""
    config = settings(name="sgd", momentum=0.0, lr=1.0, weight_decay=0.04, weight_decay_final=0.4,
                      unfreeze_share=(("fc", 0.2),))  # fmt: skip
    decay = optim.weight_decay(config, 50)
    want = 0.4 + 0.5 * (0.04 - 0.4) * (1 + np.cos(np.pi * np.arange(51) / 50))
    np.testing.assert_allclose([float(decay(s)) for s in range(51)], want, rtol=1e-5)
    tx, _ = optim.make(config, 50, PARAMS)
    params, state = PARAMS, tx.init(PARAMS)
    expected, fc = 2.0, 1.0
    for k in range(20):
        updates, state = jax.jit(tx.update)(jax.tree.map(jnp.zeros_like, params), state, params)
        params = optax.apply_updates(params, updates)
        expected, fc = expected * (1 - want[k]), fc * (1 - want[k]) if k >= 10 else fc
        np.testing.assert_allclose(params["layer1"]["kernel"], expected, rtol=1e-5)
        np.testing.assert_allclose(params["fc"]["kernel"], fc, rtol=1e-5)
    np.testing.assert_array_equal(params["layer1"]["bias"], PARAMS["layer1"]["bias"])  # never decays


def network(name, size=224, **options):
    config = config_lib.default()
    config.model = dict(name=name, **options)
    config.data.size = size
    return build.abstract_init(build.task(config, 10), config)[0], build.modules(config)


def multipliers(params, modules, **options):
    return {n: rule.multiplier for n, rule in optim.rules(settings(**options), params, modules).items()}


def test_layer_decay_of_vit_b_16_is_maes():
    """util/lr_decay.py of MAE, 12 blocks and 0.75: 13 layers below the last, which has 1."""
    params, modules = network("vit_b_16")
    assert set(modules[:3]) == {"conv_proj", "class_token", "pos_embedding"}
    assert modules[3:] == (*(f"layer_{k}" for k in range(12)), "ln", "head")
    for leaf, by in multipliers(params, modules, layer_decay=0.75).items():
        module = leaf.split("/")[1]
        if module in ("conv_proj", "class_token", "pos_embedding"):
            assert by == 0.75**13
        elif module.startswith("layer_"):
            assert by == 0.75 ** (12 - int(module.removeprefix("layer_")))
        else:
            assert module in ("ln", "head")
            assert by == 1


def test_layer_decay_of_resnet50_and_swin_t():
    params, modules = network("resnet50")
    got = multipliers(params, modules, layer_decay=0.5)
    for leaf, power in {"conv1/kernel": 17, "bn1/scale": 17, "layer1_0/conv1/kernel": 16,
                        "layer1_2/conv1/kernel": 14, "layer4_2/conv3/kernel": 1, "fc/bias": 0}.items():  # fmt: skip
        assert got[f"model/{leaf}"] == 0.5**power, leaf
    params, modules = network("swin_t")
    got = multipliers(params, modules, layer_decay=0.5)
    for leaf, power in {"patch_conv/kernel": 13, "stage0_0/norm1/scale": 12, "stage0_1/norm1/scale": 11,
                        "merge1_reduction/kernel": 10, "stage1_0/norm1/scale": 10, "stage3_1/norm1/scale": 1,
                        "norm/scale": 0, "head/bias": 0}.items():  # fmt: skip
        assert got[f"model/{leaf}"] == 0.5**power, leaf


@pytest.mark.parametrize("name", SMALL)
def test_layer_decay_reaches_every_leaf_of_every_family(name):
    """One multiplier a leaf; never falling from the input to the head; a block's leaves alike; every power is there."""
    name, options, size = SMALL[name]
    params, modules = network(name, size, **options)
    got = multipliers(params, modules, layer_decay=0.5)
    assert list(got) == leaf_names(params)
    by_module = {}
    for leaf, by in got.items():
        by_module.setdefault(leaf.split("/")[1], set()).add(by)
    assert all(len(found) == 1 for found in by_module.values())
    in_order = [by_module[m].pop() for m in modules]
    assert in_order == sorted(in_order)
    top = round(-np.log2(in_order[0]))
    assert set(in_order) == {0.5**k for k in range(top + 1)}
    assert top >= 3


def test_layer_decay_times_groups_and_what_lies_beside_the_network():
    params, modules = network("resnet18")
    params = {**params, "head": {"kernel": jax.ShapeDtypeStruct((512, 10), jnp.float32)}}
    got = multipliers(params, modules, layer_decay=0.5, groups=(("layer4_1", 3.0), ("conv1/kernel", 0.0)))
    assert got["model/layer4_1/conv1/kernel"] == 1.5
    assert got["model/layer1_0/conv1/kernel"] == 0
    assert got["model/layer1_0/bn1/scale"] == 0.5**8
    assert got["head/kernel"] == 1
    with pytest.raises(ValueError, match="order of 'fc' is unknown"):
        multipliers(params, [m for m in modules if m != "fc"], layer_decay=0.5)


def test_multipliers_scale_the_updates():
    params = {"model": {"stem": {"kernel": jnp.ones((2, 2))}, "block_0": {"a": {"kernel": jnp.ones((2, 2))}},
                        "fc": {"kernel": jnp.ones((2, 2))}}}  # fmt: skip
    config = settings(name="sgd", momentum=0.0, lr=1.0, layer_decay=0.5)
    tx, _ = optim.make(config, 10, params, modules=("stem", "block_0", "fc"))
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    assert [float(leaf[0, 0]) for leaf in jax.tree.leaves(updates)] == [-0.5, -1.0, -0.25]  # block_0, fc, stem


def test_table_counts_all_leaves():
    params, modules = network("resnet18")
    assert optim.table(settings(), params) == ""
    text = optim.table(
        settings(layer_decay=0.5, groups=(("bn", 0.0),), unfreeze_share=(("fc", 0.25),)), params, modules
    )
    rows = [line.split() for line in text.splitlines()[1:]]
    assert sum(int(row[1]) for row in rows) == len(jax.tree.leaves(params))
    assert sum(int(row[2].replace(",", "")) for row in rows) == sum(x.size for x in jax.tree.leaves(params))
    assert "frozen: model/bn1/bias, model/bn1/scale, ..." in text
    assert (
        "1                              2         5,130  from 25% of the steps: model/fc/bias, model/fc/kernel" in text
    )
    line, of = optim.table(settings(weight_decay=0.04, weight_decay_final=0.4), params).splitlines()
    assert line == "optim: weight decay from 0.04 to 0.4, a cosine"
    assert of == "  of 21 leaves, 11,172,032 parameters; none of 41 leaves"


TOKENS = {"model": {"class_token": jnp.full((1, 1, 4), 2.0), "head": {"kernel": jnp.full((4, 2), 2.0),
                    "bias": jnp.full((2,), 2.0)}}}  # fmt: skip


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb", "lars"])
@pytest.mark.parametrize("final", [-1.0, 0.2])
@pytest.mark.parametrize("unfreeze", [(), (("head", 0.1),)], ids=["", "unfreeze"])
def test_no_decay_is_as_if_there_were_none(name, final, unfreeze):
    """A leaf that a pattern names moves as a leaf of one dimension does; the others as without the key."""

    def trained(params, **changes):
        config = settings(
            name=name, lr=0.1, weight_decay=0.1, weight_decay_final=final, unfreeze_share=unfreeze, **changes
        )
        tx, _ = optim.make(config, 10, params)
        state = tx.init(params)
        for _ in range(3):
            updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
            params = optax.apply_updates(params, updates)
        return params

    with_decay, without = trained(TOKENS), trained(TOKENS, no_decay=("token",))
    as_bias = trained({"model": {**TOKENS["model"], "class_token": jnp.full((4,), 2.0)}})
    np.testing.assert_array_equal(without["model"]["class_token"][0, 0], as_bias["model"]["class_token"])
    assert not np.array_equal(with_decay["model"]["class_token"], without["model"]["class_token"])
    for leaf in ("kernel", "bias"):
        np.testing.assert_array_equal(with_decay["model"]["head"][leaf], without["model"]["head"][leaf])


def test_what_decays_is_told():
    assert optim.table(settings(weight_decay=0.1), TOKENS).splitlines() == [
        "optim: weight decay 0.1",
        "  of 2 leaves, 12 parameters, among them model/class_token; none of 1 leaves",
    ]
    assert optim.table(settings(weight_decay=0.1, no_decay=("token",)), TOKENS).splitlines()[1] == (
        "  of 1 leaves, 8 parameters; none of 2 leaves, among them model/class_token"
    )


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_the_rule_of_timm_is_three_patterns(family):
    """What timm's no_weight_decay names: class token, positions and, by a keyword, Swin's tables."""
    name, options, size = SMALL[family]
    config = config_lib.default()
    config.model, config.data.size, config.data.train = dict(name=name, **options), size, "fake:8x8"
    params, _ = build.abstract_init(build.task(config, 3), config)
    rule = ("class_token|pos_embedding|relative_position_bias_table",)
    decays = dict(zip(leaf_names(params), jax.tree.leaves(optim.decayed(params, rule))))
    assert {n.rpartition("/")[2] for n, yes in decays.items() if yes} == {"kernel"}
    assert any(not yes and leaf.ndim > 1 for yes, leaf in zip(decays.values(), jax.tree.leaves(params)))


def test_a_config_from_before_decays_as_it_did():
    """config.json without the key: the run is the same run, and decays what it did."""
    config = config_lib.default()
    config.update(steps=1)
    config.data.train = "fake:8x8"
    old = config.to_dict()
    del old["optim"]["no_decay"]
    read = config_lib.from_json(json.dumps(old))
    assert read.optim.no_decay == ()
    assert config_lib.differences(read, config) == []
    config.optim.no_decay = ("class_token",)
    assert config_lib.differences(read, config) == ["optim.no_decay: () -> ('class_token',)"]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (("(",), r"optim.no_decay holds '\(': expected patterns"),
        (("nowhere",), "optim.no_decay: no parameter's name matches 'nowhere'"),
        ((3,), "optim.no_decay holds 3: expected patterns"),
        ("class_token", "optim.no_decay is 'class_token'"),
    ],
)
def test_patterns_of_no_decay_are_checked(value, words):
    config = config_lib.default()
    config.update(steps=1, optim={**config.optim, "no_decay": value})
    config.data.train = "fake:8x8"

    def made():
        config_lib.check(config)
        optim.make(config.optim, 10, TOKENS)

    with pytest.raises(UserError, match=words):
        made()
