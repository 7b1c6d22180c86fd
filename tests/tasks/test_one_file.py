"""A task is one file and one export line: trained, evaluated, predicted, exported, and found by the contract tests."""

import csv

import numpy as np
import pytest
from PIL import Image

import jaxvision
from jaxvision import tasks
from jaxvision.evaluate import evaluate
from jaxvision.export import export
from jaxvision.predict import predict
from jaxvision.train import train
from tests.tasks.colourfulness import colourfulness

CONFIG = """
from tests.tiny import make_tiny_config

config = make_tiny_config()
config.task = dict(name="colourfulness")
config.data.update(train="images:{folder}", transforms=(("flip", {{}}),))
config.steps, config.batch_size = 200, 16
config.optim.update(lr=0.02, schedule="constant")
config.evals = dict(test=dict(metric="regression", data="images:{folder}", every_epochs=0, every_steps=200))
config.checkpoint.update(every_steps=200)
config.log.update(every_steps=50)
"""


@pytest.fixture(scope="module", autouse=True)
def exported_line():
    """What `from jaxvision.tasks.colourfulness import colourfulness` and its name in `__all__` do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "colourfulness", colourfulness, raising=False)
        patch.setattr(tasks, "__all__", [*tasks.__all__, "colourfulness"])
        patch.setattr(tasks, "TASKS", (*tasks.TASKS, "colourfulness"))
        yield


def how_colourful(pixels):
    """In NumPy, float64."""
    red, green, blue = np.moveaxis(pixels.astype(float), -1, 0)
    first, second = red - green, (red + green) / 2 - blue
    return np.hypot(first.std(), second.std()) + 0.3 * np.hypot(first.mean(), second.mean())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(workdir, folder of images that nobody labelled)."""
    folder = tmp_path_factory.mktemp("unlabelled")
    rng = np.random.default_rng(0)
    for k in range(48):
        grey, colours = rng.integers(0, 256, (8, 8, 1)), rng.integers(0, 256, (8, 8, 3))
        Image.fromarray((grey + (colours - grey) * k / 47).astype(np.uint8)).save(folder / f"{k:02}.png")
    config = folder.parent / "config.py"
    config.write_text(CONFIG.format(folder=folder))
    workdir = folder.parent / "run"
    result = train(["--config", str(config), "--workdir", str(workdir)])
    assert result["evals"]["test"]["r2"] > 0.9, result
    return workdir, folder


def test_it_is_evaluated_against_what_the_images_are(run):
    workdir, folder = run
    measured = evaluate(["--from", str(workdir)])["evals"]["test"]
    pixels = [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]
    want = np.array([how_colourful(p) for p in pixels])
    found = np.array([p.values["colourfulness"] for p in jaxvision.load(workdir).predict(pixels)])
    assert measured["mae"] == pytest.approx(np.abs(found - want).mean(), rel=1e-3)
    assert measured["r2"] > 0.9
    page = (workdir / "report.html").read_text()
    assert "Predicted against true, and residuals" in page
    assert "colourfulness" in page


def test_it_is_predicted(run, tmp_path):
    workdir, folder = run
    predict(["--from", str(workdir), "--out", str(tmp_path / "a.csv"), str(folder)])
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert len(rows) == 48
    assert float(rows[-1]["colourfulness"]) > float(rows[0]["colourfulness"]) + 20


def test_it_is_exported_with_a_certificate(run, tmp_path):
    workdir, folder = run
    result = export(["--from", str(workdir), "--out", str(tmp_path / "a.onnx")])
    assert result["from_files"]["agreement"] == 1.0
    first, last = jaxvision.load(tmp_path / "a.onnx").predict([folder / "00.png", folder / "47.png"])
    assert last.values["colourfulness"] > first.values["colourfulness"] + 20
    assert export(["--verify", str(tmp_path / "a.onnx")])["compared"] == "trained network"
