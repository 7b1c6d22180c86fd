"""Transforms: torchvision's rounding and laws, ranges, nothing from outside, and errors of a config."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxvision.data import InputContract, build, open_source, preprocess, train_batches, transforms
from jaxvision.data.transforms import geometry
from jaxvision.errors import UserError


def rng(seed=0):
    return np.random.default_rng(seed)


def noise(height, width, channels=3, seed=0):
    return rng(seed).integers(0, 256, (height, width, channels), np.uint8)


CONTRACT = InputContract(size=16, resize=20)


@pytest.mark.parametrize("name", [name for name in transforms.__all__ if name != "multi_view"])
@pytest.mark.parametrize("channels", [1, 3])
def test_contract_of_every_transform(name, channels):
    """uint8 [H, W, C] in and out, the input left as it is, the same result for the same generator."""
    (transform,) = build([(name, {})], CONTRACT)
    image = noise(24, 24, channels)
    image.flags.writeable = False
    first, second = transform(image, rng(3)), transform(image, rng(3))
    assert first.dtype == np.uint8
    assert first.ndim == 3
    assert first.shape[2] == channels
    assert first.shape[:2] in ((16, 16), (24, 24))
    assert (first == second).all()


@pytest.mark.parametrize(
    ("height", "width", "resize", "want"),
    # int(size * long / short), from torchvision.transforms.functional._compute_resized_output_size
    [
        (375, 500, 256, (256, 341)),
        (500, 333, 256, (384, 256)),
        (256, 256, 256, (256, 256)),
        (7, 3, 5, (11, 5)),
    ],
)
def test_resize_rounds_the_longer_side_down(height, width, resize, want):
    assert transforms.resize(resize)(noise(height, width), rng()).shape[:2] == want


@pytest.mark.parametrize(
    ("side", "size", "start"),
    # int(round((side - size) / 2.0)): halves go to the even number
    [(5, 4, 0), (7, 4, 2), (9, 4, 2), (11, 4, 4), (341, 224, 58), (384, 224, 80)],
)
def test_center_crop_rounds_as_torchvision(side, size, start):
    image = np.zeros((size, side, 1), np.uint8)
    image[:, start] = 255
    cropped = transforms.center_crop(size)(image, rng())
    assert cropped.shape == (size, size, 1)
    assert (cropped[:, 0] == 255).all()
    assert (cropped[:, 1:] == 0).all()


@pytest.mark.parametrize("filter", ["bilinear", "bicubic"])
def test_preprocess_is_antialiased_resize_then_crop(filter):
    image = noise(60, 83)
    contract = InputContract(size=16, resize=21, filter=filter)
    resized = Image.fromarray(image).resize((29, 21), getattr(Image.Resampling, filter.upper()))
    # torchvision: left = round((29 - 16) / 2) = 6 (6.5 to even), top = round(2.5) = 2
    want = np.asarray(resized)[2:18, 6:22]
    assert (preprocess(contract)(image) == want).all()
    # Antialiased: noise reduced 2.9 times loses contrast (no filter: std stays near 74).
    assert preprocess(contract)(image).std() < 50


def test_random_resized_crop_law():
    boxes = np.array([geometry.crop_box(200, 200, (0.08, 1.0), (3 / 4, 4 / 3), rng(s)) for s in range(4000)])
    top, left, h, w = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + h <= 200).all()
    assert (left + w <= 200).all()
    area, ratio = h * w / 200**2, w / h
    assert area.min() > 0.08 * 0.95
    assert area.max() <= 1
    assert ratio.min() > 3 / 4 * 0.97
    assert ratio.max() < 4 / 3 * 1.03
    # Nothing small is ever refused, so below 3/4 of the area the law is uniform; ratio is log-symmetric.
    small = area[area < 0.7]
    assert abs(np.mean(small) - 0.39) < 0.012
    assert abs(np.mean(np.log(ratio))) < 0.012
    assert abs(np.mean(top / np.maximum(200 - h, 1)) - 0.5) < 0.03
    assert geometry.crop_box(200, 200, (0.18, 0.18), (2.0, 2.0), rng(0))[2:] == (60, 120)  # ratio is width / height


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_random_resized_crop_fits_any_image(height, width, seed):
    top, left, h, w = geometry.crop_box(height, width, (0.08, 1.0), (3 / 4, 4 / 3), rng(seed))
    assert h >= 1
    assert w >= 1
    assert 0 <= top <= height - h
    assert 0 <= left <= width - w
    image = transforms.random_resized_crop(8)(noise(height, width), rng(seed))
    assert image.shape == (8, 8, 3)


def test_sizes_of_height_and_width():
    """Each by its own means: what is resized and cut to 6 x 10, and the same moves for the places."""
    contract = InputContract(size=(6, 10), resize=10)
    image = noise(31, 40)
    specs = (("random_resized_crop", {}), ("resize", {}), ("resize", {"size": 12}), ("center_crop", {}))
    crop, stretch, shorter, middle = transforms.build(specs, contract)
    made, moves = crop.step(image, rng(3))
    top, left, h, w = geometry.crop_box(31, 40, (0.08, 1.0), (3 / 4, 4 / 3), rng(3))
    assert made.shape == contract.shape
    np.testing.assert_allclose(moves[0].matrix @ [left + w, top + h, 1], [10, 6, 1], atol=1e-9)
    want = np.asarray(Image.fromarray(image).resize((10, 6), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(stretch(image, rng(0)) - want).max() <= 1
    assert shorter(image, rng(0)).shape == (12, 15, 3)
    assert np.array_equal(middle(image, rng(0)), image[12:18, 15:25])
    with pytest.raises(UserError, match="cannot cut 10 x 6 pixels out of an image of 40 x 5"):
        middle(image[:5], rng(0))
    views = (("multi_view", {"views": ((("resize", {}),),) * 2}),)
    assert transforms.shapes(views, contract) == {"image": (2, 6, 10, 3)}
    (made,) = transforms.build(views, contract)
    assert made(image, rng(0))["image"].shape == (2, 6, 10, 3)


def test_random_resized_crop_sees_only_its_box():
    """As torchvision, which cuts first: the filter must not mix in what surrounds the box."""
    for seed in range(20):
        top, left, h, w = geometry.crop_box(64, 64, (0.1, 0.5), (1.0, 1.0), rng(seed))
        image = np.full((64, 64, 3), 255, np.uint8)
        image[top : top + h, left : left + w] = 40
        assert (transforms.random_resized_crop(8, (0.1, 0.5), (1.0, 1.0))(image, rng(seed)) == 40).all()


def test_flip_is_every_second_time():
    image = noise(4, 5)
    flips = 0
    for seed in range(2000):
        out = transforms.flip()(image, rng(seed))
        flipped = (out == image[:, ::-1]).all()
        assert flipped or (out == image).all()
        flips += flipped
    assert 880 < flips < 1120  # +-5 standard deviations


@pytest.mark.parametrize("seed", range(30))
def test_shift_moves_by_whole_pixels_and_fills(seed):
    image = np.maximum(noise(20, 30, seed=seed), 1)
    moved = transforms.shift(share=0.2, fill=0)(image, rng(seed))
    wanted = []
    for down in range(-4, 5):
        for right in range(-6, 7):
            padded = np.pad(image, ((4, 4), (6, 6), (0, 0)))
            wanted.append(padded[4 - down : 24 - down, 6 - right : 36 - right].tobytes())
    assert moved.tobytes() in wanted  # one translation within the share; zeros come in, nothing wraps


def test_shift_and_pad_and_crop_reach_both_ends():
    image = np.zeros((9, 9, 1), np.uint8)
    image[4, 4] = 255
    for transform, reach in ((transforms.shift(1 / 3), 3), (transforms.pad_and_crop(2), 2)):
        places = {tuple(np.argwhere(transform(image, rng(s))[:, :, 0])[0] - 4) for s in range(600)}
        assert places == {(y, x) for y in range(-reach, reach + 1) for x in range(-reach, reach + 1)}


def test_affine_identity_and_known_answers():
    image = noise(12, 18)
    assert (transforms.affine()(image, rng()) == image).all()
    # Twice as large about the centre: a centred square of 4 becomes one of 8.
    image = np.zeros((16, 16, 1), np.uint8)
    image[6:10, 6:10] = 255
    out = transforms.affine(scale=(2.0, 2.0))(image, rng())[:, :, 0]
    assert (out[5:11, 5:11] == 255).all()
    assert out[:3].max() == 0
    assert out[13:].max() == 0


class Draws:
    """A generator whose draws (angle, shear, right, down, scale) are chosen: 1 is the largest."""

    def __init__(self, **chosen):
        self.values = [chosen.get(name, 0.5) for name in ("angle", "shear", "right", "down", "scale")]

    def random(self, count):
        return np.array(self.values[:count])


def test_affine_directions():
    """As torchvision's: turned clockwise, moved right and down, sheared to the left going down."""
    image = noise(16, 16)
    inside = slice(1, -1)  # the outermost pixels may just miss the image by rounding
    turned = transforms.affine(degrees=90)(image, Draws(angle=1))
    assert np.abs(turned.astype(int) - np.rot90(image, -1))[inside, inside].max() <= 1
    moved = transforms.affine(share=0.25, fill=0)(image, Draws(right=1, down=0))
    assert (moved[:12, 4:] == image[4:, :12]).all()
    assert moved[12:].max() == 0
    assert moved[:, :4].max() == 0
    column = np.zeros((17, 17, 1), np.uint8)
    column[:, 8] = 255
    slanted = transforms.affine(shear=45)(column, Draws(shear=1))[:, :, 0]
    assert all(slanted[y, 16 - y] >= 254 for y in range(1, 16))


