"""Colours: torchvision's pixels, how often and how much, grey images, and tiny ones."""

import collections
import inspect
import itertools
import pathlib

import numpy as np
import pytest
from PIL import Image, ImageFilter

from jaxvision.data import transforms
from jaxvision.data.transforms import color
from jaxvision.errors import UserError

GOLDEN = np.load(pathlib.Path(__file__).with_name("golden") / "torchvision_ops.npz")

# These need a size.
NOT_ANY_SHAPE = {"center_crop", "random_resized_crop", "resize", "multi_view"}


def rng(seed=0):
    return np.random.default_rng(seed)


def likely(count, draws, p):
    """A count within 4 standard deviations of what `draws` of chance `p` give."""
    return abs(count - draws * p) <= 4 * (draws * p * (1 - p)) ** 0.5


def uniform(values, low, high, bins=10, slack=0.0):
    """Each tenth of [low, high] has its share, and nothing (but `slack` of rounding) is outside."""
    values = np.asarray(values, float)
    if values.min() < low - slack or values.max() > high + slack:
        return False
    counts = np.histogram(np.clip(values, low, high), bins, (low, high))[0]
    return all(likely(count, len(values), 1 / bins) for count in counts)


def constant(*levels):
    return np.full((1, 1, len(levels)), levels, np.uint8)


@pytest.mark.parametrize("name", [name for name in transforms.__all__ if name not in NOT_ANY_SHAPE])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 3), (9, 6)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_shape_the_input_kept_and_only_the_generator_decides(name, shape, channels):
    image = rng(5).integers(0, 256, (*shape, channels), np.uint8)
    image.flags.writeable = False
    before, transform = image.copy(), getattr(transforms, name)()
    for seed in range(15):
        out = transform(image, rng(seed))
        assert out.shape == image.shape
        assert out.dtype == np.uint8
        assert (out == transform(image, rng(seed))).all()
    assert (image == before).all()


CHANCES = {
    "autocontrast": {},
    "blur": {"sigma": (1.0, 2.0)},
    "color_jitter": {"brightness": 0, "contrast": 0, "saturation": 0.9},
    "equalize": {},
    "erasing": {},
    "flip": {},
    "grayscale": {},
    "invert": {},
    "perspective": {},
    "posterize": {},
    "sharpness": {},
    "solarize": {},
    "vertical_flip": {},
}


@pytest.mark.parametrize("name", CHANCES)
def test_chance(name):
    # `equalize` leaves images of fewer than 256 pixels as they are.
    image, factory = GOLDEN["image"][6:26, 6:26], getattr(transforms, name)
    for p, draws in ((0, 50), (0.3, 1500), (1, 200)):
        transform, generator = factory(p=p, **CHANCES[name]), rng(7)
        changed = sum((transform(image, generator) != image).any() for _ in range(draws))
        # An erased pixel may by chance be what it was, a jitter's factor nearly 1.
        assert likely(changed, draws, p) or (p == 1 and changed > 0.97 * draws)


def test_default_chances():
    """torchvision's, but for those whose docstrings say otherwise."""
    want = dict.fromkeys(CHANCES, 0.5) | {"color_jitter": 1.0, "grayscale": 0.1, "solarize": 0.2, "erasing": 0.25}
    for name, p in want.items():
        assert inspect.signature(getattr(transforms, name)).parameters["p"].default == p


@pytest.mark.parametrize("turn", [0.02, 0.31, -0.1, -0.5])
def test_hue_as_torchvision(turn):
    made = color.hue_turned(Image.fromarray(GOLDEN["image"]), turn)
    assert (np.asarray(made) == GOLDEN[f"hue/{turn}"]).all()


@pytest.mark.parametrize(
    ("name", "arguments", "key"),
    [
        ("autocontrast", {}, "op/autocontrast/0.0/nearest"),
        ("equalize", {}, "op/equalize/0.0/nearest"),
        ("invert", {}, "op/invert/0.0/nearest"),
        ("posterize", {"bits": 2}, "op/posterize/2/nearest"),
        ("posterize", {}, "op/posterize/4/nearest"),
        ("solarize", {}, "op/solarize/128.0/nearest"),
        ("solarize", {"threshold": 178.5}, "op/solarize/178.5/nearest"),
        ("sharpness", {"factor": 1.99}, "op/sharpness/0.99/nearest"),
        ("sharpness", {"factor": 0.1}, "op/sharpness/-0.9/nearest"),
        ("grayscale", {}, "grayscale"),
    ],
)
def test_as_torchvision(name, arguments, key):
    out = getattr(transforms, name)(p=1.0, **arguments)(GOLDEN["image"], rng())
    assert (out == GOLDEN[key]).all()


def test_blur_is_pillows(monkeypatch):
    drawn, true = [], ImageFilter.GaussianBlur
    monkeypatch.setattr(ImageFilter, "GaussianBlur", lambda sigma: drawn.append(sigma) or true(sigma))
    image, generator, transform = GOLDEN["image"][:8, :8], rng(1), transforms.blur(p=1.0)
    for _ in range(3000):
        out = transform(image, generator)
    assert uniform(drawn, 0.1, 2.0)
    assert (out == np.asarray(Image.fromarray(image).filter(true(drawn[-1])))).all()
    # Its sigma is what it says: the response to a line has that standard deviation.
    line = np.zeros((1, 41, 1), np.uint8)
    line[0, 20] = 255
    line = np.repeat(line, 41, axis=0)
    for sigma in (1.0, 2.0):
        response = transforms.blur(1.0, (sigma, sigma))(line, rng())[20, :, 0].astype(float)
        spread = (response * (np.arange(41) - 20) ** 2).sum() / response.sum()
        assert spread**0.5 == pytest.approx(sigma, rel=0.06)


