"""Pieces that several transforms share: checks of arguments, Pillow and back, resizing, cutting, moving."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from jaxvision.errors import UserError, nearest

Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def check(good: bool, message: str) -> None:
    if not good:
        raise UserError(message)


def check_size(size: int) -> None:
    check(isinstance(size, int) and size >= 1, f"size is {size!r}, must be a whole number of pixels")


def check_fill(fill: int) -> None:
    check(isinstance(fill, int) and 0 <= fill <= 255, f"fill is {fill!r}, must be a whole number in 0..255")


def filter_of(name: str) -> Image.Resampling:
    if name not in FILTERS:
        raise UserError(f'unknown filter "{name}": {nearest(name, list(FILTERS))}')
    return FILTERS[name]


def to_pillow(array: np.ndarray) -> Image.Image:
    """uint8 [H, W, 1 or 3] to Pillow; twice as fast as `Image.fromarray` on small images."""
    height, width, channels = array.shape
    mode = "RGB" if channels == 3 else "L"
    return Image.frombytes(mode, (width, height), array.tobytes())


def from_pillow(image: Image.Image) -> np.ndarray:
    """Pillow to uint8 [H, W, 1 or 3], read-only."""
    return np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, -1)


def shorter_side_to(image: np.ndarray, size: int) -> tuple[int, int]:
    """(height, width) with the shorter side `size`; the longer is rounded down, as torchvision does."""
    height, width = image.shape[:2]
    if height <= width:
        return size, int(size * width / height)
    return int(size * height / width), size


def resized(image: np.ndarray, height: int, width: int, resample: Image.Resampling) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    return from_pillow(to_pillow(image).resize((width, height), resample))


def center(image: np.ndarray, size: int) -> np.ndarray:
    height, width = image.shape[:2]
    if min(height, width) < size:
        raise UserError(
            f"center_crop: cannot cut {size} x {size} pixels out of an image of {width} x {height}: "
            'put ("resize", {}) before it'
        )
    top, left = round((height - size) / 2), round((width - size) / 2)  # halves to even, as torchvision
    return image[top : top + size, left : left + size]


def moved(image: np.ndarray, down: int, right: int, fill: int) -> np.ndarray:
    if not down and not right:
        return image
    height, width = image.shape[:2]
    result = np.full_like(image, fill)
    result[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = image[
        max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)
    ]
    return result
