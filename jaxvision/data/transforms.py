"""Per-sample transforms. A factory returns `f(image uint8[H, W, C], rng) -> uint8[H', W', C]`.

Names, ranges and rounding are torchvision's, and each docstring says where it departs from them. Adding one:
a factory here and its name in `__all__`. The random draws of a transform are all that it takes from `rng`.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from jaxvision.data.contract import InputContract
from jaxvision.errors import UserError, nearest

__all__ = ["affine", "center_crop", "flip", "pad_and_crop", "random_resized_crop", "resize", "shift"]

Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


# --------------------------------------------------------------------------- the transforms


def resize(size: int, filter: str = "bilinear") -> Transform:
    """The shorter side to `size` pixels, the longer in proportion (torchvision's `Resize(int)`).

    Antialiased: Pillow's filters widen with the reduction.
    """
    resample = _filter(filter)
    _check_size(size)
    return lambda image, rng: _resized(image, *_shorter_side_to(image, size), resample)


def center_crop(size: int) -> Transform:
    """The middle `size` x `size` pixels (torchvision's `CenterCrop`, but small images raise, unpadded)."""
    _check_size(size)
    return lambda image, rng: _center(image, size)


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
    resample = _filter(filter)
    _check_size(size)
    _check(0 < scale[0] <= scale[1], f"scale is {scale}, must be (low, high) with 0 < low <= high")
    _check(0 < ratio[0] <= ratio[1], f"ratio is {ratio}, must be (low, high) with 0 < low <= high")

    def apply(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        top, left, height, width = crop_box(image.shape[0], image.shape[1], scale, ratio, rng)
        # Cut before resizing: Pillow's `box` argument lets the filter see the pixels around the box.
        return _resized(image[top : top + height, left : left + width], size, size, resample)

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
    _check(0 <= share <= 1, f"share is {share}, must be between 0 and 1")
    _check_fill(fill)

    def apply(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        down = round(rng.uniform(-share, share) * image.shape[0])
        right = round(rng.uniform(-share, share) * image.shape[1])
        return _moved(image, down, right, fill)

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
    _check(0 <= share <= 1, f"share is {share}, must be between 0 and 1")
    _check_fill(fill)
    _check(0 < scale[0] <= scale[1], f"scale is {scale}, must be (low, high) with 0 < low <= high")
    _check(0 <= shear < 90, f"shear is {shear}, must be at least 0 and below 90 degrees")
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
        moved = _image(image).transform(
            (width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=colour
        )
        return _array(moved)

    return apply


def pad_and_crop(padding: int = 4, fill: int = 0) -> Transform:
    """A crop of the image's own size after `padding` pixels on each side.

    torchvision's `RandomCrop(size, padding=padding)`; He et al. 2015, section 4.2.
    """
    _check(isinstance(padding, int) and padding >= 0, f"padding is {padding!r}, must be whole pixels")
    _check_fill(fill)

    def apply(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        down, right = rng.integers(-padding, padding + 1, size=2).tolist()
        return _moved(image, down, right, fill)

    return apply


# --------------------------------------------------------------------------- evaluation, and from a config


def preprocess(contract: InputContract) -> Callable[[np.ndarray], np.ndarray]:
    """The evaluation pixels of a contract: `f(image uint8[H, W, C]) -> uint8[size, size, C]`.

    The shorter side to `contract.resize`, then the centre `contract.size` (torchvision's `Resize` and
    `CenterCrop`, with their rounding), and nothing else.
    """
    resample = FILTERS[contract.filter]

    def apply(image: np.ndarray) -> np.ndarray:
        return _center(_resized(image, *_shorter_side_to(image, contract.resize), resample), contract.size)

    return apply


def build(specs: Sequence[tuple[str, Any]], contract: InputContract) -> list[Transform]:
    """The transforms that `(("flip", {}), ("shift", {"share": 0.1}), ...)` names, in this order.

    A factory's `size` is `contract.size` unless it is given.

    Raises:
      UserError: unknown transform or argument, with the nearest name; a missing argument; a bad value.
    """
    transforms = []
    for spec in specs:
        pair = isinstance(spec, tuple | list) and len(spec) == 2
        if not pair or not isinstance(spec[0], str) or not hasattr(spec[1], "keys"):
            raise UserError(f'a transform is a pair like ("shift", {{"share": 0.1}}); got {spec!r}')
        name, arguments = spec[0], dict(spec[1])
        if name not in __all__:
            raise UserError(f'unknown transform "{name}": {nearest(name, __all__)}')
        factory = getattr(sys.modules[__name__], name)
        known = list(inspect.signature(factory).parameters)
        for argument in arguments:
            if argument not in known:
                raise UserError(f'unknown argument "{argument}" of transform "{name}": {nearest(argument, known)}')
        if "size" in known:
            arguments.setdefault("size", contract.size)
        try:
            transforms.append(factory(**arguments))
        except (UserError, TypeError, IndexError) as error:
            raise UserError(f'transform "{name}" with {arguments}: {error}') from None
    return transforms


# --------------------------------------------------------------------------- pieces


def _check(good: bool, message: str) -> None:
    if not good:
        raise UserError(message)


def _check_size(size: int) -> None:
    _check(isinstance(size, int) and size >= 1, f"size is {size!r}, must be a whole number of pixels")


def _check_fill(fill: int) -> None:
    _check(isinstance(fill, int) and 0 <= fill <= 255, f"fill is {fill!r}, must be a whole number in 0..255")


def _filter(name: str) -> Image.Resampling:
    if name not in FILTERS:
        raise UserError(f'unknown filter "{name}": {nearest(name, list(FILTERS))}')
    return FILTERS[name]


def _image(array: np.ndarray) -> Image.Image:
    """uint8 [H, W, 1 or 3] to Pillow; twice as fast as `Image.fromarray` on small images."""
    height, width, channels = array.shape
    mode = "RGB" if channels == 3 else "L"
    return Image.frombytes(mode, (width, height), array.tobytes())


def _array(image: Image.Image) -> np.ndarray:
    """Pillow to uint8 [H, W, 1 or 3], read-only."""
    return np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, -1)


def _shorter_side_to(image: np.ndarray, size: int) -> tuple[int, int]:
    """(height, width) with the shorter side `size`; the longer is rounded down, as torchvision does."""
    height, width = image.shape[:2]
    if height <= width:
        return size, int(size * width / height)
    return int(size * height / width), size


def _resized(image: np.ndarray, height: int, width: int, resample: Image.Resampling) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    return _array(_image(image).resize((width, height), resample))


def _center(image: np.ndarray, size: int) -> np.ndarray:
    height, width = image.shape[:2]
    if min(height, width) < size:
        raise UserError(
            f"center_crop: cannot cut {size} x {size} pixels out of an image of {width} x {height}: "
            'put ("resize", {}) before it'
        )
    top, left = round((height - size) / 2), round((width - size) / 2)  # halves to even, as torchvision
    return image[top : top + size, left : left + size]


def _moved(image: np.ndarray, down: int, right: int, fill: int) -> np.ndarray:
    if not down and not right:
        return image
    height, width = image.shape[:2]
    moved = np.full_like(image, fill)
    moved[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = image[
        max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)
    ]
    return moved
