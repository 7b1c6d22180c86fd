"""Warps: where the pixels of a file lie after they were resized, cropped and turned, and boxes and points with them.

Coordinates are of edges: a pixel covers [x, x + 1], so an image of width W reaches from 0 to W, and mirroring it sends
x to W - x.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Move(NamedTuple):
    """A transform's effect on coordinates, as cheap to make as a tuple.

    numbers: a, b, c, d, e, f of x' = a x + b y + c, y' = d x + e y + f; two more, g, h, divide both by g x + h y + 1.
    back: whether they lead from the result to the image that was given, as Pillow takes them.
    """

    numbers: tuple[float, ...]
    back: bool = False

    @property
    def matrix(self) -> np.ndarray:
        """float64 [3, 3], from the image that was given to the result."""
        made = np.array((*self.numbers, *(0.0, 0.0)[len(self.numbers) - 6 :], 1.0), np.float64).reshape(3, 3)
        return np.linalg.inv(made) if self.back else made


class Warp(NamedTuple):
    """Where a file's pixels lie on a canvas.

    Attributes:
      matrix: float64 [3, 3]: (x, y, 1) in the file to (x', y', w) on the canvas.
      size: (height, width) of the canvas.
    """

    matrix: np.ndarray
    size: tuple[int, int]

    @classmethod
    def identity(cls, height: int, width: int) -> Warp:
        """The warp of pixels that are where they were."""
        return cls(np.eye(3), (height, width))

    def then(self, move: Move, size: tuple[int, int]) -> Warp:
        """This, then a move that makes a canvas of `size` (height, width)."""
        return Warp(move.matrix @ self.matrix, size)

    def inverse(self) -> np.ndarray:
        """float64 [3, 3], from the canvas to the file."""
        return np.linalg.inv(self.matrix)

    def points(self, points: np.ndarray) -> np.ndarray:
        """Points of the file, float [..., 2 or more], on the canvas: float64; what follows x and y stays."""
        return moved_points(self.matrix, points)

    def points_back(self, points: np.ndarray) -> np.ndarray:
        """Points of the canvas, float [..., 2 or more], in the file: float64."""
        return moved_points(self.inverse(), points)

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes of the file (x0, y0, x1, y1), float [..., 4], on the canvas, unclipped: float64.

        A box that is turned becomes the smallest upright box around its corners.
        """
        return moved_boxes(self.matrix, boxes)

    def boxes_back(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes of the canvas, float [..., 4], in the file: float64."""
        return moved_boxes(self.inverse(), boxes)


def moved_points(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points float [..., 2 or more] after a matrix [3, 3]: float64."""
    made = np.array(points, np.float64)
    x, y = made[..., 0].copy(), made[..., 1].copy()
    (a, b, c), (d, e, f), (g, h, i) = matrix.tolist()
    made[..., 0], made[..., 1] = a * x + b * y + c, d * x + e * y + f
    if (g, h, i) != (0.0, 0.0, 1.0):
        made[..., :2] /= (g * x + h * y + i)[..., None]
    return made


def moved_boxes(matrix: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The smallest upright boxes around the corners of boxes, float [..., 4], after a matrix [3, 3]: float64."""
    corners = moved_points(matrix, np.asarray(boxes)[..., [[0, 1], [2, 1], [2, 3], [0, 3]]])
    return np.concatenate([corners.min(-2), corners.max(-2)], -1)


def moved_map(array: np.ndarray, move: Move, size: tuple[int, int], outside: float) -> np.ndarray:
    """A map [H, W] or masks [N, H, W] after a move, on a canvas of `size`: the nearest pixel's value, no mixture."""
    if array.ndim == 3:
        return (
            np.stack([moved_map(one, move, size, outside) for one in array])
            if len(array)
            else np.zeros((0, *size), array.dtype)
        )
    height, width = size
    centres = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), -1)
    x, y = np.moveaxis(np.floor(moved_points(np.linalg.inv(move.matrix), centres)), -1, 0).astype(np.int64)
    inside = (x >= 0) & (x < array.shape[1]) & (y >= 0) & (y < array.shape[0])
    return np.where(inside, array[np.where(inside, y, 0), np.where(inside, x, 0)], np.asarray(outside, array.dtype))


def scaled(old: tuple[int, ...], new: tuple[int, int]) -> Move:
    """The move of an image of (height, width) `old` that is resized to `new`."""
    return Move((new[1] / old[1], 0.0, 0.0, 0.0, new[0] / old[0], 0.0))


def shifted(right: float, down: float) -> Move:
    """The move of an image that is shifted, or of which a part is cut out: then by minus its left and top."""
    return Move((1.0, 0.0, right, 0.0, 1.0, down))
