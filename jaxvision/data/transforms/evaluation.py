"""What an input contract makes of an image: the pixels, and where they lie."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from jaxvision.data.contract import InputContract
from jaxvision.data.transforms.pixels import center, center_corner, check_line, linearly_resized, resized
from jaxvision.data.warp import Warp, scaled, shifted


def preprocess(contract: InputContract) -> Callable[[np.ndarray], np.ndarray]:
    """The evaluation pixels of a contract: `f(image uint8[H, W, C]) -> uint8[height, width, C]`.

    Resized and put on the canvas as `contract.fit` says, and nothing else. "crop" is torchvision's `Resize` and
    `CenterCrop`, with their rounding. "shortest" has the sizes of torchvision's detectors, in whole numbers: where
    the product of their floats falls below a whole number, theirs are one pixel less.
    """

    def apply(image: np.ndarray) -> np.ndarray:
        image = fitted(image, contract)
        if contract.fit == "crop":
            return center(image, (contract.height, contract.width))
        if image.shape[:2] == (contract.height, contract.width):
            return image
        canvas = np.empty((contract.height, contract.width, image.shape[2]), image.dtype)
        canvas[:] = contract.fill
        canvas[: image.shape[0], : image.shape[1]] = image
        return canvas

    return apply


def fitted(image: np.ndarray, contract: InputContract) -> np.ndarray:
    """The image resized as `contract.fit` says, before it is cut or padded."""
    sides = contract.fitted(*image.shape[:2])
    if contract.fit == "crop":  # the others stay within the canvas
        check_line(image, sides)
    if contract.filter == "linear":
        return linearly_resized(image, *sides, cv2.INTER_LINEAR_EXACT)
    return resized(image, *sides, contract.filter)


def warp(contract: InputContract, height: int, width: int) -> Warp:
    """Where `preprocess` puts the pixels of an image of height x width."""
    sides, canvas = contract.fitted(height, width), (contract.height, contract.width)
    made = Warp.identity(height, width).then(scaled((height, width), sides), sides)
    if contract.fit != "crop":
        return made._replace(size=canvas)
    top, left = center_corner(*sides, canvas)
    return made.then(shifted(-left, -top), canvas)


def square(contract: InputContract) -> Callable[[np.ndarray], np.ndarray]:
    """`f(image uint8[H, W, C]) -> uint8[H', W', C]`, resized already, whose `preprocess` is that of the image itself.

    For what does its own resizing: images of any size come as one. Of "crop" it is resize x resize, of
    "stretch" and "pad" the canvas. Only that of "shortest" keeps a shape of its own, since a canvas would be taken for
    an image.
    """

    def first(side: int, size: int) -> int:
        return round((side - size) / 2)

    def apply(image: np.ndarray) -> np.ndarray:
        image = fitted(image, contract)
        for axis, size in enumerate((contract.height, contract.width)):
            start = first(image.shape[axis], size) - first(contract.resize, size)
            image = image[start : start + contract.resize] if axis == 0 else image[:, start : start + contract.resize]
        return image

    return {"crop": apply, "shortest": lambda image: fitted(image, contract)}.get(contract.fit) or preprocess(contract)
