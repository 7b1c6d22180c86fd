"""Boxes, points and maps follow the pixels of every transform."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxvision.data import InputContract, transforms
from jaxvision.data.decode import open_image
from jaxvision.data.sample import OBJECTS, Field, batch_spec, placed, settled
from jaxvision.data.transforms import applied
from jaxvision.data.warp import Move, Warp, moved_map, scaled, shifted
from jaxvision.errors import UserError

CONTRACT = InputContract(size=96, resize=96)
POINTS = Field("points", (OBJECTS, 2), "float32", geometry="points", per_object=True)
BOXES = Field("boxes", (OBJECTS, 4), "float32", geometry="boxes", per_object=True)
NAMES = Field("classes", (OBJECTS,), "int32", pad=-1, per_object=True)
MAP = Field("map", ("height", "width"), "uint8", pad=255, geometry="map")
HEIGHT, WIDTH = 150, 201
SPOT = (110.3, 70.6)  # x and y
# What moves no pixel, and what says that no place can follow it.
STILL = {
    "autocontrast", "blur", "color_jitter", "equalize", "erasing", "grayscale", "invert", "posterize", "sharpness",
    "solarize",
}  # fmt: skip
SCATTER = {"aug_mix", "multi_view"}
# Filters that mix pixels: then the middle of a spot is where its place is.
SMOOTH = {"perspective": {"p": 1.0}, "flip": {"p": 1.0}, "vertical_flip": {"p": 1.0}, "rand_augment_timm": {"fill": 0}}


def spotted(x=SPOT[0], y=SPOT[1], radius=5.0):
    """uint8 [HEIGHT, WIDTH, 3] with one bright spot."""
    columns, rows = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    grey = 230 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * radius**2))
    return np.repeat(np.rint(grey).astype(np.uint8)[:, :, None], 3, 2)


def middle(image):
    """(x, y) of the spot."""
    grey = np.maximum(image.astype(float).mean(-1) - 10, 0)
    columns, rows = np.meshgrid(np.arange(image.shape[1]) + 0.5, np.arange(image.shape[0]) + 0.5)
    return np.array([(grey * columns).sum(), (grey * rows).sum()]) / grey.sum()


def sample_of(image, fields, **values):
    return {"image": image, "fields": fields, "warp": Warp.identity(HEIGHT, WIDTH), **values}


def test_every_transform_is_here():
    moving = set(transforms.__all__) - STILL - SCATTER
    assert {name for name in moving if not hasattr(built(name), "step")} == set()
    assert {name for name in STILL | SCATTER if hasattr(built(name), "step")} == set()


def built(name, **arguments):
    (made,) = transforms.build(((name, {**SMOOTH.get(name, {}), **arguments}),), CONTRACT)
    return made


@pytest.mark.parametrize("name", sorted(set(transforms.__all__) - SCATTER))
def test_a_point_is_where_the_spot_is(name):
    """Within what nearest pixels and grey levels move the middle of a spot by."""
    image, transform = spotted(), built(name)
    checked = 0
    for seed in range(40):
        if name in STILL:
            found = applied(transform, sample_of(image, ()), np.random.default_rng(seed))
            assert np.array_equal(found["warp"].matrix, np.eye(3))
            continue
        made = applied(transform, sample_of(image, (POINTS,), points=np.array([SPOT])), np.random.default_rng(seed))
        alone = transform(image, np.random.default_rng(seed))
        assert np.array_equal(made["image"], alone)  # the same draws, the same pixels
        assert made["warp"].size == alone.shape[:2]
        ((x, y),) = made["warp"].points(np.array([SPOT]))
        scale = np.sqrt(abs(np.linalg.det(made["warp"].matrix[:2, :2])))
        edge = 16 * max(1, scale)
        if min(x, y, alone.shape[1] - x, alone.shape[0] - y) < edge or not _plain(alone):
            continue
        checked += 1
        assert np.hypot(*(middle(alone) - (x, y))) < 0.75 * max(1, scale)
    assert name in STILL or checked >= 5, checked


@pytest.mark.parametrize("filter", ["bilinear", "bicubic", "linear"])
@pytest.mark.parametrize("size", [(96, 96), (64, 128), (128, 64), (120, 100)])
@pytest.mark.parametrize("fit", ["crop", "stretch", "pad", "shortest"])
def test_a_point_is_where_a_contract_puts_the_spot(fit, size, filter):
    """Within what the grey levels move its middle by; and its place comes back."""
    contract = InputContract(size=size, resize=max(size) if fit == "crop" else 70, fit=fit, filter=filter,
                             longest=90 if fit == "shortest" else 0, mean=(0, 0, 0))  # fmt: skip
    made, warp = transforms.preprocess(contract)(spotted()), transforms.warp(contract, HEIGHT, WIDTH)
    assert made.shape == contract.shape
    assert warp.size == size
    ((x, y),) = warp.points(np.array([SPOT]))
    assert np.hypot(*(middle(made) - (x, y))) < 0.05
    assert np.abs(warp.points_back(np.array([[x, y]])) - SPOT).max() < 1e-9


def _plain(image):
    """Whether the picture is still one bright spot on black: policies change colours, too."""
    return image.mean() < 60 and image.max() > 100 and np.median(image) < 5


def test_a_part_of_a_jpeg_file_is_where_it_says():
    """A large box is decoded at half the scale or less, and begins at a multiple of it."""
    big = Image.fromarray(spotted()).resize((8 * WIDTH, 8 * HEIGHT), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    big.save(file, "JPEG", quality=95)
    encoded = open_image(file.getvalue(), 3, "here")
    place, transform = np.array([SPOT]) * 8, built("random_resized_crop", scale=(0.5, 1.0))
    checked = 0
    for seed in range(20):
        sample = {"image": encoded, "fields": (), "warp": Warp.identity(8 * HEIGHT, 8 * WIDTH)}
        made = applied(transform, sample, np.random.default_rng(seed))
        ((x, y),) = made["warp"].points(place)
        if min(x, y, 96 - x, 96 - y) > 16:
            checked += 1
            assert np.hypot(*(middle(made["image"]) - (x, y))) < 0.2
    assert checked > 8


numbers = st.integers(0, 256 * 200).map(lambda n: n / 256)


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=5), st.integers(1, 400), st.integers(1, 400))
def test_mirroring_twice_is_the_identity_to_the_bit(points, height, width):
    warp, points = Warp.identity(height, width), np.array(points)
    for move in (Move((-1.0, 0.0, width, 0.0, 1.0, 0.0)), Move((1.0, 0.0, 0.0, 0.0, -1.0, height))):
        twice = warp.then(move, warp.size).then(move, warp.size)
        assert np.array_equal(twice.points(points), points)


@settings(max_examples=60)
@given(
    st.lists(st.floats(-0.4, 0.4), min_size=8, max_size=8), st.lists(st.floats(0, 100), min_size=2, max_size=2)
)  # fmt: skip
def test_moves_compose_and_come_back(draws, point):
    a, b, c, d, e, f, g, h = draws
    moves = [Move((1 + a, b, 9 * c, d, 1 + e, 9 * f)), scaled((100, 100), (37, 81)), shifted(3.5, -2)]
    warp, x = Warp.identity(100, 100), np.array(point)
    for move in moves:
        warp = warp.then(move, (90, 90))
        x = (move.matrix @ [*x, 1])[:2]
    np.testing.assert_allclose(warp.points(np.array(point)), x, atol=1e-9)
    np.testing.assert_allclose(warp.points_back(warp.points(np.array(point))), point, atol=1e-6)
    there = Move((1 + a, b, 9 * c, d, 1 + e, 9 * f, g / 1000, h / 1000))
    back = Move((1 + a, b, 9 * c, d, 1 + e, 9 * f, g / 1000, h / 1000), back=True)
    both = Warp.identity(100, 100).then(there, (1, 1)).then(back, (1, 1))
    np.testing.assert_allclose(both.points(np.array(point)), point, atol=1e-6)


def test_boxes_are_clipped_and_dropped_once_at_the_end():
    """By hand: two crops in turn; a box that leaves the first and is back after the second would have been lost."""
    boxes = np.array([[0.0, 0, 10, 10], [40, 40, 60, 60], [5, 0, 25, 10], [100, 100, 120, 120]])
    values = dict(boxes=boxes, classes=np.array([7, 8, 9, 10]))
    sample = sample_of(spotted(), (BOXES, NAMES), **values)
    sample["warp"] = sample["warp"].then(shifted(-20, 0), (100, 100)).then(shifted(15, 0), (60, 60))
    found, dropped = placed(sample, 0.1)
    # x moves by -5: the first keeps half, the last lies outside
    np.testing.assert_array_equal(found["boxes"], [[0, 0, 5, 10], [35, 40, 55, 60], [0, 0, 20, 10]])
    assert found["classes"].tolist() == [7, 8, 9]
    assert dropped == 1
    found, dropped = placed(sample, 0.6)
    assert (found["classes"].tolist(), dropped) == ([8, 9], 2)
    turned = sample_of(spotted(), (BOXES,), boxes=np.array([[10.0, 0, 30, 10]]))
    turned["warp"] = turned["warp"].then(Move((0.0, -1, 10, 1, 0, 0)), (50, 50))  # a quarter turn
    np.testing.assert_array_equal(placed(turned, 0.5)[0]["boxes"], [[0, 10, 10, 30]])
    none = sample_of(spotted(), (BOXES, NAMES), boxes=np.zeros((0, 4)), classes=np.zeros(0, int))
    found, dropped = placed(none, 0.5)
    assert (found["boxes"].shape, dropped) == ((0, 4), 0)


def test_settling_changes_no_place():
    sample = sample_of(spotted(), (BOXES, POINTS), boxes=np.array([[3.0, 4, 50, 60]]), points=np.array([[9.0, 9]]))
    sample["warp"] = sample["warp"].then(scaled((HEIGHT, WIDTH), (75, 100)), (75, 100))
    for name, values in placed(sample, 0.0)[0].items():
        np.testing.assert_array_equal(placed(settled(sample), 0.0)[0][name], values)


@pytest.mark.parametrize("name", sorted(set(transforms.__all__) - STILL - SCATTER))
def test_a_map_goes_with_the_pixels(name):
    """The map is which half of the picture a pixel is of: grey levels say the same, but at the border."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[:, 90:] = 200
    halves = (image[:, :, 0] > 0).astype(np.uint8)
    for seed in range(5):
        made = applied(built(name), sample_of(image, (MAP,), map=halves), np.random.default_rng(seed))
        assert made["map"].shape == made["image"].shape[:2]
        levels = made["image"][:, :, 0]
        sure = (made["map"] != 255) & ((levels == 0) | (levels == 200))
        if sure.mean() > 0.5:  # else the colours were changed
            assert ((levels == 200) == (made["map"] == 1))[sure].mean() > 0.99
    assert set(np.unique(made["map"])) <= {0, 1, 255}


