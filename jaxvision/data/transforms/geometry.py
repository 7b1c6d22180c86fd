"""Transforms that say which pixels: resizing, cutting, mirroring, moving."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from jaxvision.config.ranges import Angle, Canvas, Fill, Level, Positive, Share, Slant, Times
from jaxvision.data.decode import Encoded
from jaxvision.data.transforms.color import check_colour, check_p, colour_of
from jaxvision.data.transforms.pixels import (
    FILTERS,
    Geometry,
    Transform,
    center,
    center_corner,
    check,
    check_fill,
    check_filter,
    check_size,
    from_pillow,
    mirrored,
    moved,
    quickly_resized,
    shorter_side_to,
    sides_of,
    to_pillow,
    turned_by,
)  # fmt: skip
from jaxvision.data.warp import Move, scaled, shifted
from jaxvision.errors import nearest


def resize(size: Canvas, filter: str = "bilinear") -> Transform:
    """The shorter side to `size` pixels, the longer in proportion (torchvision's `Resize(int)`); or to (height, width).

    `filter`: "bilinear" and "bicubic" are antialiased (they widen with the reduction, as Pillow's), "linear" is not.
    """
    check_filter(filter)
    check_size(size)

    def step(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, list[Move]]:
        sides = shorter_side_to(image, size) if isinstance(size, int) else sides_of(size)
        return quickly_resized(image, *sides, filter), [scaled(image.shape, sides)]

    return Geometry(step)


def center_crop(size: Canvas) -> Transform:
    """The middle `size` x `size` pixels, or (height, width) (torchvision's `CenterCrop`, but small images raise)."""
    check_size(size)

    def step(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, list[Move]]:
        top, left = center_corner(image.shape[0], image.shape[1], size)
        return center(image, size), [shifted(-left, -top)]

    return Geometry(step)


def random_resized_crop(
    size: Canvas,
    scale: tuple[Positive, Positive] = (0.08, 1.0),
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3),
    filter: str = "bilinear",
) -> Transform:
    """A random box, resized to `size` x `size`, or (height, width) (torchvision's `RandomResizedCrop`, its law and its
    fallback).

    `scale` is the share of the image's area, uniform; `ratio` is width / height, uniform in its logarithm.
    After ten boxes that do not fit comes the largest centred one within `ratio`. Szegedy et al. 2015.
    `filter` as in `resize`. As the first transform it decodes only the box of a JPEG file; a box of at least twice
    `size` is decoded at half the scale (or a quarter, an eighth), see `Encoded.cut`.
    """
    check_filter(filter)
    check_size(size)
    check(0 < scale[0] <= scale[1], f"scale is {scale}, must be (low, high) with 0 < low <= high")
    check(0 < ratio[0] <= ratio[1], f"ratio is {ratio}, must be (low, high) with 0 < low <= high")
    sides = sides_of(size)

    def step(image: np.ndarray | Encoded, rng: np.random.Generator) -> tuple[np.ndarray, list[Move]]:
        top, left, height, width = crop_box(image.shape[0], image.shape[1], scale, ratio, rng)
        # Cut before resizing: a resizer's own box argument lets the filter see the pixels around the box.
        if isinstance(image, Encoded):
            part, (top, left, height, width) = image.cut(top, left, height, width, sides)
            done = part.copy() if part.shape[:2] == sides else quickly_resized(part, *sides, filter)
        else:
            done = quickly_resized(image[top : top + height, left : left + width], *sides, filter)
        x, y = sides[1] / width, sides[0] / height
        return done, [Move((x, 0.0, -left * x, 0.0, y, -top * y))]

    return Geometry(step, decodes=True)


def crop_box(
    height: int, width: int, scale: Sequence[float], ratio: Sequence[float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of `random_resized_crop`'s box in an image of height x width pixels."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        # One draw of four numbers, since each draw costs as much as the arithmetic.
        share, shape, down, right = rng.random(4).tolist()
        area = height * width * (scale[0] + share * (scale[1] - scale[0]))
        aspect = math.exp(low + shape * (high - low))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(down * (height - h + 1)), int(right * (width - w + 1)), h, w
    w, h = width, height
    if width / height < ratio[0]:
        h = min(height, max(1, round(width / ratio[0])))
    elif width / height > ratio[1]:
        w = min(width, max(1, round(height * ratio[1])))
    return (height - h) // 2, (width - w) // 2, h, w


def flip(p: Share = 0.5) -> Transform:
    """Left and right swapped with chance `p` (torchvision's `RandomHorizontalFlip`)."""
    check_p(p)

    def step(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, list[Move]]:
        if rng.random() >= p:
            return image, []
        return mirrored(image), [Move((-1.0, 0.0, image.shape[1], 0.0, 1.0, 0.0))]

    return Geometry(step)


def vertical_flip(p: Share = 0.5) -> Transform:
    """Top and bottom swapped with chance `p` (torchvision's `RandomVerticalFlip`)."""
    check_p(p)

    def step(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, list[Move]]:
        if rng.random() >= p:
            return image, []
        return image[::-1], [Move((1.0, 0.0, 0.0, 0.0, -1.0, image.shape[0]))]

    return Geometry(step)


def rotation(degrees: Angle = 15.0, filter: str = "bilinear", fill: Fill = 0) -> Transform:
    """Turned about the centre by up to +-`degrees`, uniform; the size stays, outside is `fill`.

    torchvision's `RandomRotation`, which has no default for `degrees` and takes the nearest pixel unless told
    otherwise.
    """
    check(degrees >= 0, f"degrees is {degrees}, must be at least 0")
    check_warp_filter(filter)
    check_colour(fill)

    def step(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, list[Move]]:
        angle, colour = rng.uniform(-degrees, degrees), colour_of(fill, image.shape[2])
        turned = to_pillow(image).rotate(angle, FILTERS[filter], fillcolor=colour)
        return from_pillow(turned), [turned_by(angle, *image.shape[:2])]

    return Geometry(step)


def zoom(low: Positive = 0.8, high: Positive = 1.2, fill: Level = 0) -> Transform:
    """Enlarged about the centre by a factor uniform in [`low`, `high`]; the size stays, outside is `fill`.

    `affine` with a scale only: torchvision's `RandomAffine(0, scale=(low, high))`.
    """
    return affine(scale=(low, high), fill=fill)


def shear(degrees: Slant = 10.0, fill: Level = 0) -> Transform:
    """Sheared horizontally by up to +-`degrees` about the centre; outside is `fill`.

    `affine` with a shear only: torchvision's `RandomAffine(0, shear=degrees)`.
    """
    return affine(shear=degrees, fill=fill)


def perspective(distortion: Share = 0.5, p: Share = 0.5, filter: str = "bilinear", fill: Fill = 0) -> Transform:
    """Seen from an angle with chance `p`; outside is `fill` (torchvision's `RandomPerspective`).

    Each corner moves inwards by up to `distortion` of half a side, in whole pixels. An image of one row or one column
    stays as it is.
    """
    check(0 <= distortion <= 1, f"distortion is {distortion}, must be between 0 and 1")
    check_p(p)
    check_warp_filter(filter)
    check_colour(fill)

    def step(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, list[Move]]:
        height, width, channels = image.shape
        if rng.random() >= p or min(height, width) < 2:
            return image, []
        down, right = int(distortion * (height // 2)), int(distortion * (width // 2))
        x, y = rng.integers(right + 1, size=4).tolist(), rng.integers(down + 1, size=4).tolist()
        x[1:3], y[2:] = (width - 1 - x[1], width - 1 - x[2]), (height - 1 - y[2], height - 1 - y[3])
        way = way_back(list(zip(x, y)), width, height)
        turned = to_pillow(image).transform(
            (width, height), Image.Transform.PERSPECTIVE, way, FILTERS[filter], fillcolor=colour_of(fill, channels)
        )
        return from_pillow(turned), [Move(tuple(way), back=True)]

    return Geometry(step)


def way_back(corners: Sequence[Sequence[int]], width: int, height: int) -> list[float]:
    """Pillow's eight numbers for a perspective that moves the image's corners, clockwise from top left, to these."""
    old = ((0, 0), (width - 1, 0), (width - 1, height - 1), (0, height - 1))
    rows = []
    for (x, y), (u, v) in zip(corners, old):
        rows += [(x, y, 1, 0, 0, 0, -u * x, -u * y), (0, 0, 0, x, y, 1, -v * x, -v * y)]
    # Least squares: at a distortion of 1 the corners may meet.
    return np.linalg.lstsq(np.array(rows, float), np.array(old, float).ravel(), rcond=None)[0].tolist()


def check_warp_filter(name: str) -> None:
    check(name in FILTERS, f'unknown filter "{name}": {nearest(name, list(FILTERS))}')


def shift(share: Share = 0.1, fill: Level = 0) -> Transform:
    """Moved by up to `share` of each side, in whole pixels; what comes in from outside is `fill`.

    The translation of torchvision's `RandomAffine(translate=(share, share))`. Pixels are moved, not
    interpolated, so on an image below 1 / (2 * share) pixels it does nothing: `affine` moves by fractions.
    """
    check(0 <= share <= 1, f"share is {share}, must be between 0 and 1")
    check_fill(fill)

    def step(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, list[Move]]:
        down = round(rng.uniform(-share, share) * image.shape[0])
        right = round(rng.uniform(-share, share) * image.shape[1])
        return moved(image, down, right, fill), [shifted(right, down)]

    return Geometry(step)


def affine(
    degrees: Angle = 0.0,
    share: Share = 0.0,
    scale: tuple[Positive, Positive] = (1.0, 1.0),
    shear: Slant = 0.0,
    fill: Level = 0,
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

    def step(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, list[Move]]:
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
        return from_pillow(turned), [Move(matrix, back=True)]

    return Geometry(step)


def pad_and_crop(padding: Times = 4, fill: Level = 0) -> Transform:
    """A crop of the image's own size after `padding` pixels on each side.

    torchvision's `RandomCrop(size, padding=padding)`; He et al. 2015, section 4.2.
    """
    check(isinstance(padding, int) and padding >= 0, f"padding is {padding!r}, must be whole pixels")
    check_fill(fill)

    def step(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, list[Move]]:
        down, right = rng.integers(-padding, padding + 1, size=2).tolist()
        return moved(image, down, right, fill), [shifted(right, down)]

    return Geometry(step)
