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

from jaxvision.data.contract import InputContract
from jaxvision.data.transforms.geometry import (
    affine,
    center_crop,
    flip,
    pad_and_crop,
    random_resized_crop,
    resize,
    shift,
)  # fmt: skip
from jaxvision.data.transforms.pixels import FILTERS, Transform, center, resized, shorter_side_to
from jaxvision.errors import UserError, nearest

__all__ = ["affine", "center_crop", "flip", "pad_and_crop", "random_resized_crop", "resize", "shift"]


def preprocess(contract: InputContract) -> Callable[[np.ndarray], np.ndarray]:
    """The evaluation pixels of a contract: `f(image uint8[H, W, C]) -> uint8[size, size, C]`.

    The shorter side to `contract.resize`, then the centre `contract.size` (torchvision's `Resize` and
    `CenterCrop`, with their rounding), and nothing else.
    """
    resample = FILTERS[contract.filter]

    def apply(image: np.ndarray) -> np.ndarray:
        return center(resized(image, *shorter_side_to(image, contract.resize), resample), contract.size)

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
