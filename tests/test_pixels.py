"""Deep grey and transparency from the file to the answer: what training sees, evaluation, predict and export see."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxvision.data import InputContract, reader
from jaxvision.deploy import inference
from jaxvision.errors import UserError
from jaxvision.training import loop, restore
from jaxvision.weights.published import Published
from tests.tiny import make_tiny_config
from tests.weights.test_published import run

LOW, HIGH = 2000, 2120  # levels of the two classes: one of 256, if 65535 are taken for the whole


def x_rays(root):
    for k in range(16):
        for name, level in (("benign", LOW), ("malign", HIGH)):
            noise = np.random.default_rng(k).integers(-20, 20, (8, 8))
            (root / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray((level + noise).astype(np.uint16)).save(root / name / f"{k}.png")
    return f"folder:{root}"


@pytest.fixture(scope="module")
def config_of(tmp_path_factory):
    uri = x_rays(tmp_path_factory.mktemp("x_rays"))

    def make(**data):
        config = make_tiny_config()
        config.data.update(train=uri + "?part=0:50%", channels=1, mean=(0.5,), std=(0.1,), transforms=(), **data)
        config.update(steps=8, batch_size=16)
        config.evals = dict(test=dict(metric="topk", data=uri + "?part=50%:100%", every_steps=8))
        return config

    return make


@pytest.fixture(scope="module")
def workdir(config_of, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "range"
    said = []
    loop.fit(config_of(range=(0, 4095)), folder, say=said.append)
    assert not any("hold levels" in line for line in said)
    return folder


def test_unused_levels_are_told_at_the_start(config_of, tmp_path):
    config, said = config_of(), []
    config.update(steps=1)
    loop.fit(config, tmp_path / "w", say=said.append)
    (line,) = [line for line in said if "hold levels" in line]
    assert "hold levels 19" in line
    assert "set config.data.range = (0, 4095)" in line


def test_the_contract_travels(workdir, tmp_path, capsys):
    (checkpoint,) = [p for p in (workdir / "checkpoints").glob("*/about.json") if p.parent.name == "8"]
    assert json.loads(checkpoint.read_text())["contract"]["range"] == [0, 4095]
    certificate = json.loads((workdir / "eval" / "test.json").read_text())
    assert InputContract.from_dict(certificate["contract"]).range == (0, 4095)

    trained = inference.load(workdir)
    uri = certificate["data"].removeprefix("folder:").partition("?")[0]
    files = [f"{uri}/benign/0.png", f"{uri}/malign/0.png"]
    dark, bright = (trained.pixels(file, file) for file in files)
    assert round(float(bright.mean() - dark.mean()), 1) == pytest.approx((HIGH - LOW) * 255 / 4095, abs=0.2)

    out = tmp_path / "x.stablehlo"
    assert run("export", "--from", str(workdir), "--out", str(out), "--data", certificate["data"]) == 0
    capsys.readouterr()
    exported = inference.load(out)
    assert exported.contract == trained.contract
    for a, b in zip(trained.predict(files), exported.predict(files)):
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-5)


def test_other_pixels_are_another_run(workdir, config_of, tmp_path):
    with pytest.raises(UserError, match=r"data\.range: \(0, 4095\) -> \(\)"):
        loop.fit(config_of(), workdir, say=lambda text: None)
    tuned = config_of()
    tuned.init = str(workdir)
    with pytest.raises(UserError, match=r"want data\.range \(0, 4095\), this config has \(\): set config\.data"):
        loop.fit(tuned, tmp_path / "w", say=lambda text: None)
    tuned = config_of(range=(0, 4095), background=(0, 0, 0))
    tuned.init = str(workdir)
    with pytest.raises(UserError, match=r"want data\.background \(\), this config has \(0, 0, 0\)"):
        loop.fit(tuned, tmp_path / "w", say=lambda text: None)
    tuned.init_policy.contract = ("background",)
    tuned.steps = 1
    loop.fit(tuned, tmp_path / "w", say=lambda text: None)


def test_what_may_differ_is_spelt_right(config_of):
    config = config_of()
    config.init_policy.contract = ("maen",)
    weights = Published("timm:x", "timm", config.model.name, "", None, Path("x"), reader.contract(config))
    with pytest.raises(UserError, match=r"init_policy\.contract is 'maen': did you mean 'mean'\?"):
        restore._check_made_for(weights, config)


@pytest.mark.parametrize(
    ("theirs", "mine", "refused"), [((), (0, 4095), False), ((0, 4095), (0, 4095), False), ((0, 4095), (), True)]
)
def test_published_weights(config_of, theirs, mine, refused):
    """Files of other libraries say no range, and may start a network for X-rays; what we exported says one."""
    config = config_of(range=mine)
    contract = InputContract(channels=1, mean=(0.5,), std=(0.1,), range=theirs)
    weights = Published("timm:x", "timm", config.model.name, "", None, Path("x"), contract)
    with pytest.raises(UserError, match=r"want data\.range") if refused else contextlib.nullcontext():
        restore._check_made_for(weights, config)


def test_a_workdir_of_before_goes_on(workdir, config_of, tmp_path):
    """Its config.json and about.json know neither key."""
    folder, config = tmp_path / "w", config_of()
    config.update(steps=1)
    loop.fit(config, folder, say=lambda text: None)
    path = folder / "config.json"
    old = json.loads(path.read_text())
    del old["data"]["range"], old["data"]["background"]
    path.write_text(json.dumps(old))
    config.steps = 2
    said = []
    loop.fit(config, folder, say=said.append)
    assert any("resuming at step 1" in line for line in said)


def test_commands_tell_it_too(workdir, tmp_path, capsys):
    eight = tmp_path / "eight"
    for name in ("benign", "malign"):
        (eight / name).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8), np.uint16) + 255).save(eight / name / "a.png")
    assert run("evaluate", "--from", str(workdir), "--data", f"folder:{eight}", "--out", str(tmp_path / "o")) == 0
    assert "hold levels 255 to 255, a part of data.range = (0, 4095)" in capsys.readouterr().out
    assert run("predict", "--from", str(workdir), str(eight)) == 0
    assert "2 of 2 images of the command line that were looked at have more than 8 bits" in capsys.readouterr().out
    assert run("pack", "--from", f"folder:{eight}", "--out", str(tmp_path / "p"), "--quality", "90") == 0
    assert "--quality store 8 bits and no alpha for good" in capsys.readouterr().out


def test_training_images_among_those_of_an_evaluation_are_told(config_of, tmp_path):
    config, said = config_of(range=(0, 4095)), []
    config.update(steps=1)
    config.evals.test.data = config.data.train
    loop.fit(config, tmp_path / "w", say=said.append)
    assert any(line.startswith("warning: 16 of the 16 images of folder:") for line in said)
