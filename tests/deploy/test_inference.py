"""jaxvision.load: whatever it loads says the same of the same images, given in whatever way."""

import functools
import io
import json
import pathlib
import shutil
import threading
import time

import jax
import numpy as np
import pytest
from flax import traverse_util
from PIL import Image

import jaxvision
from jaxvision import models, targets
from jaxvision.data.contract import InputContract
from jaxvision.deploy import exporting, inference
from jaxvision.errors import UserError
from jaxvision.runtime import paths
from jaxvision.targets.class_ import Classes
from jaxvision.targets.tags import Tags
from jaxvision.targets.values import Values
from jaxvision.weights import checkpoint
from tests import mixed_images
from tests.deploy.test_torch_names import CLASSES, workdir_of
from tests.weights.test_published import run

SMALL = dict(width=16, depths=(1, 1))
KINDS = dict(class_="classification", tags="multilabel", values="regression")
# From the same pixels, in float32, by another compiler: sums of up to 16 * 9 products in another order, and the logits
# are of order 1. The resizing within a program meets images that have their size already, and leaves them.
ROUNDING = 1e-5


def seeing(folder, task, **options):
    """(workdir, leaves) of `workdir_of`, with weights that carry the image to the outputs: its own shrink it away."""
    workdir, _ = workdir_of(folder, "resnet18", task=task, **options)
    saved = workdir / "checkpoints" / "7"
    state = checkpoint.read(saved, ("params", "extra"))

    def larger(path, leaf):
        name = str(path[-1].key)
        return leaf + 1 if name == "scale" else leaf * 5 if name == "kernel" and path[-2].key == "fc" else leaf

    params = jax.tree_util.tree_map_with_path(larger, state["params"])
    about = {k: v for k, v in checkpoint.about(saved).items() if k != "step"}
    writer = checkpoint.Writer(workdir / "checkpoints", keep=2)
    writer.save(8, {**state, "params": params}, about)
    writer.close()
    return workdir, traverse_util.flatten_dict({"params": params["model"], **state["extra"]["model"]}, sep="/")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A file of every kind."""
    folder = tmp_path_factory.mktemp("photos")
    mixed_images.write(folder, len(mixed_images.KINDS))
    return sorted(folder.rglob("*.*"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """name -> what a workdir holds: (workdir, leaves)."""
    folder = tmp_path_factory.mktemp("runs")

    @functools.cache
    def make(name):
        return seeing(folder / name, KINDS.get(name, "classification"), **(dict(size=16) if name == "whole" else SMALL))

    return make


@pytest.fixture(scope="module")
def predictor(made):
    return functools.cache(lambda name: jaxvision.load(made(name)[0]))


@pytest.fixture(scope="module")
def exported(made, photos, tmp_path_factory):
    """(workdir, file's ending, pixels) -> the file, exported once. In a folder with = in its name, as sweeps make."""
    folder, patches = tmp_path_factory.mktemp("lr=0.1"), pytest.MonkeyPatch()
    patches.setattr(exporting, "_latency", lambda *_: {"device": "", "1": 0, "8": 0})  # two programs more, each

    @functools.cache
    def export(name, ending, pixels=""):
        out = folder / f"{name}{pixels}{ending}"
        if ending == ".safetensors":
            out = folder / "weights" / out.name
        more = ("--pixels", pixels) if pixels else ()
        few = ("--data", f"images:{photos[0].parent.parent}", "--images", "2")
        assert run("export", "--from", str(made(name)[0]), "--out", str(out), "--json", *few, *more) == 0
        return out

    yield export
    patches.undo()


# --------------------------------------------------------------------------- the same from everything


def test_a_workdir_says_what_its_network_makes_of_pillows_pixels(made, predictor, tmp_path):
    """The whole way by hand: Pillow's resizing, the centre, the mean and deviation, the network, softmax."""
    _, leaves = made("class_")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 74, 3), np.uint8))
    image.save(tmp_path / "a.png")
    small = image.resize((int(37 * 74 / 50), 37), Image.Resampling.BILINEAR)
    left, top = round((small.width - 32) / 2), round((37 - 32) / 2)
    pixels = np.asarray(small.crop((left, top, left + 32, top + 32)), np.float32) / 255
    model = models.resnet18(classes=3, width=16, depths=(1, 1))
    logits = model.apply(traverse_util.unflatten_dict(leaves, sep="/"), (pixels[None] - 0.25) / 0.5, train=False)[
        "logits"
    ]
    (found,) = predictor("class_").predict(tmp_path / "a.png")
    np.testing.assert_allclose(found.scores, jax.nn.softmax(logits[0]), atol=ROUNDING)


