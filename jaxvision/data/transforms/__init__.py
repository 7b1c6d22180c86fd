"""Per-sample transforms. A factory returns `f(image uint8[H, W, C], rng) -> uint8[H', W', C]`.

Names, ranges and rounding are torchvision's (or timm's), and each docstring says where it departs from them. Adding
one: a factory in a file here and its name in `__all__`. The random draws of a transform are all that it takes from
`rng`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxvision.config.ranges import Side, Times, check_arguments
from jaxvision.data.contract import InputContract
from jaxvision.data.transforms.color import (
    autocontrast,
    blur,
    color_jitter,
    equalize,
    grayscale,
    invert,
    posterize,
    sharpness,
    solarize,
)  # fmt: skip
from jaxvision.data.transforms.erasing import erasing
from jaxvision.data.transforms.geometry import (
    affine,
    center_crop,
    flip,
    pad_and_crop,
    perspective,
    random_resized_crop,
    resize,
    rotation,
    shear,
    shift,
    vertical_flip,
    zoom,
)  # fmt: skip
from jaxvision.data.transforms.pixels import Transform, center, check, check_size, resized, shorter_side_to
from jaxvision.data.transforms.policies import (
    aug_mix,
    auto_augment,
    rand_augment,
    rand_augment_timm,
    trivial_augment,
)  # fmt: skip
from jaxvision.errors import UserError, nearest

__all__ = [
    "affine",
    "aug_mix",
    "auto_augment",
    "autocontrast",
    "blur",
    "center_crop",
    "color_jitter",
    "equalize",
    "erasing",
    "flip",
    "grayscale",
    "invert",
    "multi_view",
    "pad_and_crop",
    "perspective",
    "posterize",
    "rand_augment",
    "rand_augment_timm",
    "random_resized_crop",
    "resize",
    "rotation",
    "sharpness",
    "shear",
    "shift",
    "solarize",
    "trivial_augment",
    "vertical_flip",
    "zoom",
]


def preprocess(contract: InputContract) -> Callable[[np.ndarray], np.ndarray]:
    """The evaluation pixels of a contract: `f(image uint8[H, W, C]) -> uint8[size, size, C]`.

    The shorter side to `contract.resize`, then the centre `contract.size` (torchvision's `Resize` and
    `CenterCrop`, with their rounding), and nothing else.
    """

    def apply(image: np.ndarray) -> np.ndarray:
        return center(resized(image, *shorter_side_to(image, contract.resize), contract.filter), contract.size)

    return apply


def square(contract: InputContract) -> Callable[[np.ndarray], np.ndarray]:
    """`f(image uint8[H, W, C]) -> uint8[resize, resize, C]`, whose `preprocess` is that of the image itself.

    For what does its own resizing and cropping: this is resized already, and images of any size come as one.
    """

    def first(side: int) -> int:
        return round((side - contract.size) / 2)

    def apply(image: np.ndarray) -> np.ndarray:
        image = resized(image, *shorter_side_to(image, contract.resize), contract.filter)
        top, left = (first(side) - first(contract.resize) for side in image.shape[:2])
        return image[top : top + contract.resize, left : left + contract.resize]

    return apply


class Built:
    """A transform as a config names it. Pickles by name and arguments, so that a worker process can be given one."""

    def __init__(self, name: str, arguments: dict[str, Any]) -> None:
        self.name, self.arguments = name, arguments
        self._apply: Any = getattr(sys.modules[__name__], name)(**arguments)
        self.decodes = getattr(self._apply, "decodes", False)

    def __call__(self, image: Any, rng: np.random.Generator) -> Any:
        return self._apply(image, rng)

    def __reduce__(self) -> tuple[Any, ...]:
        return Built, (self.name, self.arguments)


def build(specs: Sequence[tuple[str, Any]], contract: InputContract) -> list[Built]:
    """The transforms that `(("flip", {}), ("shift", {"share": 0.1}), ...)` names, in this order.

    A factory's `size` is `contract.size` unless it is given.

    Raises:
      UserError: unknown transform or argument, with the nearest name; a missing argument; a bad value.
    """
    for place, spec in enumerate(specs):
        if spec[:1] == ("multi_view",) and place + 1 < len(specs):
            raise UserError(
                f'transform "multi_view" comes before {specs[place + 1]!r}: it makes several images of one, so it must '
                "be the last; what each view needs belongs into its views"
            )
    return _build(specs, contract.size)


def shapes(specs: Sequence[tuple[str, Any]], contract: InputContract) -> dict[str, tuple[int, ...]]:
    """What the transforms make of an image, by its name in the batch: {"image": (size, size, channels)}, or the views
    of a `multi_view` at the end."""
    one = (contract.size, contract.size, contract.channels)
    if not specs or specs[-1][0] != "multi_view":
        return {"image": one}
    bound = inspect.signature(multi_view).bind(**{"size": contract.size, **specs[-1][1]})
    bound.apply_defaults()
    given = bound.arguments
    made: dict[str, tuple[int, ...]] = {"image": (len(given["views"]), given["size"], given["size"], contract.channels)}
    if given["local_count"]:
        made["local"] = (given["local_count"], given["local_size"], given["local_size"], contract.channels)
    return made


def _build(specs: Sequence[tuple[str, Any]], size: int) -> list[Built]:
    transforms: list[Built] = []
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
            arguments.setdefault("size", size)
        check_arguments(factory, arguments, f'transform "{name}": ')
        try:
            transforms.append(Built(name, arguments))
        except (UserError, TypeError, ValueError, IndexError) as error:
            raise UserError(f'transform "{name}" with {arguments}: {error}') from None
    return transforms


ONE_VIEW: tuple[tuple[str, dict[str, Any]], ...] = (("random_resized_crop", {}), ("flip", {}))


def multi_view(
    size: Side,
    views: Sequence[Sequence[tuple[str, Any]]] = (ONE_VIEW, ONE_VIEW),
    local: Sequence[tuple[str, Any]] = (),
    local_count: Times = 0,
    local_size: Side = 96,
) -> Callable[[np.ndarray, np.random.Generator], dict[str, np.ndarray]]:
    """Several views of one image, for self-supervision; the last transform of all.

    `views`: a list of transforms for each view of `size` x `size`; they give batch["image"] uint8 [B, V, size, size,
    C]. `local`: one list for all `local_count` smaller views, which give batch["local"] uint8 [B, L, local_size,
    local_size, C] (multi-crop, Caron et al. 2020). All draw from one generator, one after the other.
    """
    check(len(views) >= 1, "views is empty: at least one is needed")
    nested = any(spec[:1] == ("multi_view",) for specs in (*views, local) for spec in specs)
    check(not nested, "a view cannot be a multi_view itself")
    check(bool(local) == (local_count > 0), "local and local_count go together: give both or neither")
    check_size(local_size)
    large = [_build(specs, size) for specs in views]
    small = [_build(local, local_size)] * local_count

    def view(transforms: Sequence[Transform], side: int, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        for transform in transforms:
            image = transform(image, rng)
        check(image.shape[:2] == (side, side), f"a view is {image.shape[1]} x {image.shape[0]}, not {side} x {side}")
        return image

    def apply(image: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        made = {"image": np.stack([view(transforms, size, image, rng) for transforms in large])}
        if small:
            made["local"] = np.stack([view(transforms, local_size, image, rng) for transforms in small])
        return made

    return apply
