"""Evaluation pixels are Pillow's, so torchvision's too; what training's quick resizer and tensors differ from them by.

Where a bicubic filter overshoots, two passes give other pixels than two passes in the other order, since Pillow and
the quick resizer cut each off at 0 and 255. torchvision's tensors are cut off once, at the end.
"""

import functools
import json
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxvision.data import InputContract, build, preprocess
from jaxvision.data.transforms.pixels import center, quickly_resized, resized, shorter_side_to
from tests.data.golden import make_torchvision_eval as golden

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# height, width -> height, width
RATIOS = (
    ((427, 640), (256, 383)),
    ((427, 640), (32, 32)),
    ((427, 640), (1, 1)),
    ((50, 60), (224, 224)),
    ((3, 3), (224, 224)),
    ((1, 1), (17, 5)),
    ((7, 1000), (16, 16)),
    ((1000, 7), (16, 16)),
    ((1, 500), (3, 7)),
    ((500, 1), (500, 3)),
    ((224, 224), (223, 225)),
    ((37, 41), (37, 20)),
)


@functools.cache
def picture(kind, height, width, channels):
    """A photo (repeated where it is too small), noise, or black and white."""
    if kind == "photo":
        from sklearn.datasets import load_sample_image

        photo = load_sample_image("china.jpg")
        pixels = np.tile(photo, (-(-height // 427), -(-width // 640), 1))[:height, :width]
    else:
        pixels = np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), np.uint8)
    if kind == "extremes":
        pixels = (pixels > 127) * np.uint8(255)
    return np.ascontiguousarray(pixels[:, :, :channels])


def pillow(pixels, height, width, filter, columns_first=False):
    """Pillow's pixels; it resizes rows, then columns, unless told otherwise here."""
    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
    if columns_first:
        image = image.resize((image.width, height), FILTERS[filter])
    result = np.asarray(image.resize((width, height), FILTERS[filter]))
    return result if result.ndim == 3 else result[:, :, None]


def check_quick(pixels, height, width, filter):
    quick = quickly_resized(pixels, height, width, filter)
    near = difference(quick, pillow(pixels, height, width, filter))
    if filter == "bilinear":
        assert near <= 1
    else:
        assert min(near, difference(quick, pillow(pixels, height, width, filter, columns_first=True))) <= 2


def difference(a, b):
    assert a.shape == b.shape
    assert a.dtype == b.dtype == np.uint8
    return int(np.abs(a.astype(int) - b).max())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("kind", ["photo", "noise", "extremes"])
@pytest.mark.parametrize(("source", "target"), RATIOS)
def test_resizing(source, target, kind, filter, channels):
    pixels = picture(kind, *source, channels)
    assert difference(resized(pixels, *target, filter), pillow(pixels, *target, filter)) == 0
    check_quick(pixels, *target, filter)


@pytest.mark.parametrize("target", [(256, 383), (168, 252), (224, 336), (600, 900)])
def test_resizing_a_photo_bicubically(target):
    """What the order of the passes makes of a photo, at worst."""
    pixels = picture("photo", 427, 640, 3)
    quick, want = quickly_resized(pixels, *target, "bicubic"), pillow(pixels, *target, "bicubic")
    assert difference(quick, want) <= 12
    assert np.abs(quick.astype(int) - want).mean() < 0.25


@given(
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.sampled_from(("photo", "noise", "extremes")),
    st.sampled_from(tuple(FILTERS)),
    st.sampled_from((1, 3)),
)
@settings(max_examples=300, deadline=None)
def test_resizing_any_shape(source, target, kind, filter, channels):
    pixels = picture(kind, *source, channels)
    assert difference(resized(pixels, *target, filter), pillow(pixels, *target, filter)) == 0
    check_quick(pixels, *target, filter)


def evaluated(pixels, contract):
    """Resize and CenterCrop with Pillow alone, written again from torchvision's rounding."""
    height, width = pixels.shape[:2]
    short, long = min(height, width), max(height, width)
    longer = int(contract.resize * long / short)
    size = (contract.resize, longer) if height <= width else (longer, contract.resize)
    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
    image = image.resize(size[::-1], FILTERS[contract.filter])
    top, left = (round((side - contract.size) / 2.0) for side in size)
    cut = np.asarray(image.crop((left, top, left + contract.size, top + contract.size)))
    return cut if cut.ndim == 3 else cut[:, :, None]


def contracts(channels, filter, size=32, resize=40):
    return InputContract(size, resize, filter, channels=channels, mean=(0.5,) * channels, std=(0.25,) * channels)


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("height", "width"), [(427, 640), (640, 427), (256, 256), (100, 300), (3, 3), (40, 1), (7, 90)]
)
def test_evaluation_pixels_are_pillows(height, width, channels, filter):
    for kind in ("photo", "noise"):
        pixels = picture(kind, height, width, channels)
        for size, resize in ((224, 256), (32, 40), (256, 256), (1, 1)):
            contract = contracts(channels, filter, size, resize)
            assert difference(preprocess(contract)(pixels), evaluated(pixels, contract)) == 0