@pytest.mark.parametrize(
    ("name", "ending", "pixels"),
    [
        ("class_", ".onnx", "images"),
        ("class_", ".onnx", "crops"),
        ("class_", ".stablehlo", "images"),
        ("class_", ".stablehlo", "crops"),
        ("tags", ".onnx", "crops"),
        ("values", ".stablehlo", "images"),
        pytest.param("whole", ".safetensors", "", marks=pytest.mark.slow),
    ],
)
def test_an_exported_file_says_the_same_of_files_of_all_kinds(photos, predictor, exported, name, ending, pixels):
    trained, path = predictor(name), exported(name, ending, pixels)
    file = jaxvision.load(path)
    assert (file.contract, file.classes, file.kind) == (trained.contract, trained.classes, trained.kind)
    assert (file.source, file.certificate["format"], trained.certificate) == (str(path), ending[1:], None)
    want, got = (np.stack([p.scores for p in m.predict(photos, batch_size=4)]) for m in (trained, file))
    scale = np.abs(want).max()
    if trained.kind == "class":  # else another class would be no fault of the file
        first, second = np.sort(want)[:, :-3:-1].T
        assert (first - second).min() > ROUNDING
        np.testing.assert_array_equal(got.argmax(-1), want.argmax(-1))
    assert np.ptp(want, axis=0).max() > 100 * ROUNDING * scale  # images differ, or the order could not be told
    np.testing.assert_allclose(got, want, atol=ROUNDING * scale)


def test_what_a_predictor_knows(predictor, made, exported):
    model = predictor("class_")
    assert model.contract == InputContract(size=32, resize=37, mean=(0.25,) * 3, std=(0.5,) * 3)
    assert (model.classes, model.kind, model.source) == (CLASSES, "class", f"{made('class_')[0]}/checkpoints/8")
    assert "3 class" in repr(model)
    by_step = jaxvision.load(str(made("class_")[0]), "8")
    assert by_step.source == model.source
    assert [predictor(name).kind for name in ("tags", "values")] == ["tags", "values"]


# --------------------------------------------------------------------------- many images


def test_the_batch_size_does_not_matter(photos, predictor):
    model = predictor("class_")
    want = np.stack([p.scores for p in model.predict(photos, batch_size=4)])
    for size in (1, 13, 64):
        got = np.stack([p.scores for p in model.predict(photos, batch_size=size)])
        np.testing.assert_allclose(got, want, atol=ROUNDING)
    with pytest.raises(UserError, match="batch_size is 0"):
        model.predict(photos, batch_size=0)