@pytest.mark.parametrize(("x", "low", "high"), [(0.4, 0.6, 1.4), (0.1, 0.9, 1.1), (1.5, 0.0, 2.5)])
def test_jitter_factors_are_uniform(x, low, high):
    """Recovered from pixels: a level, the distance of two levels about their mean, that of two channels."""
    generator, draws = rng(2), 1500
    two = np.array([[[112], [144]]], np.uint8)  # mean 128, and no clipping at a factor of 2.5
    factors = {
        "brightness": (constant(100), lambda out: out[0, 0, 0] / 100),
        "contrast": (two, lambda out: (float(out[0, 1, 0]) - out[0, 0, 0]) / 32),
        "saturation": (constant(144, 128, 112), lambda out: (float(out[0, 0, 0]) - out[0, 0, 2]) / 32),
    }
    for name, (image, factor) in factors.items():
        transform = transforms.color_jitter(**(dict.fromkeys(factors, 0) | {name: x}))
        made = np.array([factor(transform(image, generator)) for _ in range(draws)])
        assert abs(made.mean() - (low + high) / 2) <= 4 * (high - low) / (12 * draws) ** 0.5 + 0.01
        assert low - 0.07 <= made.min() <= low + 0.08
        assert high - 0.08 <= made.max() <= high + 0.07
        assert np.std(made) == pytest.approx((high - low) / 12**0.5, rel=0.12)


def test_jitter_draws(monkeypatch):
    """Four factors, each uniform and apart from the others, and all 24 orders."""
    calls = []

    def record(name):
        return lambda image, factor: calls.append((name, factor)) or image

    for name in color.JITTERS:
        monkeypatch.setitem(color.JITTERS, name, record(name))
    transform, generator, draws = transforms.color_jitter(0.4, 0.2, 1.7, 0.1), rng(3), 4800
    for _ in range(draws):
        transform(constant(1, 2, 3), generator)
    assert len(calls) == 4 * draws
    orders = collections.Counter(tuple(n for n, _ in calls[i : i + 4]) for i in range(0, 4 * draws, 4))
    assert set(orders) == set(itertools.permutations(color.JITTERS))
    assert all(likely(count, draws, 1 / 24) for count in orders.values())
    factors = {name: np.array([f for n, f in calls if n == name]) for name in color.JITTERS}
    assert uniform(factors["brightness"], 0.6, 1.4)
    assert uniform(factors["contrast"], 0.8, 1.2)
    assert uniform(factors["saturation"], 0.0, 2.7)
    assert uniform(factors["hue"], -0.1, 0.1)
    assert np.abs(np.corrcoef(list(factors.values())) - np.eye(4)).max() < 4 / draws**0.5


def test_jitter_of_nothing_and_the_order_shows():
    image = GOLDEN["image"]
    assert (transforms.color_jitter(0, 0, 0, 0)(image, rng()) == image).all()
    jitter = transforms.color_jitter(0.4, 0.4, 0.4, 0.3)
    assert len({jitter(image, rng(s)).tobytes() for s in range(50)}) == 50


def test_grey_images_have_no_saturation_hue_or_colour_to_lose():
    image = GOLDEN["image"][:, :, :1]
    for seed in range(10):
        assert (transforms.color_jitter(0, 0, 0.9, 0.5)(image, rng(seed)) == image).all()
        assert (transforms.grayscale(1.0)(image, rng(seed)) == image).all()
    assert (transforms.invert(1.0)(image, rng()) == 255 - image).all()


@pytest.mark.parametrize(
    ("name", "arguments", "wanted"),
    [
        ("color_jitter", {"hue": 0.6}, "between 0 and 0.5"),
        ("color_jitter", {"contrast": -0.1}, "contrast is -0.1"),
        ("grayscale", {"p": 1.1}, "between 0 and 1"),
        ("blur", {"sigma": (2.0, 1.0)}, "low <= high"),
        ("solarize", {"threshold": 300}, "between 0 and 256"),
        ("posterize", {"bits": 0}, "1..8"),
        ("sharpness", {"factor": -1}, "at least 0"),
        ("flip", {"p": 2}, "between 0 and 1"),
        ("rotation", {"filter": "linear"}, 'unknown filter "linear"'),
        ("rotation", {"fill": (1, 2)}, "or three of them"),
        ("rotation", {"degrees": -3}, "at least 0"),
        ("perspective", {"distortion": 1.5}, "between 0 and 1"),
        ("rand_augment", {"magnitude": 31}, "must be in 0..30"),
        ("rand_augment", {"bins": 1}, "at least 2"),
        ("trivial_augment", {"fill": 256}, "0..255"),
        ("auto_augment", {"policy": "cifar"}, "did you mean 'cifar10'?"),
        ("aug_mix", {"severity": 11}, "1..10"),
        ("aug_mix", {"alpha": 0}, "above 0"),
        ("rand_augment_timm", {"magnitude": 11}, "between 0 and 10"),
        ("rand_augment_timm", {"std": -1}, "at least 0"),
        ("erasing", {"value": "pixels"}, "did you mean 'pixel'?"),
        ("erasing", {"area": (0.5, 0.2)}, "low <= high"),
        ("erasing", {"ratio": (0, 1)}, "0 < low"),
        ("erasing", {"count": 0}, "at least 1"),
    ],
)
def test_bad_arguments(name, arguments, wanted):
    with pytest.raises(UserError) as error:
        getattr(transforms, name)(**arguments)
    assert wanted in str(error.value)
