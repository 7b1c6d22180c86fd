"""Random erasing: boxes of noise or of one colour."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from jaxvision.config.ranges import Depth, Fill, Positive, Share
from jaxvision.data.transforms.color import check_colour, check_p, colour_of
from jaxvision.data.transforms.pixels import Transform, check
from jaxvision.errors import UserError, nearest

VALUES = ("pixel", "color", "constant")

# ImageNet's colours, in levels; for one channel the luma of the mean, and the luma's deviation taken likewise.
MEAN = {3: np.array((123.675, 116.28, 103.53), np.float32), 1: np.array((117.0,), np.float32)}
STD = {3: np.array((58.395, 57.12, 57.375), np.float32), 1: np.array((57.5,), np.float32)}


def erasing(
    p: Share = 0.25,
    area: tuple[Share, Share] = (0.02, 1 / 3),
    ratio: tuple[Positive, Positive] = (0.3, 3.3),
    value: str = "pixel",
    fill: Fill = 0,
    count: Depth = 1,
) -> Transform:
    """A random box overwritten with chance `p`: with noise, one random colour, or `fill`.

    `area` is the share of the image, uniform; `ratio` is height / width, uniform in its logarithm. With `count` boxes
    each gets `area / count`. The law of torchvision's and timm's `RandomErasing`: after ten boxes that do not fit
    inside none is drawn. `value` "pixel", "color" and "constant" are timm's "pixel", "rand" and "const". Both erase
    after normalisation and draw from N(0, 1); here that is N(mean, std) of ImageNet, rounded and clipped to 0..255.
    timm's constant, zero after normalisation, is `fill=(124, 116, 104)`. Zhong et al. 2017.
    """
    check_p(p)
    check(0 <= area[0] <= area[1] <= 1, f"area is {area}, must be (low, high) with 0 <= low <= high <= 1")
    check(0 < ratio[0] <= ratio[1], f"ratio is {ratio}, must be (low, high) with 0 < low <= high")
    if value not in VALUES:
        raise UserError(f'unknown value "{value}": {nearest(value, VALUES)}')
    check_colour(fill)
    check(isinstance(count, int) and count >= 1, f"count is {count!r}, must be a whole number, at least 1")
    share = (area[0] / count, area[1] / count)

    def apply(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if rng.random() >= p:
            return image
        image = image.copy()
        channels = image.shape[2]
        for _ in range(count):
            top, left, height, width = erased_box(image.shape[0], image.shape[1], share, ratio, rng)
            if value == "constant":
                paint = np.array(colour_of(fill, channels), np.uint8)
            else:
                shape = (height, width, channels) if value == "pixel" else (channels,)
                noise = rng.standard_normal(shape, np.float32) * STD[channels] + MEAN[channels]
                paint = np.clip(np.rint(noise), 0, 255).astype(np.uint8)
            image[top : top + height, left : left + width] = paint
        return image

    return apply


def erased_box(
    height: int, width: int, area: Sequence[float], ratio: Sequence[float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a box inside an image of height x width pixels, 0 x 0 if none fits."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        pixels = height * width * rng.uniform(area[0], area[1])
        aspect = math.exp(rng.uniform(low, high))
        h, w = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if h < height and w < width:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    return 0, 0, 0, 0
