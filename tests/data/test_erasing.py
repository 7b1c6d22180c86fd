"""Random erasing: the law of its boxes, what is in them, and nothing else touched."""

import numpy as np
import pytest

from jaxvision.data import transforms
from jaxvision.data.transforms.erasing import MEAN, STD, erased_box
from tests.data.test_color import constant, likely, rng, uniform


def boxes(height, width, draws, area=(0.02, 1 / 3), ratio=(0.3, 3.3), seed=0):
    generator = rng(seed)
    return np.array([erased_box(height, width, area, ratio, generator) for _ in range(draws)]).T


def test_law_of_the_boxes():
    height, width = 300, 300
    top, left, h, w = boxes(height, width, 5000)
    assert (h > 0).all()
    assert (top + h <= height).all()
    assert (left + w <= width).all()
    area, ratio = h * w / (height * width), h / w
    assert area.min() >= 0.02 * 0.97
    assert area.max() <= 1 / 3 * 1.01
    assert ratio.min() >= 0.3 * 0.97
    assert ratio.max() <= 3.3 * 1.03
    # Only boxes above 1 / 3.3 of a square image can be refused: below, area and ratio keep their laws.
    small = (area >= 0.05) & (area < 0.25)
    assert uniform(area[small], 0.05, 0.25)
    assert uniform(np.log(ratio[small]), np.log(0.3), np.log(3.3), slack=0.03)
    assert uniform((top[small] + rng(1).random(small.sum())) / (height - h[small] + 1), 0, 1)
    assert uniform((left[small] + rng(2).random(small.sum())) / (width - w[small] + 1), 0, 1)


def test_ratio_is_height_over_width():
    _, _, h, w = boxes(90, 90, 50, area=(0.1, 0.1), ratio=(2.5, 2.5))
    assert (h > 2 * w).all()


def test_boxes_that_do_not_fit_inside():
    """As torchvision: smaller than the image in both directions, or after ten none."""
    for height, width, area in ((1, 1, (0.02, 1 / 3)), (1, 50, (0.02, 1 / 3)), (40, 40, (1, 1))):
        _, _, h, w = boxes(height, width, 50, area)
        assert not (h * w).any()
    _, _, h, w = boxes(12, 60, 3000)
    assert h.max() < 12
    assert w.max() < 60


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("value", ["pixel", "color", "constant"])
def test_only_the_box_changes(value, channels):
    image = np.full((20, 24, channels), 1, np.uint8)
    transform = transforms.erasing(1.0, value=value, fill=(200, 200, 200))
    for seed in range(200):
        generator = rng(seed)
        generator.random()
        top, left, h, w = erased_box(20, 24, (0.02, 1 / 3), (0.3, 3.3), generator)
        out = transform(image, rng(seed))
        kept = np.ones((20, 24), bool)
        kept[top : top + h, left : left + w] = False
        assert (out[kept] == 1).all()
        inside = out[~kept]
        if value == "constant":
            assert (inside == 200).all()
        elif value == "color":
            assert (inside == inside[:1]).all()
        elif h * w > 40:
            assert len(np.unique(inside)) > 10


@pytest.mark.parametrize("channels", [1, 3])
def test_noise_is_normal_about_the_mean_colour(channels):
    area, ratio = (0.5, 0.5), (1.0, 1.0)
    clipped = np.clip(np.rint(rng(1).standard_normal((200000, channels)) * STD[channels] + MEAN[channels]), 0, 255)
    image = np.zeros((100, 100, channels), np.uint8)
    pixels = transforms.erasing(1.0, area, ratio, "pixel")(image, rng(2))
    pixels = pixels[pixels.any(2)].astype(float)
    assert abs(len(pixels) - 71 * 71) < 300  # a pixel that is drawn 0 in all channels is not seen here
    image = np.zeros((4, 4, channels), np.uint8)
    transform, generator = transforms.erasing(1.0, area, ratio, "color"), rng(3)
    colours = np.array([transform(image, generator).max((0, 1)) for _ in range(4000)], float)
    for drawn in (pixels, colours):
        slack = 4 * clipped.std(0) / len(drawn) ** 0.5 + (2.5 if channels == 1 else 0.5)
        assert (np.abs(drawn.mean(0) - clipped.mean(0)) < slack).all()
        assert (np.abs(drawn.std(0) - clipped.std(0)) < slack).all()
    if channels == 3:
        assert np.abs(np.corrcoef(pixels.T) - np.eye(3)).max() < 4 / len(pixels) ** 0.5


@pytest.mark.parametrize(("fill", "channels", "want"), [(7, 3, (7, 7, 7)), ((255, 0, 0), 3, (255, 0, 0))])
def test_constant_fill(fill, channels, want):
    out = transforms.erasing(1.0, (0.3, 0.3), (1, 1), "constant", fill)(np.full((9, 9, channels), 3, np.uint8), rng())
    assert {tuple(c) for c in out.reshape(-1, channels).tolist()} == {(3,) * channels, want}


def test_three_numbers_give_a_grey_image_their_luma():
    out = transforms.erasing(1.0, (0.3, 0.3), (1, 1), "constant", (124, 116, 104))(np.zeros((9, 9, 1), np.uint8), rng())
    assert out.max() == 117


def test_count_shares_the_area():
    """Three boxes of a ninth to a third of the area together, less where they overlap."""
    image, generator = np.zeros((60, 60, 1), np.uint8), rng(4)
    shares = {}
    for count in (1, 3):
        transform = transforms.erasing(1.0, (0.3, 0.3), (1, 1), "constant", 255, count)
        shares[count] = [(transform(image, generator) > 0).mean() for _ in range(400)]
    assert np.allclose(shares[1], 0.3, atol=0.01)
    assert max(shares[3]) == pytest.approx(0.3, abs=0.01)
    assert min(shares[3]) >= 0.1 - 0.01
    assert 0.2 < np.mean(shares[3]) < 0.29


def test_chance_and_one_pixel():
    image, generator = np.zeros((8, 8, 3), np.uint8), rng(6)
    transform = transforms.erasing(value="constant", fill=9)
    assert likely(sum(transform(image, generator).any() for _ in range(3000)), 3000, 0.25)
    assert (transforms.erasing(1.0)(constant(1, 2, 3), rng()) == constant(1, 2, 3)).all()
