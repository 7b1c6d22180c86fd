"""Images that nobody labelled: pretrained on, watched with a few that somebody did, and packed."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxvision.data.sources import open_source
from jaxvision.errors import UserError
from jaxvision.training import loop
from tests.tiny import make_tiny_config
from tests.weights.test_published import run

TWO = (("multi_view", dict(views=((("shift", dict(share=0.2)),), ()))),)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """all/ without labels; some/0 .. some/3 with."""
    root, digits = tmp_path_factory.mktemp("photos"), open_source("digits:train")
    (root / "all").mkdir()
    for i in range(96):
        sample = digits[i]
        image = Image.fromarray(np.asarray(sample["image"]).squeeze())
        image.save(root / "all" / f"{i}.png")
        if sample["label"] < 4:
            (root / "some" / str(sample["label"])).mkdir(parents=True, exist_ok=True)
            image.save(root / "some" / str(sample["label"]) / f"{i}.png")
    return root


def config_of(photos):
    config = make_tiny_config()
    config.data.update(train=f"images:{photos}/all", transforms=TWO)
    config.task = dict(name="simclr", widths=(16, 8))
    config.update(batch_size=32, steps=4)
    some = f"folder:{photos}/some"
    config.evals = dict(knn=dict(metric="knn", data=f"{some}?part=50%:100%", bank=f"{some}?part=0:50%", every_epochs=0))
    return config


@pytest.fixture(scope="module")
def pretrained_on(photos, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("pretrained")
    said = []
    loop.fit(config_of(photos), workdir, say=said.append)
    assert any("parameters, no labels | 96 training images" in line for line in said)
    return workdir


def test_the_classes_measured_on_are_those_of_the_labelled_images(photos, pretrained_on, capsys):
    summary = json.loads((pretrained_on / "summary.json").read_text())
    certificate = json.loads((pretrained_on / "eval" / "knn.json").read_text())
    assert certificate["classes"] == ["0", "1", "2", "3"]
    assert (pretrained_on / "eval" / "knn.png").exists()
    assert run("evaluate", "--from", str(pretrained_on), "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert again["evals"]["knn"]["knn"] == pytest.approx(summary["evals"]["knn"]["knn"])


def test_it_predicts_nothing_and_is_fine_tuned(photos, pretrained_on, tmp_path, capsys):
    assert run("predict", "--from", str(pretrained_on), str(photos / "all" / "0.png")) == 2
    told = "task simclr, without labels, so it says nothing of an image: fine-tune it first"
    assert told in capsys.readouterr().err
    config = make_tiny_config()
    config.data.train = f"folder:{photos}/some"
    config.init, config.batch_size, config.steps, config.evals = str(pretrained_on), 16, 2, {}
    loop.fit(config, tmp_path, say=lambda text: None)
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "done"


def test_what_needs_labels_says_so(photos, tmp_path):
    def message(config):
        with pytest.raises(UserError) as error:
            loop.fit(config, tmp_path, say=lambda text: None)
        return str(error.value)

    config = config_of(photos)
    config.task, config.evals, config.data.transforms = dict(name="classification"), {}, ()
    assert "/all has none: name labelled data, or set config.task.name to what learns without (" in message(config)
    config = config_of(photos)
    config.evals.knn.bank = f"images:{photos}/all"
    assert "evals.knn: knn compares with labels of kind 'class', and images:" in message(config)
    config = config_of(photos)
    config.evals.knn.bank = "fake:20x8"
    assert f"the classes of fake:20x8 are not those of folder:{photos}/some" in message(config)


def test_packed_they_stay_without_labels(photos, tmp_path):
    assert run("pack", "--from", f"images:{photos}/all", "--out", str(tmp_path / "packed")) == 0
    source, packed = open_source(f"images:{photos}/all"), open_source(f"records:{tmp_path}/packed")
    assert (packed.kind, packed.classes, len(packed)) == ("none", (), len(source))
    assert [packed[i] for i in (0, 95)] == [source[i] for i in (0, 95)]