@pytest.mark.parametrize("seed", range(40))
def test_affine_stays_within_its_ranges_and_never_leaks(seed):
    image = np.zeros((40, 40, 3), np.uint8)
    image[15:25, 15:25] = 200
    out = transforms.affine(degrees=20, share=0.1, scale=(0.8, 1.2), shear=10)(image, rng(seed))
    y, x = np.nonzero(out[:, :, 0] > 100)
    # The farthest corner, 5 * (1 + tan 10) by 5, turned and enlarged, then moved by 4 pixels.
    reach = 1.2 * 5 * math.hypot(1 + math.tan(math.radians(10)), 1) + 4 + 1
    assert np.abs(np.concatenate([y, x]) + 0.5 - 20).max() <= reach
    assert abs(y.mean() + 0.5 - 20) <= 4.5
    assert abs(x.mean() + 0.5 - 20) <= 4.5
    assert 0.8**2 * 100 * 0.8 <= len(y) <= 1.2**2 * 100 * 1.2
    border = np.full((40, 40, 3), 255, np.uint8)
    away = transforms.affine(share=1.0, fill=9)(border, rng(seed))
    assert set(np.unique(away)) <= {9, 255}


def test_build_fills_the_size_and_keeps_the_order():
    resize, crop = build((("resize", {}), ("center_crop", {"size": 4})), CONTRACT)
    assert resize(noise(8, 8), rng()).shape == (16, 16, 3)
    assert crop(noise(8, 8), rng()).shape == (4, 4, 3)


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        (("shfit", {}), "unknown transform \"shfit\": did you mean 'shift'?"),
        (("Image", {}), 'unknown transform "Image"'),
        (("shift", {"shar": 0.1}), 'unknown argument "shar" of transform "shift": did you mean \'share\'?'),
        (("shift", {"share": 2}), "between 0 and 1"),
        (("shift", {"share": "0.1"}), 'transform "shift"'),
        (("shift", {"fill": 256}), "0..255"),
        (("resize", {"filter": "bilinaer"}), "did you mean 'bilinear'"),
        (("resize", {"size": 8.5}), "whole number"),
        (("random_resized_crop", {"scale": (1.0, 0.5)}), "low <= high"),
        (("random_resized_crop", {"scale": 0.5}), 'transform "random_resized_crop"'),
        (("affine", {"shear": 90}), "below 90"),
        ("flip", "is a pair like"),
        (("flip", 3), "is a pair like"),
    ],
)
def test_build_errors(spec, wanted):
    with pytest.raises(UserError) as error:
        build([spec], CONTRACT)
    assert wanted in str(error.value)


