"""Per-sample transforms. A factory returns `f(image uint8[H, W, C], rng) -> uint8[H', W', C]`.

Names, ranges and rounding are torchvision's (or timm's), and each docstring says where it departs from them. Adding
one: a factory in a file here and its name in `__all__`. The random draws of a transform are all that it takes from
`rng`.

A transform that moves pixels is a `pixels.Geometry`, which also says where they went, so that boxes, points and maps
follow. A transform over several samples is a function (sample, rng, partners) -> sample, of whole samples, with an
attribute `partners`: how many others it takes.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxvision.config.ranges import Canvas, Times, check_arguments
from jaxvision.data.contract import InputContract
from jaxvision.data.sample import Field, stepped
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
from jaxvision.data.transforms.evaluation import preprocess, square, warp  # noqa: F401  of a contract, not of a config
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
from jaxvision.data.transforms.pixels import Transform, check, check_size, sides_of
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


# What a transform may say of itself. step, decodes: see `Geometry`; scatters: see `scattering`; partners: how many
# other samples it takes; makes: of what makes several images of one, (name in the batch, images, (height, width)) of
# each kind.
ATTRIBUTES = ("step", "decodes", "scatters", "partners", "makes")


class Built:
    """A transform as a config names it. Pickles by name and arguments, so that a worker process can be given one."""

    def __init__(self, name: str, arguments: dict[str, Any]) -> None:
        self.name, self.arguments = name, arguments
        self._apply: Any = getattr(sys.modules[__name__], name)(**arguments)
        for attribute in ATTRIBUTES:
            if hasattr(self._apply, attribute):
                setattr(self, attribute, getattr(self._apply, attribute))

    def __call__(self, *arguments: Any) -> Any:
        return self._apply(*arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return Built, (self.name, self.arguments)


def build(specs: Sequence[tuple[str, Any]], contract: InputContract) -> list[Built]:
    """The transforms that `(("flip", {}), ("shift", {"share": 0.1}), ...)` names, in this order.

    A factory's `size` is `contract.size` unless it is given.

    Raises:
      UserError: unknown transform or argument, with the nearest name; a missing argument; a bad value.
    """
    built = _build(specs, contract.size)
    for place, transform in enumerate(built[:-1]):
        if hasattr(transform, "makes"):
            raise UserError(
                f'transform "{transform.name}" comes before {specs[place + 1]!r}: it makes several images of one, so '
                "it must be the last; what each view needs belongs into its views"
            )
    return built


def shapes(specs: Sequence[tuple[str, Any]], contract: InputContract) -> dict[str, tuple[int, ...]]:
    """What the transforms make of an image, by its name in the batch: {"image": (height, width, channels)}, or what
    the last one says that it `makes`."""
    last = build(specs, contract)[-1:]
    makes = getattr(last[0], "makes", None) if last else None
    if makes is None:
        return {"image": contract.shape}
    return {name: (count, *sides, contract.channels) for name, count, sides in makes}


def check_fields(transforms: Sequence[Any], fields: Sequence[Field]) -> None:
    """Raises UserError for a transform after which a field that follows the pixels would have no place."""
    moved = [field.name for field in fields if field.geometry != "none"]
    for transform in transforms if moved else ():
        if hasattr(transform, "makes") or getattr(transform, "scatters", False):
            does = "makes several images of one" if hasattr(transform, "makes") else "mixes images that moved apart"
            raise UserError(
                f'transform "{getattr(transform, "name", transform)}" {does}, so {", ".join(moved)} would have no '
                "place: remove it"
            )


def applied(
    transform: Any, sample: dict[str, Any], rng: np.random.Generator, partners: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """A sample after a transform.

    A sample that has a "warp" (data.warp.Warp) has it moved on, and maps and masks as well; boxes and points stay as
    the file has them until `sample.placed`.
    """
    if getattr(transform, "partners", 0):
        return transform(sample, rng, partners)
    if "warp" not in sample or not hasattr(transform, "step"):
        made = transform(sample["image"], rng)
        return {**sample, **(made if isinstance(made, dict) else {"image": made})}
    image, moves = transform.step(sample["image"], rng)
    for move in moves:
        sample = stepped(sample, move, image.shape[:2])
    return {**sample, "image": image}


def _build(specs: Sequence[tuple[str, Any]], size: int | Sequence[int]) -> list[Built]:
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
    size: Canvas,
    views: Sequence[Sequence[tuple[str, Any]]] = (ONE_VIEW, ONE_VIEW),
    local: Sequence[tuple[str, Any]] = (),
    local_count: Times = 0,
    local_size: Canvas = 96,
) -> Callable[[np.ndarray, np.random.Generator], dict[str, np.ndarray]]:
    """Several views of one image, for self-supervision; the last transform of all.

    `views`: a list of transforms for each view of `size` x `size`, or (height, width); they give batch["image"] uint8
    [B, V, size, size, C]. `local`: one list for all `local_count` smaller views, which give batch["local"] uint8 [B, L,
    local_size, local_size, C] (multi-crop, Caron et al. 2020). All draw from one generator, one after the other.
    """
    check(len(views) >= 1, "views is empty: at least one is needed")
    nested = any(spec[:1] == ("multi_view",) for specs in (*views, local) for spec in specs)
    check(not nested, "a view cannot be a multi_view itself")
    check(bool(local) == (local_count > 0), "local and local_count go together: give both or neither")
    check_size(local_size)
    sides, local_sides = sides_of(size), sides_of(local_size)
    large = [_build(specs, size) for specs in views]
    small = [_build(local, local_size)] * local_count

    def view(
        transforms: Sequence[Transform], sides: tuple[int, int], image: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        for transform in transforms:
            image = transform(image, rng)
        height, width = sides
        check(image.shape[:2] == sides, f"a view is {image.shape[1]} x {image.shape[0]}, not {width} x {height}")
        return image

    def apply(image: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        made = {"image": np.stack([view(transforms, sides, image, rng) for transforms in large])}
        if small:
            made["local"] = np.stack([view(transforms, local_sides, image, rng) for transforms in small])
        return made

    apply.makes = (("image", len(large), sides), *([("local", local_count, local_sides)] if small else []))  # type: ignore[attr-defined]
    return apply