def ladder(count):
    """Grey images, each brighter than the one before, and what tells their order in a prediction."""
    return [np.full((32, 32), k * 255 // (count - 1), np.uint8) for k in range(count)]


def counting():
    """A Predictor without a network: its first score is the mean of the pixels."""
    contract = InputContract(size=32, resize=32, mean=(0.0,) * 3, std=(1.0,) * 3)

    def run(images):
        return {"values": images.reshape(len(images), -1).mean(1, keepdims=True).astype(np.float32)}

    return inference.Predictor("test", contract, ("grey",), targets.values, run)


def test_threads_lose_and_reorder_nothing(monkeypatch):
    """Later images are ready sooner, and every seventh cannot be read."""
    model, plain = counting(), inference.decode
    monkeypatch.setattr(inference.machine, "cores", lambda: 8)

    def slow(image, where, **how):
        time.sleep(0.002 * (8 - int(where) % 8))
        return plain(image, where=where, **how)

    monkeypatch.setattr(inference, "decode", slow)
    grey = ladder(100)
    images = [b"nothing" if k % 7 == 3 else image for k, image in enumerate(grey)]
    found = list(model.stream(enumerate(images), 16))
    assert [k for k, _ in found] == list(range(100))
    for k, row in found:
        if k % 7 == 3:
            assert str(row).startswith(f"{k}: cannot decode")
        else:
            assert row.scores == [grey[k][0, 0]]


def test_an_image_of_pillow_is_read_by_one_thread_at_a_time(monkeypatch):
    """It reads its file when its pixels are asked for, and the same may be listed twice."""
    plain, running = inference.decode, []

    def alone(image, where, **how):
        running.append(where)
        time.sleep(0.002)
        assert running == [where]
        running.remove(where)
        return plain(image, where=where, **how)

    monkeypatch.setattr(inference, "decode", alone)
    monkeypatch.setattr(inference.machine, "cores", lambda: 8)
    assert len(counting().predict([Image.new("RGB", (32, 32))] * 20)) == 20


def test_images_are_taken_as_they_are_needed_and_who_stops_early_does_not_wait():
    taken = []

    def endless():
        for k, image in enumerate(ladder(1000)):
            taken.append(k)
            yield k, image

    before = threading.active_count()
    answers = counting().stream(endless(), 10)
    assert next(answers)[0] == 0
    assert len(taken) == 20  # one batch answered, one ahead
    answers.close()
    assert threading.active_count() == before


def test_none_and_one(predictor, photos):
    model = predictor("class_")
    assert model.predict([]) == []
    for nothing in (None, 5):
        with pytest.raises(UserError, match=f"{nothing} is no image: give a file"):
            model.predict(nothing)
    assert model.predict(np.zeros((0, 32, 32, 3), np.uint8)) == []
    assert len(model.predict(str(photos[0]))) == 1
    assert len(model.predict(path for path in photos[:3])) == 3


# --------------------------------------------------------------------------- every way to give an image


def test_files_bytes_and_pillow_are_the_same(photos, predictor):
    """Of all kinds of file: as a path, as its bytes, opened by Pillow (which applies no orientation), and twice."""
    model = predictor("class_")
    want = np.stack([p.scores for p in model.predict(photos, batch_size=13)])
    data = [path.read_bytes() for path in photos]
    opened = [Image.open(path) for path in photos]
    ways = dict(
        str=[str(p) for p in photos],
        bytes=data,
        bytearray=[bytearray(d) for d in data],
        pillow=opened,
        again=opened,
        fresh=[Image.open(io.BytesIO(d)) for d in data],
    )
    for name, images in ways.items():
        got = np.stack([p.scores for p in model.predict(images, batch_size=13)])
        np.testing.assert_array_equal(got, want, err_msg=name)
    assert [image.size for image in opened] == [Image.open(path).size for path in photos]  # they stay as they are
    lazy = Image.open(photos[0])
    same = np.stack([p.scores for p in model.predict([lazy] * 13, batch_size=13)])
    np.testing.assert_array_equal(same, want[:1].repeat(13, 0))


def test_arrays(predictor):
    model = predictor("class_")
    rng = np.random.default_rng(1)
    grey = rng.integers(0, 256, (13, 40, 36), np.uint8)
    batch = rng.integers(0, 256, (13, 40, 36, 3), np.uint8)

    def scores(images):
        return np.stack([p.scores for p in model.predict(images, batch_size=13)])

    np.testing.assert_array_equal(scores(batch), scores([Image.fromarray(row) for row in batch]))
    np.testing.assert_array_equal(scores(batch), scores(list(batch)))
    np.testing.assert_array_equal(scores(jax.numpy.asarray(batch)), scores(batch))
    as_pillow = scores([Image.fromarray(row) for row in grey])
    np.testing.assert_array_equal(scores(list(grey)), as_pillow)
    np.testing.assert_array_equal(scores(grey[..., None]), as_pillow)
    assert len(model.predict(grey[0])) == len(model.predict(batch[0])) == 1


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((8, 8, 4), np.uint8), r"image 1 is uint8\[8, 8, 4\]: .*: PIL\.Image\.fromarray\(pixels\)"),
        (np.zeros((8, 8, 3), np.float32), r"image 1 is float32\[8, 8, 3\]: .*255 \* pixels"),
        (np.zeros((3, 8, 8), np.uint8), r"channels last: pixels.transpose\(1, 2, 0\)"),
        (np.zeros((8, 8, 3), np.int64), r"image 1 is int64\[8, 8, 3\]: give uint8"),
        (np.zeros((0, 8, 3), np.uint8), r"uint8\[0, 8, 3\]"),
        (np.zeros(8, np.uint8), r"uint8\[8\]"),
        (np.zeros((1, 300, 3), np.uint8), "image 1 has 300 x 1 pixels, a line"),
        (None, r"image 1 is object\[\], None: give a file, bytes, a PIL image"),
        (7, r"image 1 is int64\[\], 7: give"),
        ([[1, 2], [3]], "image 1 is no array"),
        (b"", "image 1: cannot decode the image, it has 0 bytes"),
        (b"nothing", "image 1: cannot decode"),
        (Image.new("F", (8, 8)), r"image 1: cannot decode .*32 bits a pixel \(Pillow mode F\)"),
        (Image.new("I", (8, 8)), r"image 1: cannot decode .*32 bits a pixel \(Pillow mode I\)"),
    ],
)
def test_what_is_no_image_is_refused_with_its_place(image, words):
    with pytest.raises(UserError, match=words):
        counting().predict([np.zeros((8, 8), np.uint8), image])