@given(
    st.integers(1, 120), st.integers(1, 120), st.sampled_from((1, 3)), st.sampled_from(tuple(FILTERS)),
    st.integers(1, 48), st.integers(0, 16),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_evaluation_pixels_of_any_shape(height, width, channels, filter, size, more):
    pixels, contract = picture("noise", height, width, channels), contracts(channels, filter, size, size + more)
    assert difference(preprocess(contract)(pixels), evaluated(pixels, contract)) == 0


GOLDEN = np.load(pathlib.Path(golden.__file__).with_name("torchvision_eval.npz"))
KEYS = [f"{filter}/{'x'.join(map(str, shape))}" for filter in FILTERS for shape in golden.SHAPES]


def golden_case(key):
    """(the picture, the contract) of a key."""
    filter, shape = key.split("/")
    height, width, channels = map(int, shape.split("x"))
    return golden.picture(height, width, channels), contracts(channels, filter, golden.SIZE, golden.RESIZE)


def test_every_key_of_the_golden_file_is_tested():
    assert set(GOLDEN.files) == {"versions"} | {f"{backend}/{key}" for backend in ("pillow", "tensor") for key in KEYS}


@pytest.mark.parametrize("key", KEYS)
def test_evaluation_pixels_are_torchvisions(key):
    pixels, contract = golden_case(key)
    assert difference(preprocess(contract)(pixels), GOLDEN[f"pillow/{key}"]) == 0


@pytest.mark.parametrize("key", KEYS)
def test_how_far_torchvisions_tensors_are(key):
    """A level in bilinear; in bicubic up to 20 at hard edges, and a level again if nothing is cut off in between."""
    pixels, contract = golden_case(key)
    ours, theirs = preprocess(contract)(pixels), GOLDEN[f"tensor/{key}"]
    assert difference(ours, theirs) <= (1 if contract.filter == "bilinear" else 20)
    height, width = shorter_side_to(pixels, contract.resize)
    planes = [Image.fromarray(plane.astype(np.float32)) for plane in pixels.transpose(2, 0, 1)]
    exact = np.stack([np.asarray(plane.resize((width, height), FILTERS[contract.filter])) for plane in planes], -1)
    exact = np.clip(np.rint(exact), 0, 255).astype(np.uint8)
    assert difference(center(exact, contract.size), theirs) <= 1


@pytest.mark.parametrize("key", [key for key in KEYS if key.startswith("bilinear")])
def test_training_pixels_are_within_a_level_of_torchvisions(key):
    pixels, contract = golden_case(key)
    for transform in build((("resize", {"size": contract.resize}), ("center_crop", {})), contract):
        pixels = transform(pixels, None)
    assert difference(pixels, GOLDEN[f"pillow/{key}"]) <= 1


@given(
    st.integers(1, 64), st.integers(0, 64), st.sampled_from(tuple(FILTERS)), st.sampled_from((1, 3)),
    st.lists(st.floats(0.001, 1), min_size=6, max_size=6),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_a_stored_contract_gives_the_same_pixels(size, more, filter, channels, numbers):
    contract = InputContract(
        size, size + more, filter, channels=channels, mean=numbers[:channels], std=numbers[3:][:channels]
    )
    again = InputContract.from_dict(json.loads(json.dumps(contract.to_dict())))
    assert again == contract
    assert again.mean == tuple(numbers[:channels])  # to the last bit: they are part of the pixels, too
    for pixels in (picture("noise", 45, 60, channels), picture("photo", 60, 33, channels)):
        assert preprocess(again)(pixels).tobytes() == preprocess(contract)(pixels).tobytes()


def test_the_longer_side_is_rounded_down():
    for (height, width), want in (
        ((3, 10), (16, 53)),
        ((10, 3), (53, 16)),
        ((7, 7), (16, 16)),
        ((7, 1000), (16, 2285)),
    ):
        assert shorter_side_to(np.zeros((height, width, 3), np.uint8), 16) == want
