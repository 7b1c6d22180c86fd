"""What an earlier version wrote is read as it was meant.

earlier_version.tar.xz holds 180 photos in folders 0 to 11, config.py, and what `train`, `predict` and `export` of
commit ba2e615 made of them with jax 0.10.2. That commit ordered the classes as text: 0, 1, 10, 11, 2, ...
"""

import csv
import json
import shutil
import tarfile

import numpy as np
import pytest

from jaxvision import config as config_lib
from jaxvision.errors import UserError
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("earlier version")
    with tarfile.open(ROOT / "tests" / "earlier_version.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def run(command, folder):
    """Runs a command beside the photos; gives its last line."""

    def run(module, *words):
        done = command(f"jaxvision.{module}", *words, cwd=folder, PYTHONPATH=str(ROOT))
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1]), done.stdout

    return run


def test_evaluation(run, folder):
    stored = json.loads((folder / "run" / "eval" / "val.json").read_text())
    last, _ = run("evaluate", "--from", "run", "--out", "evaluated", "--json")
    found = json.loads((folder / "evaluated" / "eval" / "val.json").read_text())
    assert last["step"] == stored["step"] == 40
    assert 0.4 < stored["metrics"]["top1"] < 0.5  # exchanged classes would show
    assert found["metrics"] == pytest.approx(stored["metrics"], rel=1e-5)
    assert found["digest_of_sample_ids"] == stored["digest_of_sample_ids"]  # the same held-out tenth
    assert found["classes"] == stored["classes"] == [str(k) for k in (0, 1, 10, 11, *range(2, 10))]


def test_predictions(run, folder):
    run("predict", "--from", "run", "--out", "predictions.csv", "photos")
    found, want = (
        list(csv.reader((folder / name).read_text().splitlines())) for name in ("predictions.csv", "predicted.csv")
    )
    assert len(found) == 181
    assert [row[:2] for row in found] == [row[:2] for row in want]
    np.testing.assert_allclose([float(p) for _, _, p in found[1:]], [float(p) for _, _, p in want[1:]], atol=1e-5)


@pytest.mark.parametrize("file", ["run.onnx", "run.stablehlo"])
def test_exports(run, file):
    last, said = run("export", "--verify", file)
    assert "by an earlier version and does not carry its certificate" in said
    assert last["compared"] == "trained network"
    assert last["from_files"]["agreement"] == 1.0
    assert last["accuracy"]["exported"] == last["accuracy"]["trained"] == {"top1": pytest.approx(11 / 24)}


def test_resume(run, folder):
    """From step 20: the same losses and figures as that commit's own steps 21 to 40.

    Its config file has a key of that version: the error says the line to write, and with that line the run goes on.
    """
    old = (folder / "config.py").read_text()
    with pytest.raises(UserError, match=r"optim\.warmup is .*: set config\.optim\.warmup_share = 0\.0"):
        config_lib.load(str(folder / "config.py"))
    (folder / "config.py").write_text(old.replace("warmup=0.0", "warmup_share=0.0"))
    workdir = folder / "resumed"
    shutil.copytree(folder / "run", workdir)
    shutil.rmtree(workdir / "checkpoints" / "40")
    log = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log if row["step"] <= 20))
    _, said = run("train", "--config", "config.py", "--workdir", workdir)
    assert "resuming at step 20" in said
    assert "lists its classes in another order now; labels keep that of" in said
    again = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["kind"]) for row in again] == [(row["step"], row["kind"]) for row in log]
    for row, before in zip(again, log):
        assert row["loss"] == pytest.approx(before["loss"], rel=1e-4), row
        assert row["top1"] == pytest.approx(before["top1"], abs=1e-6), row


# --------------------------------------------------------------------------- a run of commit f5128af
#
# regression_run.tar.xz holds 48 pictures with two numbers each in table.csv, config.py, and what `train` (40 steps,
# adamw with warm-up, mixup and then ema around regression, two evaluations), `export` and `predict` made of them.

NEW_LINES = (
    ("warmup=0.1", "warmup_share=0.1"),
    (
        "config.wrap = dict(mixup=dict(alpha=0.2, probability=0.5), ema=dict(decay=0.9))",
        'config.wrap = (("mixup", dict(alpha=0.2, probability=0.5)), ("ema", dict(decay=0.9)))',
    ),
)


@pytest.fixture(scope="module")
def regression(tmp_path_factory):
    folder = tmp_path_factory.mktemp("regression run")
    with tarfile.open(ROOT / "tests" / "regression_run.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def last_line(command, folder, module, *words):
    done = command(f"jaxvision.{module}", *words, cwd=folder, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_run_with_wrappers_is_evaluated_predicted_and_verified(command, regression):
    found = last_line(command, regression, "evaluate", "--from", "run", "--out", "evaluated", "--json")["evals"]
    for name in ("all", "val"):
        stored = json.loads((regression / "run" / "eval" / f"{name}.json").read_text())
        measured = {key: value for key, value in found[name].items() if key not in ("count", "digest")}
        assert measured == pytest.approx(stored["metrics"], rel=1e-5)
        assert found[name]["digest"] == stored["digest_of_sample_ids"]
    last_line(command, regression, "predict", "--from", "run", "--out", "again.csv", "--json", "photos")
    again, want = (
        list(csv.reader((regression / name).read_text().splitlines())) for name in ("again.csv", "predicted.csv")
    )
    assert [row[0] for row in again] == [row[0] for row in want]
    assert again[0] == want[0] == ["image", "red", "blue"]
    np.testing.assert_allclose(np.array(again)[1:, 1:].astype(float), np.array(want)[1:, 1:].astype(float), rtol=1e-4)
    verified = last_line(command, regression, "export", "--verify", "run.onnx", "--json")
    assert verified["compared"] == "trained network"
    assert verified["from_files"]["agreement"] == 1.0


def test_a_run_with_wrappers_goes_on(command, regression):
    """From step 39: the same last step, and the same figures of the averaged weights."""
    text = (regression / "config.py").read_text()
    for old, new in NEW_LINES:
        assert old in text
        text = text.replace(old, new)
    (regression / "now.py").write_text(text)
    workdir = regression / "resumed"
    shutil.copytree(regression / "run", workdir)
    shutil.rmtree(workdir / "checkpoints" / "40")
    log = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log if row["step"] < 40))
    last = last_line(command, regression, "train", "--config", "now.py", "--workdir", "resumed", "--json")
    assert last["step"] == 40
    for name in ("all", "val"):
        stored = json.loads((regression / "run" / "eval" / f"{name}.json").read_text())
        assert last["evals"][name] == pytest.approx(stored["metrics"], rel=1e-4)
