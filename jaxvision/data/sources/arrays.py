"""Sources held in memory (idx:, cifar:, npz:): all images in one array, and checks before memory is taken for it."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from jaxvision.data.sources.common import read_classes
from jaxvision.errors import UserError

MOST_CLASSES = 10_000  # that numbers alone, without names, may ask for
_RATIO = 200  # that images shrink by when they are packed; deflate makes at most 1032 of zeros
_SMALL = 64 << 20  # bytes that may come out of any file


class Arrays:
    """Images and labels in memory. A subclass sets `uri`, `kind`, `classes`, `labels`, `_images` and `_place`.

    `_images` is uint8 [N, H, W, C], `_place` the file or folder that they came from. `index` is the place in it.
    """

    uri: str
    kind: str
    classes: tuple[str, ...]
    labels: np.ndarray
    _images: np.ndarray
    _place: str

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, i: int) -> dict[str, Any]:
        i = range(len(self))[i]
        label = int(self.labels[i]) if self.labels.ndim == 1 else self.labels[i].copy()
        return {"image": self._images[i].copy(), "label": label, "index": i}

    def where(self, i: int) -> str:
        return f"{self._place}, image {range(len(self))[i]}"


def split_of(uri: str, path: str, known: tuple[str, ...]) -> tuple[str, str]:
    """("/data/mnist", "train") of "/data/mnist/train". Raises UserError, with the lines to write."""
    place, _, split = path.rpartition("/")
    if not place or split not in known:
        scheme, whole = uri.partition(":")[0], path.rstrip("/")
        wanted = " or ".join(f"{scheme}:{whole}/{name}" for name in known)
        raise UserError(f"{uri!r} names no part of the data set: write {wanted}")
    return os.path.expanduser(place), split


def check_size(place: str, size: int, packed: int | None = None) -> None:
    """Raises UserError if `size` bytes are more than this machine has, or absurd for a file of `packed` bytes."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise UserError(
            f"{place} holds {size:,} bytes of images, this machine has {memory:,} bytes of memory: "
            "take a smaller version of the data set, or store it as image files and read those by folder: or records:"
        )
    if packed is not None and size > max(_SMALL, _RATIO * packed):
        raise UserError(
            f"{place} would grow from {packed:,} to {size:,} bytes when it is unpacked, which images never do: "
            "fetch it again from a place that you trust"
        )


def numbers(count: int) -> tuple[str, ...]:
    """The names of classes that have only numbers."""
    return tuple(map(str, range(min(count, MOST_CLASSES))))


def named(place: str, labels: np.ndarray, otherwise: tuple[str, ...], listing: str = "") -> tuple[str, ...]:
    """The names of the classes that `labels` count: the lines of the file `listing`, `otherwise` without one.

    Raises UserError where a label has no name.
    """
    names = read_classes(os.path.expanduser(listing)) if listing else otherwise
    bad = np.flatnonzero((labels < 0) | (labels >= len(names)))
    if len(bad):
        advice = "name all classes there, from number 0 on" if listing else "correct the labels or fetch them again"
        raise UserError(
            f"{place}: label {labels[bad[0]]} of image {bad[0]} is not in 0..{len(names) - 1}, the {len(names)} classes"
            + (f" that {listing} names" if listing else "")
            + f": {advice}"
        )
    return names
