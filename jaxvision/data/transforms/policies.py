"""Augmentation policies: one table of elementary operations, and the published ways to draw from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
from PIL import Image, ImageOps

from jaxvision.config.ranges import Count, CountOrNone, Depth, Fill, NotNegative, Positive, Share, Times, between
from jaxvision.data.transforms.color import (
    brightened,
    by_level,
    check_colour,
    check_p,
    colour_of,
    contrasted,
    posterized,
    saturated,
    sharpened,
    solarized,
)  # fmt: skip
from jaxvision.data.transforms.pixels import Geometry, Transform, check, from_pillow, scattering, to_pillow, turned_by
from jaxvision.data.warp import Move
from jaxvision.errors import UserError, nearest

Op = Callable[[Image.Image, float, Image.Resampling, Any], Image.Image]

# Pillow's six numbers of what shears and moves by a magnitude, from the result to the image.
BACK: dict[str, Callable[[float], tuple[float, ...]]] = {
    "shear_x": lambda m: (1, m, 0, 0, 1, 0),
    "shear_y": lambda m: (1, 0, 0, m, 1, 0),
    "translate_x": lambda m: (1, 0, -m, 0, 1, 0),
    "translate_y": lambda m: (1, 0, 0, 0, 1, -m),
}
# (image, magnitude, filter, colour from outside). The first coordinate of a pixel is x. Brightness, color, contrast
# and sharpness change by the factor 1 + magnitude; posterize keeps `magnitude` bits.
OPS: dict[str, Op] = {
    "identity": lambda image, m, resample, colour: image,
    "shear_x": lambda image, m, resample, colour: warped(image, BACK["shear_x"](m), resample, colour),
    "shear_y": lambda image, m, resample, colour: warped(image, BACK["shear_y"](m), resample, colour),
    "translate_x": lambda image, m, resample, colour: warped(image, BACK["translate_x"](m), resample, colour),
    "translate_y": lambda image, m, resample, colour: warped(image, BACK["translate_y"](m), resample, colour),
    "rotate": lambda image, m, resample, colour: image.rotate(m, resample, fillcolor=colour),
    "brightness": lambda image, m, resample, colour: brightened(image, 1 + m),
    "color": lambda image, m, resample, colour: saturated(image, 1 + m),
    "contrast": lambda image, m, resample, colour: contrasted(image, 1 + m),
    "sharpness": lambda image, m, resample, colour: sharpened(image, 1 + m),
    "posterize": lambda image, m, resample, colour: posterized(image, int(m)),
    "solarize": lambda image, m, resample, colour: solarized(image, m),
    "solarize_add": lambda image, m, resample, colour: by_level(
        image, lambda level: min(255, level + int(m)) if level < 128 else level
    ),
    "autocontrast": lambda image, m, resample, colour: ImageOps.autocontrast(image),
    "equalize": lambda image, m, resample, colour: ImageOps.equalize(image),
    "invert": lambda image, m, resample, colour: ImageOps.invert(image),
}


def warped(image: Image.Image, matrix: Sequence[float], resample: Image.Resampling, colour: Any) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=colour)


# A space names the operations that a policy draws from. Each has a law, (level in 0..1, height, width) to magnitude,
# and whether the magnitude's sign is then drawn.
Law = Callable[[float, int, int], float]
Space = dict[str, tuple[Law, bool]]


def space_of(
    shear: float, move: Callable[[int], float], turn: float, enhance: float, bits: int, lost: int, names: Sequence[str]
) -> Space:
    """A space in torchvision's form: `names` in their order, with these magnitudes at level 1.

    `move` gives pixels from a side; posterize keeps `bits` bits less up to `lost`.
    """
    laws: dict[str, tuple[Law, bool]] = {
        "shear_x": (lambda level, height, width: shear * level, True),
        "shear_y": (lambda level, height, width: shear * level, True),
        "translate_x": (lambda level, height, width: int(move(width) * level), True),
        "translate_y": (lambda level, height, width: int(move(height) * level), True),
        "rotate": (lambda level, height, width: turn * level, True),
        "posterize": (lambda level, height, width: bits - round(lost * level), False),
        "solarize": (lambda level, height, width: 255 - 255 * level, False),
    }
    laws |= {name: (lambda level, height, width: enhance * level, True) for name in ENHANCED}
    return {name: laws.get(name, (lambda level, height, width: 0.0, False)) for name in names}


ENHANCED = ("brightness", "color", "contrast", "sharpness")
MOVED = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
LEVELLED = ("posterize", "solarize", "autocontrast", "equalize")

RAND = space_of(0.3, lambda side: 150 / 331 * side, 30, 0.9, 8, 4, ("identity", *MOVED, *ENHANCED, *LEVELLED))
AUTO = space_of(0.3, lambda side: 150 / 331 * side, 30, 0.9, 8, 4, (*MOVED, *ENHANCED, *LEVELLED, "invert"))
TRIVIAL = space_of(0.99, lambda side: 32, 135, 0.99, 8, 6, ("identity", *MOVED, *ENHANCED, *LEVELLED))
AUGMIX = space_of(0.3, lambda side: side / 3, 30, 0.9, 4, 4, (*MOVED, *LEVELLED, *ENHANCED))


def timm_space(increasing: bool) -> Space:
    """timm's `_RAND_INCREASING_TRANSFORMS`, or `_RAND_TRANSFORMS`, whose effects partly fall with the level."""
    laws: Space = {
        "autocontrast": (lambda level, height, width: 0.0, False),
        "equalize": (lambda level, height, width: 0.0, False),
        "invert": (lambda level, height, width: 0.0, False),
        "rotate": (lambda level, height, width: 30 * level, True),
        "posterize": (lambda level, height, width: int(level * 4), False),
        "solarize": (lambda level, height, width: int(level * 256), False),
        "solarize_add": (lambda level, height, width: int(level * 110), False),
        **{name: (lambda level, height, width: 1.8 * level - 0.9, False) for name in ENHANCED},
        "shear_x": (lambda level, height, width: 0.3 * level, True),
        "shear_y": (lambda level, height, width: 0.3 * level, True),
        "translate_x": (lambda level, height, width: 0.45 * level * width, True),
        "translate_y": (lambda level, height, width: 0.45 * level * height, True),
    }
    if increasing:
        laws["posterize"] = (lambda level, height, width: 4 - int(level * 4), False)
        laws["solarize"] = (lambda level, height, width: 256 - int(level * 256), False)
        laws |= {name: (lambda level, height, width: 0.9 * level, True) for name in ENHANCED}
    return laws


