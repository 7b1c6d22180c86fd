"""Whole runs: freezing, layer decay, l2_sp, a linear probe and distillation, stopped, resumed, evaluated."""

import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
from etils import epath
from flax import traverse_util

from jaxvision import config as config_lib
from jaxvision import models
from jaxvision.data import reader
from jaxvision.errors import UserError
from jaxvision.training import build, restore
from jaxvision.weights import checkpoint, torch
from tests.training.test_loop import assert_bit_equal, final_state, records
from tests.training.test_loop import fit as fit_one_stage
from tests.weights.test_published import run


def fit(path, **changes):
    """With two stages, of which one can learn while the other does not."""
    return fit_one_stage(path, **{"model__depths": (1, 1), **changes})


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A classifier of the digits with averaged weights."""
    path = tmp_path_factory.mktemp("pretrained")
    fit(path, steps=4, wrap=(("ema", dict(decay=0.5)),), evals=dict())
    return path


def averaged(workdir, step=4):
    return checkpoint.read(epath.Path(workdir) / "checkpoints" / str(step), ("extra",))["extra"]["ema"]


def test_everything_at_once_is_told_and_resumes_bit_equal(tmp_path, workdir):
    """Layer decay, groups, gradual unfreezing, decay on a cosine, adamw, and the anchor of l2_sp."""
    changes = dict(
        init=str(workdir), evals=dict(), wrap=(("l2_sp", dict(strength=0.01)),),
        optim=dict(config_lib.default().optim, name="adamw", lr=0.01, clip=1.0, weight_decay=0.04,
                   weight_decay_final=0.4, layer_decay=0.5, groups=(("bn1", 0.0),),
                   unfreeze_share=(("layer1", 0.75), ("layer2", 0.5))),
        checkpoint__keep=9,
    )  # fmt: skip
    whole, said = fit(tmp_path / "a", **changes)
    for line in (
        "optim: learning rate times  leaves    parameters",
        "frozen: model/bn1/bias, model/bn1/scale",
        "from 75% of the steps: model/layer1_0/",
        "optim: weight decay from 0.04 to 0.4, a cosine",
    ):
        assert line in said
    start = averaged(workdir)["params"]["model"]
    at = {step: final_state(tmp_path / "a", step)["params"]["model"] for step in (4, 8, 12)}
    for step, module, still in [(4, "layer1_0", True), (8, "layer1_0", True), (12, "layer1_0", False),
                                (4, "layer2_0", True), (8, "layer2_0", False), (4, "fc", False)]:  # fmt: skip
        same = jax.tree.map(lambda a, b: a.tobytes() == b.tobytes(), at[step][module], start[module])
        assert all(jax.tree.leaves(same)) == still, (step, module)
    assert records(tmp_path / "a", "train")[-1]["l2_sp"] > 0
    anchor = whole.extra["anchor"]["start"]["model"]
    assert_bit_equal(jax.device_get(anchor), start)
    # an interrupted run: its first 4 steps are there, and not even what it began from is needed any more
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for step in (8, 12):
        shutil.rmtree(tmp_path / "b" / "checkpoints" / str(step))
    again, said = fit(tmp_path / "b", **changes)
    assert "resuming at step 4" in said
    assert_bit_equal(jax.device_get(again), jax.device_get(whole))


def test_l2_sp_needs_weights_to_stay_near_to(tmp_path):
    with pytest.raises(UserError, match=r"wrap.l2_sp .* config.init loads, and init is empty"):
        fit(tmp_path, wrap=(("l2_sp", {}),))


def test_a_linear_probe_of_nothing_says_so(tmp_path):
    _, said = fit(tmp_path, task=dict(name="linear_probe"), wrap=(), steps=1, evals=dict(), optim__warmup_steps=9)
    assert "warning: optim.warmup_steps is over at step 9, and the run has 1 steps" in said
    assert "warning: task linear_probe never moves ^model/, and config.init is empty" in said


def test_a_linear_probe_of_a_training(tmp_path, workdir, capsys):
    """The network crosses and keeps every bit, its old head is dropped; evaluate knows the probe; export refuses it."""
    changes = dict(init=str(workdir), task=dict(name="linear_probe", norm=True), wrap=(), steps=8,
                   optim__weight_decay=0.1, data__train="digits:train?per_class=20&seed=1", batch_size=40)  # fmt: skip
    state, said = fit(tmp_path / "probe", **changes)
    assert "reinitialised   params/head/kernel" in said
    assert "dropped         params/model/fc/kernel" in said
    assert "frozen: model/bn1/bias" in said
    want, got = averaged(workdir), jax.device_get((state.params["model"], state.extra["model"]))
    assert "fc" not in got[0]
    for name, module in got[0].items():
        assert_bit_equal(module, want["params"]["model"][name])
    assert_bit_equal(got[1], want["model"])
    capsys.readouterr()
    assert run("evaluate", "--from", str(tmp_path / "probe")) == 0
    evals = json.loads(capsys.readouterr().out.splitlines()[-1])["evals"]
    assert evals["test"]["top1"] == pytest.approx(records(tmp_path / "probe", "eval:test")[-1]["top1"])
    out = tmp_path / "model.safetensors"
    assert run("export", "--from", str(tmp_path / "probe"), "--format", "safetensors", "--out", str(out)) == 2
    assert "lies beside the network" in capsys.readouterr().err
    # and back: fine-tuning after probing begins with a new head in the network
    _, said = fit(tmp_path / "tuned", init=str(tmp_path / "probe"), steps=1, evals=dict())
    assert "reinitialised   params/model/fc/kernel" in said
    assert "dropped         params/head/kernel" in said


def test_from_self_supervision(tmp_path, workdir):
    """A checkpoint without any head, whose projector is of no use to a probe or to fine-tuning."""
    config = restore.load(str(workdir)).config
    config.update(task=dict(name="simclr", widths=(8, 4)), wrap=())
    rng = np.random.default_rng(0)
    state = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
        dict(zip(("params", "extra"), build.abstract_init(build.task(config, 10), config))),
    )
    writer = checkpoint.Writer(epath.Path(tmp_path) / "checkpoints", keep=1)
    writer.save(1, state, {"contract": reader.contract(config).to_dict(), "classes": list("0123456789")})
    writer.close()
    found = restore.find(str(tmp_path / "checkpoints" / "1"))
    for name, head in (("linear_probe", "params/head"), ("classification", "params/model/fc")):
        config.task = dict(name=name)
        task = build.task(config, 10)
        plan = restore.load_plan(found, task, config, tuple("0123456789"))
        assert plan.reinitialised == [f"{head}/bias", f"{head}/kernel"]
        assert plan.dropped
        assert all(n.startswith(("params/projector/", "extra/projector/")) for n in plan.dropped)
        params, extra = jax.jit(task.init)(jax.random.key(0), build.zeros(config), plan.given)
        network = {n: params["model"][n] for n in state["params"]["model"]}
        assert_bit_equal(jax.device_get(network), state["params"]["model"])
        assert_bit_equal(jax.device_get(extra["model"]), state["extra"]["model"])


def test_a_student_of_a_training(tmp_path, workdir, capsys):
    """Resumes bit-equal though its teacher has learnt on; is evaluated, and begun from, when its teacher is gone."""
    shutil.copytree(workdir, tmp_path / "teacher")
    changes = dict(task=dict(name="distillation", teacher=str(tmp_path / "teacher")), steps=8,
                   model=dict(name="resnet18", width=4, depths=(1,), stem="small"),
                   wrap=(("mixup", dict(alpha=0.2)), ("ema", dict(decay=0.5))), optim__schedule="constant")  # fmt: skip
    whole, said = fit(tmp_path / "student", **changes)
    kept, want = jax.device_get(whole.extra["teacher"]), averaged(workdir)
    assert_bit_equal(kept["params"], want["params"])
    assert_bit_equal(kept["extra"], {"model": want["model"]})
    size = sum(leaf.size for leaf in jax.tree.leaves(kept["params"]))
    assert f"teacher: {size:,} parameters, from {tmp_path}/teacher/checkpoints/4" in said
    assert {"divergence", "agreement", "top1"} <= records(tmp_path / "student", "train")[-1].keys()

    fit(tmp_path / "teacher", steps=8, wrap=(("ema", dict(decay=0.5)),), evals=dict())
    shutil.rmtree(tmp_path / "student" / "checkpoints" / "8")
    again, said = fit(tmp_path / "student", **changes)
    assert "resuming at step 4" in said
    assert_bit_equal(jax.device_get(again), jax.device_get(whole))

    shutil.rmtree(tmp_path / "teacher")
    capsys.readouterr()
    assert run("evaluate", "--from", str(tmp_path / "student")) == 0
    evals = json.loads(capsys.readouterr().out.splitlines()[-1])["evals"]
    assert evals["test"]["top1"] == pytest.approx(records(tmp_path / "student", "eval:test")[-1]["top1"])
    assert "teacher" not in restore.load(str(tmp_path / "student")).extra
    _, said = fit(tmp_path / "next", init=str(tmp_path / "student"), steps=1, evals=dict(), model=changes["model"])
    assert "reinitialised" not in said
    with pytest.raises(UserError, match="does not exist"):
        fit(tmp_path / "orphan", **changes)


def test_teachers_that_do_not_fit(tmp_path, workdir):
    task = dict(name="distillation", teacher=str(workdir))
    with pytest.raises(UserError, match=r"takes images of size 8, this config has size 16: set config.data.size = 8"):
        fit(tmp_path, task=task, data__size=16, data__resize=16)
    with pytest.raises(UserError, match=r"classes of the teacher .* are not those of the training data"):
        fit(tmp_path, task=task, data__train="fake:64x8?classes=10", evals=dict())
    with pytest.raises(UserError, match=r"task: name a teacher"):
        fit(tmp_path, task=dict(name="distillation"))


def test_published_weights_teach(tmp_path):
    """What other libraries train: by its class names where the file tells them, by their number where not."""
    origin = models.origins("resnet18")["torchvision"]
    shapes = jax.eval_shape(
        lambda k: models.resnet18(classes=3).init(k, np.zeros((1, 32, 32, 3), np.float32), train=False),
        jax.random.key(0),
    )
    rng = np.random.default_rng(0)
    leaves = {
        n: rng.normal(0, 0.01, leaf.shape).astype(np.float32)
        for n, leaf in traverse_util.flatten_dict(shapes, sep="/").items()
    }
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(torch.to_state_dict(leaves, origin, models.resnet18(classes=3)), path)
    config = make_config(f"torchvision:resnet18.IMAGENET1K_V1={path}")
    teacher = restore.teacher(config, ("a", "b", "c"))
    kernel = teacher.leaves["params"]["model"]["fc"]["kernel"]
    np.testing.assert_array_equal(kernel, leaves["params/fc/kernel"])
    own = build.task(config, 3, teaching=teacher.task)
    assert jax.tree.structure(build.abstract_init(own, config)[1]["teacher"]) == jax.tree.structure(teacher.leaves)
    with pytest.raises(UserError, match="tells 3 classes apart, the training data has 2"):
        restore.teacher(config, ("a", "b"))


def make_config(teacher):
    config = config_lib.default()
    config.data.update(train="digits:train", size=224)
    config.model = dict(name="resnet18", width=4, depths=(1,))
    config.task = dict(name="distillation", teacher=teacher)
    return config
