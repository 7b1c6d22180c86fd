"""train, then evaluate and predict, as the README tells."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from jaxvision.data.sources import open_source
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def workdir(command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "tiny.py").write_text(
        "from tests.tiny import make_tiny_config\nconfig = make_tiny_config()\nconfig.steps = 150\n"
        "config.model.depths = (1, 1)\n"
        "config.optim.lr = 0.2\n"
        "config.evals.test.every_steps = config.checkpoint.every_steps = 50\n"
        "config.wrap = (('ema', dict(decay=0.9)),)\nconfig.log.every_steps = 50\n"
    )
    # a relative workdir, as people give it and as the default is
    done = command(
        "jaxvision.train", "--config", folder / "tiny.py", "--workdir", "w", cwd=folder, PYTHONPATH=str(ROOT)
    )
    assert done.returncode == 0, done.stderr
    return folder / "w", json.loads(done.stdout.splitlines()[-1])


def test_evaluate_gives_what_training_gave(command, workdir):
    path, trained = workdir
    done = command("jaxvision.evaluate", "--from", path, devices=3)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["step"] == 150
    assert result["evals"]["test"]["count"] == 360
    assert result["evals"]["test"]["top1"] == trained["evals"]["test"]["top1"]
    assert result["evals"]["test"]["loss"] == pytest.approx(trained["evals"]["test"]["loss"], abs=1e-5)
    certificate = json.loads((path / "eval" / "test.json").read_text())
    assert certificate["digest_of_sample_ids"] == result["evals"]["test"]["digest"]
    assert certificate["contract"]["size"] == 8


def test_evaluate_says_before_it_measures_that_it_cannot_write(command, workdir):
    done = command("jaxvision.evaluate", "--from", workdir[0], "--out", "/proc/nowhere")
    assert done.returncode == 2
    assert "/proc/nowhere/eval cannot be written (" in done.stderr
    assert "name another folder with --out" in done.stderr
    assert "top1" not in done.stdout


def test_without_a_workdir_and_from_a_relative_one(command, workdir, tmp_path):
    path, _ = workdir
    done = command("jaxvision.train", "--config", path.parent / "tiny.py", "--config.steps=2", "--json", cwd=tmp_path,
                   PYTHONPATH=str(ROOT))  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)["workdir"]
    assert made.startswith("runs/tiny-")
    for source in (made, f"{made}/checkpoints/2"):
        done = command("jaxvision.evaluate", "--from", source, "--json", cwd=tmp_path, PYTHONPATH=str(ROOT))
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["step"] == 2
    start = command("jaxvision.train", "--config", path.parent / "tiny.py", "--config.steps=4", "--workdir", made,
                    cwd=tmp_path, PYTHONPATH=str(ROOT))  # fmt: skip
    assert "resuming at step 2" in start.stdout, start.stderr


def test_evaluate_best_and_other_data(command, workdir):
    path, _ = workdir
    done = command("jaxvision.evaluate", "--from", path, "--checkpoint", "best", "--data", "digits:train", "--json")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["evals"]["test"]["count"] == 1437
    assert (path / "eval" / "test-other.json").exists()
    done = command("jaxvision.evaluate", "--from", path, "--data", "fake:10x8")
    assert done.returncode == 2
    assert "are not those of the training data" in done.stderr
    done = command("jaxvision.evaluate", "--from", path, "--checkpoint", "7")
    assert done.returncode == 2
    assert "there are best, last" in done.stderr


def test_predict_names_images_and_folders(command, workdir, tmp_path):
    path, _ = workdir
    source = open_source("digits:test")
    labels = []
    for i in range(40):
        Image.fromarray(source[i]["image"]).save(tmp_path / f"{i:02}.png")
        labels.append(source.classes[source[i]["label"]])
    done = command("jaxvision.predict", "--from", path, "--top", "2", tmp_path, process=True)
    assert done.returncode == 0, done.stderr
    *lines, rate, last = done.stdout.splitlines()
    assert len(lines) == 40
    assert re.fullmatch(r"40 images in [\d.]+ s, [\d.]+ images/s", rate)
    predictions = json.loads(last)["predictions"]
    assert [p["image"] for p in predictions] == sorted(str(f) for f in tmp_path.glob("*.png"))
    assert all(len(p["predictions"]) == 2 for p in predictions)
    found = [p["predictions"][0]["class"] for p in predictions]
    assert np.mean([a == b for a, b in zip(found, labels, strict=True)]) > 0.6
    assert lines[0].split()[1] == found[0]
    single = command("jaxvision.predict", "--from", path, "--json", tmp_path / "03.png")
    (line,) = single.stdout.splitlines()
    assert json.loads(line)["predictions"][0]["predictions"][0]["class"] == found[3]


def test_predict_reports_bad_files_and_reads_the_others(command, workdir, tmp_path):
    path, _ = workdir
    Image.fromarray(open_source("digits:test")[0]["image"]).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"nothing")
    done = command("jaxvision.predict", "--from", path, tmp_path)
    assert done.returncode == 2
    assert "good.png" in done.stdout
    assert "bad.png" in done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert len(last["predictions"]) == 1
    assert "bad.png" in last["failed"][0]
    done = command("jaxvision.predict", "--from", path, tmp_path / "absent.png")
    assert done.returncode == 2
    assert "absent.png" in done.stderr