def changed(
    image: Image.Image,
    space: Space,
    name: str,
    level: float,
    rng: np.random.Generator,
    resample: Image.Resampling,
    colour: Any,
    moves: list[Move],
) -> Image.Image:
    """One operation of a space at a level; a sign is drawn if the space wants one. `moves` gets what moves pixels."""
    law, signed = space[name]
    magnitude = law(level, image.height, image.width)
    if signed and rng.random() < 0.5:
        magnitude = -magnitude
    if name == "rotate":
        moves.append(turned_by(magnitude, image.height, image.width))
    elif name in BACK:
        moves.append(Move(BACK[name](magnitude), back=True))
    return OPS[name](image, magnitude, resample, colour)


def rand_augment(ops: Times = 2, magnitude: CountOrNone = 9, bins: Count = 31, fill: Fill = 0) -> Transform:
    """`ops` operations of 14, one after the other, all at one `magnitude` out of 0..bins - 1.

    torchvision's `RandAugment`, its operations and ranges, nearest pixels; what comes in from outside is `fill`. Of a
    grey image three numbers in `fill` give the luma, and color does nothing. Cubuk et al. 2019.
    """
    check(isinstance(ops, int) and ops >= 0, f"ops is {ops!r}, must be a whole number, at least 0")
    check_bins(bins)
    check(isinstance(magnitude, int) and 0 <= magnitude < bins, f"magnitude is {magnitude!r}, must be in 0..{bins - 1}")
    check_colour(fill)
    names, level = list(RAND), magnitude / (bins - 1)

    def step(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, list[Move]]:
        moves: list[Move] = []
        picture, colour = to_pillow(image), colour_of(fill, image.shape[2])
        for k in rng.integers(len(names), size=ops).tolist():
            picture = changed(picture, RAND, names[k], level, rng, Image.Resampling.NEAREST, colour, moves)
        return from_pillow(picture), moves

    return Geometry(step)


