"""Pieces that several transforms share: checks of arguments, Pillow and back, resizing, cutting, moving."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image

from jaxvision.data.decode import MAX_PIXELS
from jaxvision.data.warp import Move
from jaxvision.errors import Unreadable, UserError, nearest

Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]


Step = Callable[[Any, np.random.Generator], tuple[np.ndarray, Sequence[Move]]]


class Geometry:
    """A transform that moves pixels: called, it gives the image alone; `step` also gives the moves, one by one.

    decodes: whether it also takes an image that is still `Encoded`; it must come first to get one.
    """

    def __init__(self, step: Step, decodes: bool = False) -> None:
        self.step, self.decodes = step, decodes

    def __call__(self, image: Any, rng: np.random.Generator) -> np.ndarray:
        return self.step(image, rng)[0]


def scattering(transform: Transform) -> Transform:
    """Marks a transform after which a pixel is a mixture of pixels from several places: no box can follow it."""
    transform.scatters = True  # type: ignore[attr-defined]
    return transform


# Both antialiased. "linear", of four pixels however far the image shrinks, is OpenCV's.
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def check(good: bool, message: str) -> None:
    if not good:
        raise UserError(message)


def check_size(size: int | Sequence[int]) -> None:
    good = all(isinstance(side, int) and side >= 1 for side in sides_of(size))
    check(good, f"size is {size!r}, must be a whole number of pixels, or two: (height, width)")


def sides_of(size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of a side, or of (height, width)."""
    height, width = size if isinstance(size, Sequence) else (size, size)
    return height, width


def check_fill(fill: int) -> None:
    check(isinstance(fill, int) and 0 <= fill <= 255, f"fill is {fill!r}, must be a whole number in 0..255")


def check_filter(name: str) -> None:
    known = (*FILTERS, "linear")
    check(name in known, f'unknown filter "{name}": {nearest(name, known)}')


def to_pillow(array: np.ndarray) -> Image.Image:
    """uint8 [H, W, 1 or 3] to Pillow; twice as fast as `Image.fromarray` on small images."""
    height, width, channels = array.shape
    mode = "RGB" if channels == 3 else "L"
    return Image.frombytes(mode, (width, height), array.data if array.flags.c_contiguous else array.tobytes())


def turned_by(angle: float, height: int, width: int) -> Move:
    """What Pillow's `rotate` by so many degrees, about the middle, does to coordinates."""
    sin, cos = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    x, y = width / 2, height / 2
    return Move((cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y))


def from_pillow(image: Image.Image) -> np.ndarray:
    """Pillow to uint8 [H, W, 1 or 3], read-only."""
    return np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, -1)


def shorter_side_to(image: np.ndarray, size: int) -> tuple[int, int]:
    """(height, width) with the shorter side `size`; the longer is rounded down, as torchvision does.

    Raises Unreadable for a line of pixels, which would become more than MAX_PIXELS.
    """
    height, width = image.shape[:2]
    sides = (size, int(size * width / height)) if height <= width else (int(size * height / width), size)
    check_line(image, sides)
    return sides


def check_line(image: np.ndarray, sides: tuple[int, int]) -> None:
    """Raises Unreadable for an image that would become more than MAX_PIXELS where it is resized to `sides`."""
    height, width = image.shape[:2]
    if sides[0] * sides[1] > max(MAX_PIXELS, height * width):
        raise Unreadable(
            f"{width} x {height} pixels are a line, {sides[1]} x {sides[0]} once the shorter side is {min(sides)}: cut "
            "it into images"
        )


def resized(image: np.ndarray, height: int, width: int, filter: str) -> np.ndarray:
    """The image resized by a filter of FILTERS, exactly as Pillow does it."""
    if image.shape[:2] == (height, width):
        return image
    return from_pillow(to_pillow(image).resize((width, height), FILTERS[filter]))