def test_the_map_of_a_crop_and_of_a_mirror_is_exact():
    rng = np.random.default_rng(0)
    array = rng.integers(0, 200, (HEIGHT, WIDTH)).astype(np.uint8)
    assert np.array_equal(moved_map(array, shifted(-5, -7), (50, 60), 255), array[7:57, 5:65])
    mirror = Move((-1.0, 0.0, WIDTH, 0.0, 1.0, 0.0))
    assert np.array_equal(moved_map(array, mirror, array.shape, 255), array[:, ::-1])
    masks = moved_map(array[None], scaled(array.shape, (75, 100)), (75, 100), 255)
    assert masks.shape == (1, 75, 100)
    assert moved_map(array[:0, None], mirror, array.shape, 255).shape == (0, HEIGHT, WIDTH)
    outside = moved_map(array, shifted(3, 0), array.shape, 255)
    assert (outside[:, :3] == 255).all()


class Pasted:
    """A transform over two samples: the left half is the partner's."""

    partners = 1

    def __call__(self, sample, rng, partners):
        (other,) = partners
        image = sample["image"].copy()
        image[:, :48] = other["image"][:, :48]
        mine = sample["points"][sample["points"][:, 0] >= 48]
        theirs = other["points"][other["points"][:, 0] < 48]
        return {**sample, "image": image, "points": np.concatenate([mine, theirs])}