def test_multi_view():
    """Each view its own transforms, one generator; the batch's entries in their shapes."""
    crop = ("random_resized_crop", {"scale": (0.3, 1.0)})
    spec = {"views": ((crop,), (crop, ("solarize", {"p": 1.0, "threshold": 0}))), "local": (crop,)}
    (views,) = build([("multi_view", {**spec, "local_count": 3, "local_size": 6})], CONTRACT)
    image = noise(40, 50)
    made = views(image, rng(4))
    assert made["image"].shape == (2, 16, 16, 3)
    assert made["local"].shape == (3, 6, 6, 3)
    # By hand: the same draws, one view after the other.
    draws = rng(4)
    (large,), (small,) = build([crop], CONTRACT), build([crop], InputContract(size=6, resize=6))
    assert (made["image"][0] == large(image, draws)).all()
    second = large(image, draws)
    draws.random()  # solarize's
    assert (made["image"][1] == 255 - second).all()
    assert all((made["local"][k] == small(image, draws)).all() for k in range(3))
    batch = next(
        train_batches(open_source("fake:5x20"), [views], CONTRACT, batch_size=4, seed=0, start=0, stop=1, threads=0)
    )
    assert {k: v.shape for k, v in batch.items() if v.ndim > 1} == {
        "image": (4, 2, 16, 16, 3),
        "local": (4, 3, 6, 6, 3),
    }


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"views": ()}, "views is empty"),
        ({"local_count": 2}, "local and local_count go together"),
        ({"views": ((("flipp", {}),),)}, "did you mean 'flip'"),
        ({"views": ((("flip", {}),),)}, "a view is 20 x 20, not 16 x 16"),
    ],
)
def test_multi_view_errors(arguments, wanted):
    def make():
        (views,) = build([("multi_view", arguments)], CONTRACT)
        views(noise(20, 20), rng())

    with pytest.raises(UserError, match=wanted):
        make()