@pytest.mark.parametrize("images", [5, None, 5.0, True, {}, {"a": 1}, {"a.png"}, object(), print])
def test_what_is_no_image_and_no_sequence_is_refused(images):
    with pytest.raises(UserError, match="is no image: give a file, bytes, a PIL image or uint8 pixels, or several"):
        counting().predict(images)


@pytest.mark.parametrize("value", [0, -1, 1.5, "a", None, True])
def test_counts_are_whole_numbers_from_one_on(value):
    found = Classes(("a", "b"), np.asarray([0.2, 0.8], np.float32))
    for name, ask in (("k", found.top), ("batch_size", lambda v: counting().predict([], batch_size=v))):
        with pytest.raises(UserError, match=rf"^{name} is {value!r}: it must be .*at least 1$"):
            ask(value)
    assert found.top(np.int64(1)) == [("b", pytest.approx(0.8))]


@pytest.mark.parametrize("value", [-0.1, 2, float("nan"), "a", None])
def test_thresholds_are_probabilities(value):
    with pytest.raises(UserError, match=f"threshold is {value!r}: it is a probability, in 0..1"):
        Tags(("a",), np.ones(1, np.float32)).tags(value)


@pytest.mark.parametrize("path", [5, None, b"runs", ["runs"]])
def test_load_takes_a_name(path):
    with pytest.raises(UserError, match=r"load was given .*: give the name of a workdir"):
        jaxvision.load(path)


def test_load_takes_a_step(made):
    workdir, _ = made("class_")
    assert jaxvision.load(workdir, 8).source == jaxvision.load(workdir, "8").source == f"{workdir}/checkpoints/8"
    with pytest.raises(UserError, match="no checkpoint '9' in"):
        jaxvision.load(workdir, 9)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.png"):
        counting().predict(tmp_path / "absent.png")
    (tmp_path / "cut.png").write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match=r"cut\.png: cannot decode"):
        counting().predict(tmp_path / "cut.png")
    with pytest.raises(OSError, match=str(tmp_path)):
        counting().predict(tmp_path)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I;16"])
def test_modes_of_pillow(mode):
    """White or nearly: each has its own way to say so. What a mode hides (alpha) is not seen."""
    white = Image.new("RGB", (32, 32), (255, 255, 255))
    if mode == "I;16":
        image = Image.fromarray(np.full((32, 32), 65535, np.uint16))
    elif mode == "LAB":
        image = Image.merge("LAB", [Image.new("L", (32, 32), v) for v in (255, 128, 128)])
    else:
        image = white.convert(mode)
    if mode == "RGBA":
        image.putalpha(0)
    before = image.tobytes()
    ((grey,),) = (p.scores for p in counting().predict(image))
    assert grey == pytest.approx(255, abs=1)
    assert (image.mode, image.tobytes()) == (mode, before)


# --------------------------------------------------------------------------- what a prediction says


def test_a_prediction_of_classes():
    found = Classes(("a", "b", "c"), np.asarray([0.2, 0.6, 0.2], np.float32))
    assert found.label == "b"
    assert found.top(2) == [("b", pytest.approx(0.6)), ("a", pytest.approx(0.2))]  # of equals the first
    assert [name for name, _ in found.top(99)] == ["b", "a", "c"]
    for k in (0, -1):
        with pytest.raises(UserError, match=f"k is {k}: it must be a whole number of at least 1"):
            found.top(k)
    assert repr(found) == "<class: b 0.6, a 0.2, c 0.2>"
    equal = Classes(tuple(range(500)), np.tile(np.float32([0.1, 0.2, 0.3, 0.2]), 125))
    assert [name for name, _ in equal.top(500)] == [
        k for rest in ((2,), (1, 3), (0,)) for k in range(500) if k % 4 in rest
    ]


