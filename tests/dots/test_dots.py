"""A kind of labels is one file in targets/ and one in metrics/: nothing else knows that there are dots."""

import json
import pickle

import numpy as np
import pytest

import jaxvision
from jaxvision import metrics, targets, tasks
from jaxvision.data import InputContract, pipeline, sources, transforms
from jaxvision.data.pipeline import eval_batches, train_batches
from jaxvision.errors import UserError
from jaxvision.evaluate import evaluate
from jaxvision.export import export
from jaxvision.train import train
from tests.dots.metric import distance
from tests.dots.source import DotsSource
from tests.dots.target import dots
from tests.dots.task import spotting

CONTRACT = InputContract(size=48, resize=48)
MOVING = (
    ("affine", {"degrees": 10.0, "scale": (0.9, 1.1)}), ("flip", {}), ("vertical_flip", {}), ("color_jitter", {}),
    ("random_resized_crop", {"scale": (0.5, 1.0)}), ("rotation", {}),
)  # fmt: skip

CONFIG = """
from tests.tiny import make_tiny_config

config = make_tiny_config()
config.task = dict(name="spotting")
config.data.update(train="dots:64", size=48, resize=48, transforms={transforms!r})
config.steps, config.batch_size = 40, 16
config.optim.update(lr=0.3, momentum=0.9, schedule="constant")
config.evals = dict(test=dict(metric="distance", data="dots:40", every_epochs=0, every_steps=40))
config.checkpoint.update(every_steps=40)
config.log.update(every_steps=20)
"""