def trivial_augment(bins: Count = 31, fill: Fill = 0) -> Transform:
    """One operation of 14 at a random magnitude: torchvision's `TrivialAugmentWide`, nearest pixels.

    As there, moves are by up to 32 pixels whatever the size of the image; level 15 of 31 moves 16, where torchvision's
    float32 makes it 15. Müller and Hutter 2021.
    """
    check_bins(bins)
    check_colour(fill)
    names = list(TRIVIAL)

    def step(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, list[Move]]:
        moves: list[Move] = []
        name, level = names[int(rng.integers(len(names)))], int(rng.integers(bins)) / (bins - 1)
        colour = colour_of(fill, image.shape[2])
        picture = changed(to_pillow(image), TRIVIAL, name, level, rng, Image.Resampling.NEAREST, colour, moves)
        return from_pillow(picture), moves

    return Geometry(step)


def auto_augment(policy: str = "imagenet", fill: Fill = 0) -> Transform:
    """One of 25 pairs of operations that were searched for on "imagenet", "cifar10" or "svhn".

    torchvision's `AutoAugment`, its tables and ranges, nearest pixels. Cubuk et al. 2018.
    """
    if policy not in POLICIES:
        raise UserError(f'unknown policy "{policy}": {nearest(policy, list(POLICIES))}')
    check_colour(fill)
    pairs = POLICIES[policy]

    def step(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, list[Move]]:
        moves: list[Move] = []
        picture, colour = to_pillow(image), colour_of(fill, image.shape[2])
        for name, p, level in pairs[int(rng.integers(len(pairs)))]:
            if rng.random() < p:
                picture = changed(picture, AUTO, name, level / 9, rng, Image.Resampling.NEAREST, colour, moves)
        return from_pillow(picture), moves

    return Geometry(step)