def test_a_prediction_of_tags_and_of_values():
    tags = Tags(("a", "b", "c"), np.asarray([0.5, 0.9, 0.1], np.float32))
    assert [name for name, _ in tags.tags()] == ["b", "a"]
    assert tags.tags(0.95) == []
    values = Values(("x", "y"), np.asarray([1234567.0, -2.5], np.float32))
    assert values.values == {"x": 1234570.0, "y": -2.5}
    assert repr(values) == "<values: x 1.235e+06, y -2.5>"


def test_probabilities(predictor, photos):
    for found in predictor("class_").predict(photos[:4], batch_size=4):
        assert found.scores.sum() == pytest.approx(1, abs=1e-5)
    for found in predictor("tags").predict(photos[:4], batch_size=4):
        assert ((found.scores > 0) & (found.scores < 1)).all()


# --------------------------------------------------------------------------- what does not fit


def rewritten(path, **changes):
    beside = pathlib.Path(f"{path}.json")
    about = json.loads(beside.read_text()) | changes
    beside.write_text(json.dumps({k: v for k, v in about.items() if v is not None}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: pathlib.Path(f"{path}.json").unlink(), r"a\.onnx\.json is missing: .* export again"),
        (lambda path: pathlib.Path(f"{path}.json").write_text("{"), "it is no certificate of jaxvision.export"),
        (lambda path: pathlib.Path(f"{path}.json").write_bytes(b"\xff\xfe\x00"), "is no certificate"),
        (lambda path: pathlib.Path(f"{path}.json").write_text("[]"), "is no certificate"),
        (lambda path: rewritten(path, sha256=5), "sha256 is 5 instead of str"),
        (lambda path: rewritten(path, format=None), "it has no format"),
        (lambda path: rewritten(path, classes=None), "no certificate of this version of jaxvision .*classes"),
        (lambda path: rewritten(path, contract={"side": 3}), "no certificate of this version"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), r"a\.onnx is not the file that .* certifies"),
    ],
)
def test_certificates_that_do_not_fit(exported, tmp_path, damage, words):
    there = exported("class_", ".onnx", "crops")
    path = tmp_path / "a.onnx"
    shutil.copy(there, path)
    shutil.copy(f"{there}.json", f"{path}.json")
    jaxvision.load(path)
    damage(path)
    with pytest.raises(UserError, match=words):
        jaxvision.load(path)


def test_the_certificate_of_another_file(exported, tmp_path):
    shutil.copy(exported("class_", ".onnx", "crops"), tmp_path / "a.onnx")
    shutil.copy(f"{exported('class_', '.onnx', 'images')}.json", tmp_path / "a.onnx.json")
    with pytest.raises(UserError, match=r"is not the file that a\.onnx\.json certifies"):
        jaxvision.load(tmp_path / "a.onnx")


@pytest.mark.parametrize("ending", [".onnx", ".stablehlo"])
def test_a_file_cut_off_before_it_was_certified(exported, tmp_path, ending):
    """Its digest is right, so the error is of what reads it."""
    there, path = exported("class_", ending, "crops"), tmp_path / f"a{ending}"
    path.write_bytes(there.read_bytes()[: there.stat().st_size // 2])
    shutil.copy(f"{there}.json", f"{path}.json")
    rewritten(path, sha256=paths.digest(path))
    with pytest.raises(UserError, match=f"a{ending} cannot be read by"):
        jaxvision.load(path)


def test_names_that_lead_nowhere(exported, tmp_path):
    with pytest.raises(UserError, match=r"absent\.onnx' does not exist"):
        jaxvision.load(tmp_path / "absent.onnx")
    with pytest.raises(UserError, match="is one network: leave out --checkpoint best"):
        jaxvision.load(exported("class_", ".onnx", "crops"), "best")
    with pytest.raises(UserError, match="no checkpoints in"):
        jaxvision.load(tmp_path)
