"""Transforms that change the colours and leave every pixel where it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from jaxvision.config.ranges import Share, Strength, between
from jaxvision.data.transforms.pixels import Transform, check, check_fill, from_pillow, to_pillow


def color_jitter(
    brightness: Strength = 0.4,
    contrast: Strength = 0.4,
    saturation: Strength = 0.4,
    hue: Annotated[float, between(0, 0.5)] = 0.0,
    p: Share = 1.0,
) -> Transform:
    """Brightness, contrast, saturation and hue changed by random factors, in a random order.

    torchvision's `ColorJitter` on Pillow images: factors are uniform in [max(0, 1 - x), 1 + x], hue turns by up to
    +-`hue` of the colour circle. `p` is the `RandomApply` around it, 0.8 in SimCLR (Chen et al. 2020). A grey
    image has no saturation and no hue to change.
    """
    for name, x in (("brightness", brightness), ("contrast", contrast), ("saturation", saturation)):
        check(x >= 0, f"{name} is {x}, must be at least 0")
    check(0 <= hue <= 0.5, f"hue is {hue}, must be between 0 and 0.5")
    check_p(p)
    ranges = [(max(0.0, 1 - x), 1 + x) for x in (brightness, contrast, saturation)] + [(-hue, hue)]

    def apply(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if rng.random() >= p:
            return image
        order, draws = rng.permutation(len(JITTERS)).tolist(), rng.random(len(JITTERS)).tolist()
        picture, names = to_pillow(image), list(JITTERS)
        for k in order:
            low, high = ranges[k]
            if low < high:
                picture = JITTERS[names[k]](picture, low + (high - low) * draws[k])
        return from_pillow(picture)

    return apply


def grayscale(p: Share = 0.1) -> Transform:
    """All channels to luma (ITU-R 601) with chance `p` (torchvision's `RandomGrayscale`); SimCLR uses 0.2."""
    return sometimes(p, lambda image: image.convert("L").convert(image.mode))


def blur(p: Share = 0.5, sigma: tuple[Strength, Strength] = (0.1, 2.0)) -> Transform:
    """Gaussian blur with chance `p`; its standard deviation is uniform in `sigma`, in pixels.

    As MoCo v2, DINO and others do it: Pillow's `GaussianBlur`, three box blurs that come close to a Gaussian.
    torchvision's `GaussianBlur` has a true one, cut off at its `kernel_size`. SimCLR, Chen et al. 2020.
    """
    low, high = sigma
    check(0 <= low <= high, f"sigma is {sigma}, must be (low, high) with 0 <= low <= high")
    check_p(p)

    def apply(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if rng.random() >= p:
            return image
        return from_pillow(to_pillow(image).filter(ImageFilter.GaussianBlur(rng.uniform(low, high))))

    return apply


def solarize(p: Share = 0.2, threshold: Annotated[float, between(0, 256)] = 128) -> Transform:
    """Levels from `threshold` on inverted with chance `p`.

    torchvision's `RandomSolarize`, whose `p` is 0.5; 0.2 is from BYOL and DINO.
    """
    check(0 <= threshold <= 256, f"threshold is {threshold}, must be between 0 and 256")
    return sometimes(p, lambda image: solarized(image, threshold))


def posterize(p: Share = 0.5, bits: Annotated[int, between(1, 8)] = 4) -> Transform:
    """Only the upper `bits` bits of each level kept, with chance `p`.

    torchvision's `RandomPosterize`, which has no default for `bits`.
    """
    check(isinstance(bits, int) and 1 <= bits <= 8, f"bits is {bits!r}, must be a whole number in 1..8")
    return sometimes(p, lambda image: posterized(image, bits))


def equalize(p: Share = 0.5) -> Transform:
    """The histogram of each channel made flat with chance `p` (torchvision's `RandomEqualize`)."""
    return sometimes(p, ImageOps.equalize)


def autocontrast(p: Share = 0.5) -> Transform:
    """Each channel stretched to 0..255 with chance `p` (torchvision's `RandomAutocontrast`)."""
    return sometimes(p, ImageOps.autocontrast)


def invert(p: Share = 0.5) -> Transform:
    """The negative with chance `p` (torchvision's `RandomInvert`)."""
    return sometimes(p, ImageOps.invert)


def sharpness(p: Share = 0.5, factor: Strength = 2.0) -> Transform:
    """Sharper (`factor` above 1) or softer (below 1) with chance `p`.

    torchvision's `RandomAdjustSharpness`, which has no default for the factor.
    """
    check(factor >= 0, f"factor is {factor}, must be at least 0")
    return sometimes(p, lambda image: sharpened(image, factor))


def sometimes(p: float, change: Callable[[Image.Image], Image.Image]) -> Transform:
    """`change` with chance `p`, else the image as it is."""
    check_p(p)
    return lambda image, rng: from_pillow(change(to_pillow(image))) if rng.random() < p else image


def check_p(p: float) -> None:
    check(0 <= p <= 1, f"p is {p}, must be between 0 and 1")


def check_colour(fill: int | Sequence[int]) -> None:
    good = isinstance(fill, int) or (isinstance(fill, list | tuple) and len(fill) == 3)
    check(good, f"fill is {fill!r}, must be a whole number in 0..255 or three of them")
    for level in (fill,) if isinstance(fill, int) else fill:
        check_fill(level)


def colour_of(fill: int | Sequence[int], channels: int) -> int | tuple[int, ...]:
    """`fill` as Pillow wants it: a tuple for 3 channels; for 1 channel a number, of three the luma."""
    if isinstance(fill, int):
        return fill if channels == 1 else (fill,) * channels
    if channels == 3:
        return tuple(fill)
    return (19595 * fill[0] + 38470 * fill[1] + 7471 * fill[2] + 32768) >> 16  # as Pillow's convert("L")


# Pillow images from here on: the pieces that the policies share.


def brightened(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(factor)


def contrasted(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(factor)


def saturated(image: Image.Image, factor: float) -> Image.Image:
    return image if image.mode == "L" else ImageEnhance.Color(image).enhance(factor)


def sharpened(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Sharpness(image).enhance(factor)


def hue_turned(image: Image.Image, turn: float) -> Image.Image:
    """Hue moved by `turn` of the circle, which Pillow's HSV divides in 256 steps (torchvision: `turn` * 255)."""
    if image.mode == "L":
        return image
    h, s, v = image.convert("HSV").split()
    step = int(turn * 255)
    turned = h.point([(level + step) % 256 for level in range(256)])
    return Image.merge("HSV", (turned, s, v)).convert("RGB")


def solarized(image: Image.Image, threshold: float) -> Image.Image:
    return ImageOps.solarize(image, math.ceil(threshold))


def posterized(image: Image.Image, bits: int) -> Image.Image:
    mask = 256 - (1 << (8 - bits))
    return by_level(image, lambda level: level & mask)  # newer Pillows' ImageOps.posterize refuses 0 bits


def by_level(image: Image.Image, level_to: Callable[[int], int]) -> Image.Image:
    return image.point([level_to(level) for level in range(256)] * len(image.getbands()))


JITTERS = {"brightness": brightened, "contrast": contrasted, "saturation": saturated, "hue": hue_turned}