@pytest.fixture(scope="module", autouse=True)
def exported_lines():
    """What an import and a name in `__all__` do, of a kind, a metric, a source and a task."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sources.SCHEMES, "dots", DotsSource)
        for package, name, value in (
            (targets, "dots", dots), (metrics, "distance", distance), (tasks, "spotting", spotting)
        ):  # fmt: skip
            patch.setattr(package, name, value, raising=False)
            patch.setattr(package, "__all__", [*package.__all__, name])
        patch.setattr(tasks, "TASKS", (*tasks.TASKS, "spotting"))
        yield


def batches(specs, *, source=None, slots=4, steps=2, **options):
    source = source or DotsSource("64")
    built = transforms.build(specs, CONTRACT)
    return list(
        train_batches(source, built, CONTRACT, batch_size=16, seed=0, start=0, stop=steps, slots=slots, **options)
    )


def test_a_batch_has_slots_and_says_which_are_filled():
    source = DotsSource("64")
    for batch in batches((("resize", {}), ("center_crop", {}))):
        assert (batch["dots"].shape, batch["dots"].dtype) == ((16, 4, 2), np.float32)
        assert (batch["valid"].shape, batch["valid"].dtype) == ((16, 4), bool)
        filled = batch["valid"].sum(1)
        assert (filled + batch["dropped"] == source.objects[batch["index"]]).all()
        assert (batch["dots"][~batch["valid"]] == 0).all()
        assert ((batch["dots"] >= 0) & (batch["dots"] <= 48)).all()


def test_dots_lie_where_the_bright_spots_are_whatever_the_transforms_do():
    """Half a pixel: what resampling and clipped grey levels move the middle of a spot by."""
    apart = []
    for batch in batches(MOVING, steps=8):
        for image, places, valid in zip(batch["image"], batch["dots"], batch["valid"]):
            for x, y in places[valid]:
                if min(x, y, 48 - x, 48 - y) > 5:
                    apart.append(np.hypot(*(middle(image, x, y) - (x, y))))
    assert len(apart) > 60
    assert np.quantile(apart, 0.95) < 0.5
    assert max(apart) < 1.0


def middle(image, x, y):
    rows, columns = np.mgrid[:48, :48] + 0.5
    near = (abs(columns - x) <= 5) & (abs(rows - y) <= 5)
    grey = np.where(near, image.astype(float).mean(-1), 0)
    weight = np.where(near, np.maximum(grey - 0.5 * grey.max(), 0), 0)
    return np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()


def test_workers_are_given_fields_and_no_target():
    """And what several threads make is what one makes."""
    loads = []

    def watched(load, *arguments):
        loads.append(pickle.dumps(load))
        return iter(())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "_ahead", watched)
        batches(MOVING)
    assert loads
    assert not [name for name in (b"jaxvision.targets", b"jaxvision.task", b"jax.") if name in loads[0]]
    for one, two in zip(batches(MOVING), batches(MOVING, threads=3), strict=True):
        assert all(np.array_equal(one[name], two[name]) for name in one)


def test_more_dots_than_slots_are_an_error_before_the_first_step(tmp_path):
    with pytest.raises(UserError, match=r"has 4 objects, and a training sample 3 slots: set config.data.slots = 4"):
        batches((("resize", {}), ("center_crop", {})), slots=3, steps=4)
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(transforms=(("random_resized_crop", {}),)) + "\nconfig.data.slots = 3\n")
    with pytest.raises(UserError, match=r"data.slots is 3, and dots, picture \d+ has 4 objects"):
        train(["--config", str(config), "--workdir", str(tmp_path / "run")])
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("name", ["multi_view", "aug_mix"])
def test_what_leaves_a_dot_no_place_is_refused_by_name(name):
    with pytest.raises(UserError, match=rf'transform "{name}" .*, so dots would have no place: remove it'):
        batches(((name, {}),))


def test_an_evaluation_batch_holds_no_truth():
    for batch in eval_batches(DotsSource("10"), CONTRACT, batch_size=4):
        assert set(batch) == {"image", "size", "index", "mask"}
        assert (batch["size"].shape, batch["size"].dtype) == ((4, 2), np.int32)


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad", "shortest"])
def test_a_place_comes_back_from_the_canvas(fit):
    rng = np.random.default_rng(0)
    for _ in range(100):
        height, width, *size = rng.integers(1, (5000, 5000, 1000, 1000)).tolist()
        height, width = max(height, width // 20), max(width, height // 20)
        resize = max(size) + max(size) // 7 if fit == "crop" else min(size)
        warp = transforms.warp(InputContract(size=size, resize=resize, fit=fit), height, width)
        assert warp.size == tuple(size)
        points = rng.uniform(0, (width, height), (50, 2))
        assert np.abs(warp.points_back(warp.points(points)) - points).max() < 1e-6  # float64; a network adds float32
        canvas = warp.points(points).astype(np.float32)
        assert np.abs(warp.points_back(canvas) - points).max() < 1e-3
        if fit != "crop":
            assert (warp.points(np.array([[width, height]])) < np.add(size[::-1], 1e-9)).all()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dots")
    (folder / "config.py").write_text(CONFIG.format(transforms=MOVING))
    result = train(["--config", str(folder / "config.py"), "--workdir", str(folder / "run")])
    assert result["evals"]["test"]["recall"] > 0.9, result["evals"]
    return folder / "run"


def test_it_is_evaluated_in_the_pixels_of_the_files(run):
    """The truth is float64 and in no batch: exactly as many dots as the source has, no slot cuts any."""
    found = evaluate(["--from", str(run)])["evals"]["test"]
    assert found["count"] == 40
    assert found["recall"] > 0.9
    assert found["error"] < 0.5
    assert found["found"] == pytest.approx(DotsSource("40").objects.sum(), abs=4)
    page = (run / "report.html").read_text()
    assert f"{DotsSource('64').objects.sum()} dots." in page
    assert "recall" in page
    with np.load(run / "eval" / "test.npz") as rows:
        assert rows["dots"].shape == (40, 4, 2)


def test_it_is_predicted(run, tmp_path):
    source = DotsSource("40")
    found = jaxvision.load(run).predict([source[i]["image"] for i in range(8)])
    for i, answer in enumerate(found):
        want = source.known(i)["dots"]
        assert len(answer.dots) == len(want)
        if len(want):
            # where the crop cuts through a spot, its middle is elsewhere
            assert np.linalg.norm(want[:, None] - answer.dots[None], axis=-1).min(1).max() < 2
    assert json.loads(json.dumps(found[0].to_dict()))["dots"]


def test_it_is_exported_with_a_certificate(run, tmp_path):
    result = export(["--from", str(run), "--out", str(tmp_path / "a.stablehlo")])
    assert result["from_files"]["agreement"] >= 0.99
    assert result["accuracy"]["exported"]["count_right"] > 0.8
    source = DotsSource("40")
    one, two = (jaxvision.load(path).predict(source[3]["image"])[0] for path in (run, tmp_path / "a.stablehlo"))
    assert np.abs(one.dots - two.dots).max() < 1e-2
    assert export(["--verify", str(tmp_path / "a.stablehlo")])["compared"] == "trained network"