class Spots:
    """Pictures whose number is their grey level, each with two points."""

    kind, classes, uri, fields = "points", (), "spots:", (POINTS,)
    objects = np.full(20, 2)

    def __len__(self):
        return 20

    def __getitem__(self, i):
        i = range(20)[i]
        image = np.full((96, 96, 3), 10 * i, np.uint8)
        return {"image": image, "points": np.array([[20.0 + i, 40], [60.0 + i, 50]]), "index": i}

    def where(self, i):
        return f"spot {i}"


def batches(specs, **options):
    from jaxvision.data.pipeline import train_batches

    options = {"start": 0, "stop": 3, "threads": 0, "slots": 4, **options}
    return list(train_batches(Spots(), specs, CONTRACT, batch_size=4, seed=5, **options))


def test_partners_come_by_arithmetic():
    """The partner of a sample is the same whatever the batch, the reader and the step that it begins with."""
    flip = built("flip", p=0.5)
    specs = [flip, Pasted()]
    whole = batches(specs)
    for batch in whole:
        left, right = batch["image"][:, 0, 0, 0] // 10, batch["image"][:, 0, 95, 0] // 10
        assert (right == batch["index"]).all()
        for row, partner in enumerate(left):
            x = batch["dots" if "dots" in batch else "points"][row][batch["valid"][row]][:, 0]
            mine = {(60.0 + right[row]), 96 - (20.0 + right[row])} | {20.0 + right[row], 96 - (60.0 + right[row])}
            theirs = {20.0 + partner, 96 - (60.0 + partner), 60.0 + partner, 96 - (20.0 + partner)}
            assert set(x[x >= 48]) <= mine
            assert set(x[x < 48]) <= theirs
    assert any((b["image"][:, 0, 0, 0] // 10 != b["index"]).any() for b in whole)
    for one, two in zip(whole[1:], batches(specs, start=1), strict=True):
        assert all(np.array_equal(one[name], two[name]) for name in one)
    (rows,) = batches(specs, start=2, rows=[3, 1])
    assert np.array_equal(rows["image"], whole[2]["image"][[3, 1]])
    threaded = batches(specs, threads=3)
    assert all(np.array_equal(a["image"], b["image"]) for a, b in zip(whole, threaded, strict=True))


def test_slots_are_counted_after_the_partners_came():
    with pytest.raises(UserError, match=r"spot \d+ has \d objects, and a training sample 1 slots"):
        batches([Pasted()], slots=1)


def test_a_spec_of_evaluation_has_no_truth():
    assert set(batch_spec({"image": (4, 4, 3)}, (BOXES, NAMES), 2, slots=3, train=False)) == {
        "image", "size", "index", "mask",
    }  # fmt: skip
    spec = batch_spec({"image": (4, 4, 3)}, (BOXES, NAMES), 2, slots=3)
    assert {name: array.shape for name, array in spec.items() if name not in ("image", "index", "mask")} == {
        "boxes": (2, 3, 4), "classes": (2, 3), "valid": (2, 3), "dropped": (2,),
    }  # fmt: skip