def linearly_resized(image: np.ndarray, height: int, width: int, interpolation: int) -> np.ndarray:
    """The image resized by OpenCV: of four pixels however far it shrinks, centres at halves.

    interpolation: cv2.INTER_LINEAR_EXACT gives the same pixels on every machine. cv2.INTER_LINEAR is the fastest; its
    weights are coarse: of photos, one pixel in nine is a level off, mostly darker.
    """
    if image.shape[:2] == (height, width):
        return image
    result = cv2.resize(image, (width, height), interpolation=interpolation)
    return result if result.ndim == 3 else result[:, :, None]


def quickly_resized(image: np.ndarray, height: int, width: int, filter: str) -> np.ndarray:
    """The image resized by a filter of FILTERS, within one level of Pillow's pixels, or by "linear".

    The SIMD code of fast_image_resize takes a quarter of Pillow's time. It has wheels for x86-64 only; elsewhere Pillow
    does it.
    """
    if image.shape[:2] == (height, width):
        return image
    if filter == "linear":
        return linearly_resized(image, height, width, cv2.INTER_LINEAR)
    resizer = _resizers.get(filter)
    return resizer(image, height, width) if resizer else resized(image, height, width, filter)


class _Resizers(threading.local):
    """A thread's resizers; None where the library is missing."""

    def __init__(self) -> None:
        self.known: dict[str, Callable[[np.ndarray, int, int], np.ndarray] | None] = {}

    def get(self, filter: str) -> Callable[[np.ndarray, int, int], np.ndarray] | None:
        if filter not in self.known:
            self.known[filter] = _resizer(filter)
        return self.known[filter]


_resizers = _Resizers()


def _resizer(filter: str) -> Callable[[np.ndarray, int, int], np.ndarray] | None:
    library = _library()
    if library is None:
        return None
    kernel = {"bilinear": library.FilterType.bilinear, "bicubic": library.FilterType.catmull_rom}[filter]
    options = library.ResizeOptions(resize_alg=library.ResizeAlg.convolution(kernel))
    resizer, pixel = library.Resizer(), {1: library.PixelType.U8, 3: library.PixelType.U8x3}

    def apply(image: np.ndarray, height: int, width: int) -> np.ndarray:
        channels = image.shape[2]
        source = library.ImageData(image.shape[1], image.shape[0], pixel[channels], image.tobytes())
        target = library.ImageData(width, height, pixel[channels])
        resizer.resize(source, target, options)
        return np.frombuffer(target.get_buffer(), np.uint8).reshape(height, width, channels)

    return apply


@functools.cache
def _library() -> Any:
    try:
        import cykooz_resizer
    except ImportError:
        return None
    return cykooz_resizer


def mirrored(image: np.ndarray) -> np.ndarray:
    """Left and right swapped; forty times faster than numpy's copy of `image[:, ::-1]`."""
    result = cv2.flip(image, 1)
    return result if result.ndim == 3 else result[:, :, None]


def center(image: np.ndarray, size: int | Sequence[int]) -> np.ndarray:
    """The middle `size` x `size` pixels, or (height, width). Raises UserError for an image with fewer."""
    top, left = center_corner(image.shape[0], image.shape[1], size)
    height, width = sides_of(size)
    return image[top : top + height, left : left + width]


def center_corner(height: int, width: int, size: int | Sequence[int]) -> tuple[int, int]:
    """(top, left) of the middle `size` x `size` pixels, or (height, width). UserError for an image with fewer."""
    down, right = sides_of(size)
    if height < down or width < right:
        raise UserError(
            f"center_crop: cannot cut {right} x {down} pixels out of an image of {width} x {height}: "
            'put ("resize", {}) before it'
        )
    return round((height - down) / 2), round((width - right) / 2)  # halves to even, as torchvision


def moved(image: np.ndarray, down: int, right: int, fill: int) -> np.ndarray:
    if not down and not right:
        return image
    height, width = image.shape[:2]
    result = np.full_like(image, fill)
    if abs(down) >= height or abs(right) >= width:
        return result
    result[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = image[
        max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)
    ]
    return result
