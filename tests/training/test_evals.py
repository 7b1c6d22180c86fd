"""Every sample counts exactly once."""

import functools
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxvision import config as config_lib
from jaxvision import metrics, models, tasks
from jaxvision.data.contract import InputContract
from jaxvision.data.sources import open_source
from jaxvision.errors import UserError
from jaxvision.runtime import sharding
from jaxvision.task import Metric, Task
from jaxvision.training import evals
from jaxvision.training.step import TrainState

CONTRACT = InputContract(size=8, resize=8)
ROWS = Metric(
    update=lambda p, b: {"logits": p["logits"], "index": b["index"]},
    finish=lambda rows: {"rows": float(len(rows["index"]))},
    gather=True,
)


@functools.cache
def trained():
    model = models.resnet18(classes=10, depths=(1,), width=8, stem="small")
    task = tasks.classification(model, CONTRACT)
    image = jnp.zeros((2, 8, 8, 3), jnp.uint8)
    params, extra = task.init(jax.random.key(0), {"image": image}, None)
    return task, TrainState(jnp.int32(0), params, extra, ())


@pytest.mark.parametrize("devices", [1, 3, 8])
def test_360_samples_in_batches_of_64(devices):
    task, state = trained()
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    state = jax.device_put(state, sharding.replicated(mesh))
    seen = []
    rows = ROWS._replace(finish=lambda r: (seen.append(r), {"rows": float(len(r["index"]))})[1])
    batches = evals.source_batches(open_source("digits:test"), CONTRACT, mesh, 64)
    result = evals.run(task, state, {"topk": metrics.topk(classes=10), "rows": rows}, batches)
    assert result.samples == 360 == result.metrics["rows"]
    np.testing.assert_array_equal(seen[0]["index"], np.arange(0, 1797, 5))
    results = reference()
    assert result.digest == results[0].digest
    assert result.metrics["top1"] == results[0].metrics["top1"]
    assert result.metrics["loss"] == pytest.approx(results[0].metrics["loss"], abs=1e-6)
    np.testing.assert_array_equal(seen[0]["logits"].argmax(-1), results[1].argmax(-1))


@functools.cache
def reference():
    """One device, one batch of all 360: no padding anywhere."""
    task, state = trained()
    seen = []
    rows = ROWS._replace(finish=lambda r: (seen.append(r), {})[1])
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    batches = evals.source_batches(open_source("digits:test"), CONTRACT, mesh, 360)
    return evals.run(task, state, {"topk": metrics.topk(classes=10), "rows": rows}, batches), seen[0]["logits"]


# A task whose prediction is the image's first pixel: cheap enough for many sizes.
PIXEL = Task(init=lambda *a: ({}, {}), loss=lambda *a: None, predict=lambda p, e, b: {"pixel": b["image"][:, 0, 0, 0]})
SUM = Metric(
    update=lambda p, b: {
        "sum": jnp.sum(jnp.where(b["mask"], p["pixel"], 0).astype(jnp.int32)),
        "n": jnp.sum(b["mask"]),
    },
    finish=lambda s: {"sum": float(s["sum"]), "n": float(s["n"])},
)


@settings(deadline=None, max_examples=20)
@given(count=st.integers(1, 70), batch=st.sampled_from([1, 7, 16, 64]), devices=st.sampled_from([1, 2, 3, 8]))
def test_any_size_batch_and_devices(count, batch, devices):
    source = open_source(f"fake:{count}x8")
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    batches = evals.source_batches(source, CONTRACT, mesh, batch)
    result = evals.run(PIXEL, TrainState(0, {}, {}, ()), {"sum": SUM}, batches)
    assert result.samples == count == result.metrics["n"]
    assert result.metrics["sum"] == sum(int(source[i]["image"][0, 0, 0]) for i in range(count))


def test_a_sample_that_comes_twice_is_an_error():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    batches = list(evals.source_batches(open_source("fake:8x8"), CONTRACT, mesh, 4))
    with pytest.raises(UserError, match="saw 4 samples twice"):
        evals.run(PIXEL, TrainState(0, {}, {}, ()), {"sum": SUM}, [*batches, batches[0]])
    with pytest.raises(UserError, match="gave no sample"):
        evals.run(PIXEL, TrainState(0, {}, {}, ()), {"sum": SUM}, [])


