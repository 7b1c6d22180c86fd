"""l2_sp, linear_probe and distillation: against their papers' formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxvision import config as config_lib
from jaxvision import models, tasks
from jaxvision.data.contract import InputContract
from jaxvision.losses import soft_target_divergence, softmax_cross_entropy
from jaxvision.task import leaf_names
from jaxvision.training import build, optim
from jaxvision.training.step import init_state, make_step
from tests.tasks.test_contract import CLASSES, CONTRACT, batch, classification, model, ready

ARGUMENTS = dict(key=jax.random.key(3), step=jnp.int32(0))


def square(*leaves):
    return sum(float(np.sum(np.asarray(leaf, np.float64) ** 2)) for leaf in leaves)


# --------------------------------------------------------------------------- l2_sp


def loaded(scale=1.1):
    """What a load plan gives: all but the head."""
    _, params, extra, _ = ready("classification", "none")
    network = {k: v for k, v in params["model"].items() if k != "fc"}
    return {"params": {"model": jax.tree.map(lambda x: x * scale, network)}, "extra": {"model": extra["model"]}}


def test_l2_sp_is_the_formula():
    plain, task = classification("none"), tasks.l2_sp(classification("none"), strength=0.3, head_strength=0.02)
    given = loaded()
    params, extra = task.init(jax.random.key(0), batch(), given)
    moved = jax.tree.map(lambda x: x + 0.01, params)
    total, (_, logs) = task.loss(moved, extra, batch(), **ARGUMENTS)
    base, _ = plain.loss(moved, extra, batch(), **ARGUMENTS)
    network = {k: v for k, v in moved["model"].items() if k != "fc"}
    drift = jax.tree.map(jnp.subtract, network, given["params"]["model"])
    want = 0.3 / 2 * square(*jax.tree.leaves(drift)) + 0.02 / 2 * square(*jax.tree.leaves(moved["model"]["fc"]))
    assert float(logs["l2_sp"]) == pytest.approx(want, rel=1e-4)
    assert float(total - base) == pytest.approx(want, rel=1e-3)


def test_l2_sp_gradient_points_to_the_start_and_the_head_to_0():
    task = tasks.l2_sp(classification("none"), strength=0.3, head_strength=0.02)
    params, extra = task.init(jax.random.key(0), batch(), loaded())
    moved = jax.tree.map(lambda x: x + 0.01, params)

    def gradient(task):
        return jax.grad(lambda p: task.loss(p, extra, batch(), **ARGUMENTS)[0])(moved)

    added = jax.tree.map(jnp.subtract, gradient(task), gradient(classification("none")))["model"]
    np.testing.assert_allclose(added["layer1_0"]["conv1"]["kernel"], 0.3 * 0.01, rtol=1e-2)
    np.testing.assert_allclose(added["fc"]["kernel"], 0.02 * moved["model"]["fc"]["kernel"], atol=1e-6)


def test_l2_sp_anchor_has_one_structure_and_is_not_the_parameters_buffer():
    task = tasks.l2_sp(classification("none"))
    shapes = jax.eval_shape(lambda k, b: task.init(k, b, None), jax.random.key(0), batch())
    made = jax.jit(task.init)(jax.random.key(0), batch(), loaded())
    assert jax.tree.structure(shapes) == jax.tree.structure(made)
    assert [x.dtype for x in jax.tree.leaves(shapes)] == [x.dtype for x in jax.tree.leaves(made)]
    anchor = made[1]["anchor"]
    assert not anchor["start"]["model"]["fc"]["kernel"].any()
    assert {n for n, known in zip(leaf_names(anchor["loaded"]), jax.tree.leaves(anchor["loaded"])) if not known} \
        == {"model/fc/bias", "model/fc/kernel"}  # fmt: skip
    with pytest.raises(ValueError, match="at least 0"):
        tasks.l2_sp(classification("none"), strength=-1.0)


# --------------------------------------------------------------------------- linear_probe


def probe(norm=False, net="batch"):
    return tasks.linear_probe(model(net), CONTRACT, classes=CLASSES, norm=norm)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("norm", [False, True])
def test_probe_moves_the_head_and_not_a_bit_of_the_network(norm, name):
    task = tasks.mixup(probe(norm), classes=CLASSES)
    config = config_lib.default().optim
    config.update(name=name, lr=0.1, weight_decay=0.5, clip=1.0, schedule="constant")
    tx, _ = optim.make(config, 100, task.init(jax.random.key(0), batch())[0], frozen=task.frozen)
    state = init_state(task, tx, jax.random.key(0), batch(), None)
    step = jax.jit(make_step(task, tx, seed=0, accumulate=2))
    before = jax.device_get((state.params, state.extra))
    for _ in range(10):
        state, _ = step(state, batch())
    after = jax.device_get((state.params, state.extra))
    for part in (0, 1):
        same = jax.tree.map(lambda a, b: a.tobytes() == b.tobytes(), before[part]["model"], after[part]["model"])
        assert all(jax.tree.leaves(same))
    assert not np.any(before[0]["head"]["kernel"] == after[0]["head"]["kernel"])
    assert ("head" in after[1]) == norm
    network = sum(leaf.size for leaf in jax.tree.leaves(before[0]["model"]))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state)) < network


def test_probe_is_logistic_regression_on_the_features():
    task = probe()
    params, extra = build.jit_once(task.init)(jax.random.key(0), batch())
    out = task.predict(params, extra, batch())
    want = np.asarray(out["features"]) @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(out["logits"], want, rtol=1e-4, atol=1e-6)
    loss, (after, logs) = task.loss(params, extra, batch(), **ARGUMENTS)
    assert float(loss) == pytest.approx(float(np.mean(softmax_cross_entropy(want, batch()["label"]))), rel=1e-4)
    assert float(logs["top1"]) == np.mean(np.argmax(want, -1) == batch()["label"])
    assert after.keys() == {"model"}
    _, full, _, _ = ready("classification")
    for name in params["model"].keys() - {"fc"}:  # the network begins as any other of this seed
        jax.tree.map(np.testing.assert_array_equal, params["model"][name], full["model"][name])


def test_probe_kernel_begins_as_published():
    wide = models.resnet18(classes=CLASSES, depths=(1,), width=64, stem="small", norm="none")
    task = tasks.linear_probe(wide, CONTRACT, classes=400)
    kernel = np.asarray(jax.jit(task.init)(jax.random.key(0), batch())[0]["head"]["kernel"])
    assert kernel.shape == (64, 400)
    assert kernel.std() == pytest.approx(0.01, rel=0.02)
    assert abs(kernel.mean()) < 5e-4


def test_probe_norm_is_a_batch_norm_without_scale():
    task = probe(norm=True)
    params, extra = task.init(jax.random.key(0), batch())
    features = np.asarray(task.predict(params, extra, batch())["features"], np.float64)
    padded = {**batch(), "mask": np.arange(8) < 6}
    loss, (after, _) = task.loss(params, extra, padded, **ARGUMENTS)
    mean, var = features[:6].mean(0), features[:6].var(0)
    logits = (features[:6] - mean) / np.sqrt(var + 1e-6) @ np.asarray(params["head"]["kernel"], np.float64)
    want = np.mean(softmax_cross_entropy(jnp.float32(logits), batch()["label"][:6]))
    assert float(loss) == pytest.approx(float(want), rel=1e-3)
    np.testing.assert_allclose(after["head"]["mean"], 0.1 * mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(after["head"]["var"], 0.9 + 0.1 * var, rtol=1e-4)
    stored = {"mean": jnp.float32(mean), "var": jnp.float32(var)}
    out = task.predict(params, {**extra, "head": stored}, batch())["logits"][:6]
    np.testing.assert_allclose(out, logits, rtol=1e-3, atol=1e-5)


# --------------------------------------------------------------------------- distillation


def distilled(teaching=None, net="none", **options):
    return tasks.distillation(model(net), CONTRACT, teaching or classification(net), teacher="some", **options)


def test_distillation_is_the_formula():
    """Hinton et al.: T^2 * KL at temperature T, plus alpha times cross-entropy."""
    task = distilled(temperature=3.0, alpha=0.5)
    params, extra = task.init(jax.random.key(0), batch())
    student, teacher = (
        classification("none").predict(*weights, batch())["logits"]
        for weights in ((params, extra), (extra["teacher"]["params"], extra["teacher"]["extra"]))
    )
    divergence = float(np.mean(soft_target_divergence(student, teacher, temperature=3.0)))
    entropy = float(np.mean(softmax_cross_entropy(student, batch()["label"])))
    loss, (_, logs) = task.loss(params, extra, batch(), **ARGUMENTS)
    assert float(loss) == pytest.approx(divergence + 0.5 * entropy, rel=1e-4)
    assert float(logs["divergence"]) == pytest.approx(divergence, rel=1e-4)
    assert float(logs["agreement"]) == np.mean(np.argmax(student, -1) == np.argmax(teacher, -1))


def test_patient_and_consistent_labels_do_not_count_and_a_twin_is_perfect():
    task = distilled()
    params, extra = task.init(jax.random.key(0), batch())
    one, _ = task.loss(params, extra, batch(), **ARGUMENTS)
    other, _ = task.loss(params, extra, {**batch(), "label": (batch()["label"] + 1) % CLASSES}, **ARGUMENTS)
    assert float(one) == float(other) > 1e-4
    mixed = tasks.mixup(task, classes=CLASSES)  # both see the same mixture
    twin = {**extra, "teacher": {"params": params, "extra": {"model": extra["model"]}}}
    loss, (_, logs) = mixed.loss(params, twin, batch(), **ARGUMENTS)
    assert float(loss) == pytest.approx(0, abs=1e-6)
    assert float(logs["agreement"]) == 1


def test_the_teacher_normalises_by_its_own_contract():
    other = InputContract(size=8, resize=8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    task = distilled(tasks.classification(model("none"), other))
    params, extra = task.init(jax.random.key(0), batch())
    pixels = batch()["image"].astype(np.float32) / 255
    x = (pixels - np.float32((0.5, 0.4, 0.3))) / np.float32((0.2, 0.3, 0.4))
    theirs = model("none").apply({"params": extra["teacher"]["params"]["model"]}, x, train=False)["logits"]
    mine = classification("none").predict(params, extra, batch())["logits"]
    loss, _ = task.loss(params, extra, batch(), **ARGUMENTS)
    assert float(loss) == pytest.approx(float(np.mean(soft_target_divergence(mine, theirs))), rel=1e-4)


def test_the_teacher_is_loaded_never_moves_and_runs_in_evaluation_mode():
    _, params, extra, _ = ready("classification", "batch")
    given = {"extra": {"teacher": jax.device_get({"params": params, "extra": extra})}}
    task = distilled(net="batch", alpha=1.0)
    state = init_state(task, optax.adam(0.1), jax.random.key(5), batch(), given)
    step = jax.jit(make_step(task, optax.adam(0.1), seed=0))
    for _ in range(3):
        state, _ = step(state, batch())
    kept = state.extra["teacher"]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(kept), given["extra"]["teacher"])
    assert not np.any(state.params["model"]["fc"]["kernel"] == params["model"]["fc"]["kernel"])


def test_without_its_teacher_the_student_predicts_the_same():
    task = distilled()
    params, extra = task.init(jax.random.key(0), batch())
    alone = tasks.distillation(model("none"), CONTRACT, teacher="some")
    mine, rest = alone.init(jax.random.key(0), batch())
    assert rest.keys() == {"model"}
    assert jax.tree.structure(mine) == jax.tree.structure(params)
    one, two = (t.predict(params, e, batch())["logits"] for t, e in ((task, extra), (alone, rest)))
    np.testing.assert_array_equal(one, two)
    with pytest.raises(ValueError, match="no loss without the teacher"):
        alone.loss(params, rest, batch(), **ARGUMENTS)


@pytest.mark.parametrize(
    ("options", "words"),
    [(dict(), "name a teacher"), (dict(teacher="x", temperature=0.0), "temperature must be positive"),
     (dict(teacher="x", alpha=-1.0), "alpha must be at least 0")],
)  # fmt: skip
def test_distillation_errors(options, words):
    with pytest.raises(ValueError, match=words):
        tasks.distillation(model("none"), CONTRACT, **options)
