"""Transforms that say which pixels: resizing, cutting, mirroring, moving."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from jaxvision.data.transforms.pixels import (
    Transform,
    center,
    check,
    check_fill,
    check_size,
    filter_of,
    from_pillow,
    moved,
    resized,
    shorter_side_to,
    to_pillow,
)  # fmt: skip


def resize(size: int, filter: str = "bilinear") -> Transform:
    """The shorter side to `size` pixels, the longer in proportion (torchvision's `Resize(int)`).

    Antialiased: Pillow's filters widen with the reduction.
    """
    resample = filter_of(filter)
    check_size(size)
    return lambda image, rng: resized(image, *shorter_side_to(image, size), resample)


def center_crop(size: int) -> Transform:
    """The middle `size` x `size` pixels (torchvision's `CenterCrop`, but small images raise, unpadded)."""
    check_size(size)
    return lambda image, rng: center(image, size)


def random_resized_crop(
    size: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    filter: str = "bilinear",
) -> Transform:
    """A random box, resized to `size` x `size` (torchvision's `RandomResizedCrop`, its law and its fallback).

    `scale` is the share of the image's area, uniform; `ratio` is width / height, uniform in its logarithm.
    After ten boxes that do not fit comes the largest centred one within `ratio`. Szegedy et al. 2015.
    """
    resample = filter_of(filter)
    check_size(size)
    check(0 < scale[0] <= scale[1], f"scale is {scale}, must be (low, high) with 0 < low <= high")
    check(0 < ratio[0] <= ratio[1], f"ratio is {ratio}, must be (low, high) with 0 < low <= high")

    def apply(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        top, left, height, width = crop_box(image.shape[0], image.shape[1], scale, ratio, rng)
        # Cut before resizing: Pillow's `box` argument lets the filter see the pixels around the box.
        return resized(image[top : top + height, left : left + width], size, size, resample)

    return apply


def crop_box(
    height: int, width: int, scale: Sequence[float], ratio: Sequence[float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of `random_resized_crop`'s box in an image of height x width pixels."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = height * width * rng.uniform(scale[0], scale[1])
        aspect = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    w, h = width, height
    if width / height < ratio[0]:
        h = min(height, max(1, round(width / ratio[0])))
    elif width / height > ratio[1]:
        w = min(width, max(1, round(height * ratio[1])))
    return (height - h) // 2, (width - w) // 2, h, w


def flip() -> Transform:
    """Left and right swapped, every second time (torchvision's `RandomHorizontalFlip`)."""
    return lambda image, rng: image[:, ::-1] if rng.random() < 0.5 else image


def shift(share: float = 0.1, fill: int = 0) -> Transform:
    """Moved by up to `share` of each side, in whole pixels; what comes in from outside is `fill`.

    The translation of torchvision's `RandomAffine(translate=(share, share))`. Pixels are moved, not
    interpolated, so on an image below 1 / (2 * share) pixels it does nothing: `affine` moves by fractions.
    """
    check(0 <= share <= 1, f"share is {share}, must be between 0 and 1")
    check_fill(fill)

    def apply(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        down = round(rng.uniform(-share, share) * image.shape[0])
        right = round(rng.uniform(-share, share) * image.shape[1])
        return moved(image, down, right, fill)

    return apply


def affine(
    degrees: float = 0.0,
    share: float = 0.0,
    scale: tuple[float, float] = (1.0, 1.0),
    shear: float = 0.0,
    fill: int = 0,
) -> Transform:
    """Turned, moved, scaled and sheared about the centre in one bilinear step; outside is `fill`.

    torchvision's `RandomAffine`, uniform in +-degrees (and +-shear, in degrees, horizontal), +-share of each
    side and `scale`, except that it rounds the translation to whole pixels and this does not.
    """
    check(0 <= share <= 1, f"share is {share}, must be between 0 and 1")
    check_fill(fill)
    check(0 < scale[0] <= scale[1], f"scale is {scale}, must be (low, high) with 0 < low <= high")
    check(0 <= shear < 90, f"shear is {shear}, must be at least 0 and below 90 degrees")
    low = (-math.radians(degrees), -math.radians(shear), -share, -share, scale[0])
    span = tuple(h - b for h, b in zip((-low[0], -low[1], share, share, scale[1]), low))

    def apply(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width, channels = image.shape
        # One draw of five numbers: five draws cost more than Pillow's work on a small image.
        angle, slant, right, down, zoom = (b + s * u for b, s, u in zip(low, span, rng.random(5).tolist()))
        sin, cos, tan = math.sin(angle), math.cos(angle), math.tan(slant)
        # Pillow wants the way back, from output to input: the inverse of
        # [[cos, -cos * tan - sin], [sin, cos - sin * tan]] (determinant 1), over the zoom.
        a, b = (cos - sin * tan) / zoom, (cos * tan + sin) / zoom
        d, e = -sin / zoom, cos / zoom
        x, y = width / 2, height / 2
        from_x, from_y = x + right * width, y + down * height
        matrix = (a, b, x - a * from_x - b * from_y, d, e, y - d * from_x - e * from_y)
        colour = fill if channels == 1 else (fill,) * channels
        turned = to_pillow(image).transform(
            (width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=colour
        )
        return from_pillow(turned)

    return apply


def pad_and_crop(padding: int = 4, fill: int = 0) -> Transform:
    """A crop of the image's own size after `padding` pixels on each side.

    torchvision's `RandomCrop(size, padding=padding)`; He et al. 2015, section 4.2.
    """
    check(isinstance(padding, int) and padding >= 0, f"padding is {padding!r}, must be whole pixels")
    check_fill(fill)

    def apply(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        down, right = rng.integers(-padding, padding + 1, size=2).tolist()
        return moved(image, down, right, fill)

    return apply