def test_bank_rows_come_first():
    """1-nearest-neighbour on the first pixel: `finish` gets the bank's rows beside the evaluated ones."""
    rows = lambda p, b: {"x": p["pixel"].astype(jnp.int32), "y": b["label"]}  # noqa: E731

    def finish(mine, bank):
        nearest = np.abs(mine["x"][:, None] - bank["x"][None]).argmin(1)
        return {"knn": float(np.mean(bank["y"][nearest] == mine["y"]))}

    mesh = sharding.make_mesh(devices=jax.devices()[:2])

    def source():
        return evals.source_batches(open_source("fake:20x8"), CONTRACT, mesh, 6)

    metric = Metric(rows, finish, gather=True, bank="train")
    result = evals.run(PIXEL, TrainState(0, {}, {}, ()), {"knn": metric}, source(), {"train": source})
    assert result.metrics["knn"] > 0.5  # its own nearest neighbour, unless two share a first pixel


def test_certificate(tmp_path):
    result = evals.Evaluation({"top1": 0.5}, 3, "ab")
    options = {**config_lib.EVAL, "data": "digits:test"}
    path, warning = evals.write(
        epath.Path(tmp_path), "test", result, options=options, step=7, contract=CONTRACT, classes=("a", "b")
    )
    assert warning == ""
    content = json.loads(path.read_text())
    assert content["count"] == 3
    assert content["digest_of_sample_ids"] == "ab"
    assert InputContract.from_dict(content["contract"]) == CONTRACT
    assert content["versions"]["jax"] == jax.__version__


def test_files_of_one_evaluation_belong_together(tmp_path):
    """Of what an evaluation did not make nothing is left behind; a picture that fails is a warning."""
    folder, options = epath.Path(tmp_path), {**config_lib.EVAL, "data": "digits:test"}

    def write(*drawings, step):
        result = evals.Evaluation({"top1": 0.5}, 3, "ab", drawings, {"label": np.arange(3)})
        _, warning = evals.write(
            folder, "test", result, options=options, step=step, contract=CONTRACT, classes=("$5_$", "b")
        )
        return warning, {p.name for p in (tmp_path / "eval").iterdir()}

    def draw(axes, classes):
        axes.set_xticks([0, 1], classes)

    assert write(draw, step=8) == ("", {"test.json", "test.npz", "test.png"})
    files = json.loads((tmp_path / "eval" / "test.json").read_text())["files"]
    for name, digest in files.items():
        assert hashlib.sha256((tmp_path / "eval" / name).read_bytes()).hexdigest() == digest
    warning, there = write(lambda axes, classes: 1 / 0, step=6)
    assert "no picture of test was drawn (ZeroDivisionError" in warning
    assert there == {"test.json", "test.npz"}


def test_a_picture_is_read_on_a_light_page_and_on_a_dark_one(tmp_path):
    """Its ground is transparent, and its text stands off from white and from black, whatever names are in it."""

    def draw(axes, classes):
        axes.plot([0, 1], [0, 1], label=classes[0])
        axes.set(xlabel="x")

    found = evals.Evaluation({}, 1, "", (draw,))
    options = {**config_lib.EVAL, "data": "folder:/$5_$"}
    _, warning = evals.write(
        epath.Path(tmp_path), "a", found, options=options, step=1, contract=CONTRACT, classes=("cat",)
    )
    assert not warning
    with Image.open(tmp_path / "eval" / "a.png") as image:
        pixels = np.asarray(image.convert("RGBA")).reshape(-1, 4)
    assert np.mean(pixels[:, 3] == 0) > 0.8
    grey = pixels[(pixels[:, 3] == 255) & (np.ptp(pixels[:, :3].astype(int), axis=1) < 20)][:, :3].mean(1)
    assert len(grey) > 500
    assert 100 < grey.min() <= grey.max() < 155