def aug_mix(
    severity: Annotated[int, between(1, 10)] = 3,
    width: Depth = 3,
    depth: Annotated[int, between(-1, 1000)] = -1,
    alpha: Positive = 1.0,
    fill: Fill = 0,
) -> Transform:
    """The image mixed with `width` chains of operations on it; `depth` -1 means one to three in each.

    torchvision's `AugMix` with all 13 operations, bilinear, and its mixing in float32 rounded down; but the operations
    are Pillow's for every image, where torchvision takes those of its tensors. The loss that compares three versions of
    an image (Jensen-Shannon) is not here. Hendrycks et al. 2019.
    """
    check(isinstance(severity, int) and 1 <= severity <= 10, f"severity is {severity!r}, must be in 1..10")
    check(isinstance(width, int) and width >= 1, f"width is {width!r}, must be a whole number, at least 1")
    check(isinstance(depth, int), f"depth is {depth!r}, must be a whole number")
    check(alpha > 0, f"alpha is {alpha}, must be above 0")
    check_colour(fill)
    names = list(AUGMIX)

    def apply(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        original, colour = to_pillow(image), colour_of(fill, image.shape[2])
        kept, augmented = rng.dirichlet((alpha, alpha))
        mix = np.float32(kept) * image
        for weight in augmented * rng.dirichlet([alpha] * width):
            picture = original
            for _ in range(depth if depth > 0 else int(rng.integers(1, 4))):
                name, level = names[int(rng.integers(len(names)))], int(rng.integers(severity)) / 9
                picture = changed(picture, AUGMIX, name, level, rng, Image.Resampling.BILINEAR, colour, [])
            mix += np.float32(weight) * from_pillow(picture)
        return mix.astype(np.uint8)

    return scattering(apply)


def rand_augment_timm(
    magnitude: Annotated[float, between(0, 10)] = 9,
    std: NotNegative = 0.5,
    ops: Times = 2,
    increasing: bool = True,
    p: Share = 0.5,
    fill: Fill = (124, 116, 104),
) -> Transform:
    """`ops` operations of 15, each done with chance `p` at a magnitude from N(`magnitude`, `std`) within 0..10.

    timm's `rand-m9-mstd0.5-inc1`: its operations and ranges, bilinear or bicubic at random, outside ImageNet's mean
    colour. A `std` above 100 means uniform between 0 and `magnitude`. Of a grey image three numbers in `fill` give the
    luma, where timm fails.
    """
    check(0 <= magnitude <= 10, f"magnitude is {magnitude}, must be between 0 and 10")
    check(std >= 0, f"std is {std}, must be at least 0")
    check(isinstance(ops, int) and ops >= 0, f"ops is {ops!r}, must be a whole number, at least 0")
    check_p(p)
    check_colour(fill)
    space = timm_space(increasing)
    names = list(space)

    def step(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, list[Move]]:
        moves: list[Move] = []
        picture, colour = to_pillow(image), colour_of(fill, image.shape[2])
        for k in rng.integers(len(names), size=ops).tolist():
            if rng.random() >= p:
                continue
            level = rng.uniform(0, magnitude) if std > 100 else min(max(rng.normal(magnitude, std), 0.0), 10.0)
            resample = Image.Resampling.BILINEAR if rng.random() < 0.5 else Image.Resampling.BICUBIC
            picture = changed(picture, space, names[k], level / 10, rng, resample, colour, moves)
        return from_pillow(picture), moves

    return Geometry(step)


def check_bins(bins: int) -> None:
    check(isinstance(bins, int) and bins >= 2, f"bins is {bins!r}, must be a whole number, at least 2")


# Pairs of (operation, chance, level in 0..9), as torchvision has them; the paper's appendix A. Operations without a
# magnitude have level 0.
Step = tuple[str, float, int]
POLICIES: dict[str, tuple[tuple[Step, Step], ...]] = {
    "imagenet": (
        (("posterize", 0.4, 8), ("rotate", 0.6, 9)),
        (("solarize", 0.6, 5), ("autocontrast", 0.6, 0)),
        (("equalize", 0.8, 0), ("equalize", 0.6, 0)),
        (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
        (("equalize", 0.4, 0), ("solarize", 0.2, 4)),
        (("equalize", 0.4, 0), ("rotate", 0.8, 8)),
        (("solarize", 0.6, 3), ("equalize", 0.6, 0)),
        (("posterize", 0.8, 5), ("equalize", 1.0, 0)),
        (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
        (("equalize", 0.6, 0), ("posterize", 0.4, 6)),
        (("rotate", 0.8, 8), ("color", 0.4, 0)),
        (("rotate", 0.4, 9), ("equalize", 0.6, 0)),
        (("equalize", 0.0, 0), ("equalize", 0.8, 0)),
        (("invert", 0.6, 0), ("equalize", 1.0, 0)),
        (("color", 0.6, 4), ("contrast", 1.0, 8)),
        (("rotate", 0.8, 8), ("color", 1.0, 2)),
        (("color", 0.8, 8), ("solarize", 0.8, 7)),
        (("sharpness", 0.4, 7), ("invert", 0.6, 0)),
        (("shear_x", 0.6, 5), ("equalize", 1.0, 0)),
        (("color", 0.4, 0), ("equalize", 0.6, 0)),
        (("equalize", 0.4, 0), ("solarize", 0.2, 4)),
        (("solarize", 0.6, 5), ("autocontrast", 0.6, 0)),
        (("invert", 0.6, 0), ("equalize", 1.0, 0)),
        (("color", 0.6, 4), ("contrast", 1.0, 8)),
        (("equalize", 0.8, 0), ("equalize", 0.6, 0)),
    ),
    "cifar10": (
        (("invert", 0.1, 0), ("contrast", 0.2, 6)),
        (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
        (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
        (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
        (("autocontrast", 0.5, 0), ("equalize", 0.9, 0)),
        (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
        (("color", 0.4, 3), ("brightness", 0.6, 7)),
        (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
        (("equalize", 0.6, 0), ("equalize", 0.5, 0)),
        (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
        (("color", 0.7, 7), ("translate_x", 0.5, 8)),
        (("equalize", 0.3, 0), ("autocontrast", 0.4, 0)),
        (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
        (("brightness", 0.9, 6), ("color", 0.2, 8)),
        (("solarize", 0.5, 2), ("invert", 0.0, 0)),
        (("equalize", 0.2, 0), ("autocontrast", 0.6, 0)),
        (("equalize", 0.2, 0), ("equalize", 0.6, 0)),
        (("color", 0.9, 9), ("equalize", 0.6, 0)),
        (("autocontrast", 0.8, 0), ("solarize", 0.2, 8)),
        (("brightness", 0.1, 3), ("color", 0.7, 0)),
        (("solarize", 0.4, 5), ("autocontrast", 0.9, 0)),
        (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
        (("autocontrast", 0.9, 0), ("solarize", 0.8, 3)),
        (("equalize", 0.8, 0), ("invert", 0.1, 0)),
        (("translate_y", 0.7, 9), ("autocontrast", 0.9, 0)),
    ),
    "svhn": (
        (("shear_x", 0.9, 4), ("invert", 0.2, 0)),
        (("shear_y", 0.9, 8), ("invert", 0.7, 0)),
        (("equalize", 0.6, 0), ("solarize", 0.6, 6)),
        (("invert", 0.9, 0), ("equalize", 0.6, 0)),
        (("equalize", 0.6, 0), ("rotate", 0.9, 3)),
        (("shear_x", 0.9, 4), ("autocontrast", 0.8, 0)),
        (("shear_y", 0.9, 8), ("invert", 0.4, 0)),
        (("shear_y", 0.9, 5), ("solarize", 0.2, 6)),
        (("invert", 0.9, 0), ("autocontrast", 0.8, 0)),
        (("equalize", 0.6, 0), ("rotate", 0.9, 3)),
        (("shear_x", 0.9, 4), ("solarize", 0.3, 3)),
        (("shear_y", 0.8, 8), ("invert", 0.7, 0)),
        (("equalize", 0.9, 0), ("translate_y", 0.6, 6)),
        (("invert", 0.9, 0), ("equalize", 0.6, 0)),
        (("contrast", 0.3, 3), ("rotate", 0.8, 4)),
        (("invert", 0.8, 0), ("translate_y", 0.0, 2)),
        (("shear_y", 0.7, 6), ("solarize", 0.4, 8)),
        (("invert", 0.6, 0), ("rotate", 0.8, 4)),
        (("shear_y", 0.3, 7), ("translate_x", 0.9, 3)),
        (("shear_x", 0.1, 6), ("invert", 0.6, 0)),
        (("solarize", 0.7, 2), ("translate_y", 0.6, 7)),
        (("shear_y", 0.8, 4), ("invert", 0.8, 0)),
        (("shear_x", 0.7, 9), ("translate_y", 0.8, 3)),
        (("shear_y", 0.8, 5), ("autocontrast", 0.7, 0)),
        (("shear_x", 0.7, 2), ("invert", 0.1, 0)),
    ),
}
