"""folder: images in one folder a class."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxvision.data.sources.common import (
    ENDINGS,
    Names,
    class_order,
    images,
    read_classes,
    read_image,
    sibling,
    subfolders,
)
from jaxvision.errors import UserError, nearest


class Folder:
    """Images in one folder a class: ROOT/CLASS/.../IMAGE. Hidden names (a leading dot) are left out.

    Classes are the folders' names in the order of `class_order`, or the lines of ROOT/classes.txt, which must name them
    all. Names that differ only in case are taken for a mistake, unless classes.txt has them.
    Samples are ordered by class, then by path. The listing takes the bytes of the names and 12 more a file.
    """

    kind = "class"

    def __init__(self, path: str) -> None:
        self.uri = f"folder:{path}"
        self.root = os.path.expanduser(path)
        self.classes = _classes(self.root)
        names: list[bytes] = []
        counts = []
        for name in self.classes:
            folder = os.path.join(self.root, name)
            found = sorted(os.fsencode(n) for n in images(folder, "", set()))
            if not found:
                raise UserError(f"class folder {folder} holds no image ({ENDINGS}): add images or remove the folder")
            names += found
            counts.append(len(found))
        self.labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        self._names = Names(names)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, Any]:
        i = range(len(self))[i]
        return {"image": read_image(self.where(i)), "label": int(self.labels[i]), "index": i}

    def where(self, i: int) -> str:
        i = range(len(self))[i]
        return os.path.join(self.root, self.classes[self.labels[i]], self._names[i])


def check_case(names: Iterable[str], place: str, listing: str) -> None:
    """UserError if two class names are the same but for case, or for how Unicode spells an accent."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            raise UserError(
                f"{place} has the classes {other!a} and {name!a}, which differ only in case or in the spelling of "
                f"accents: rename one or merge them or, if both are meant, name all classes in {listing}"
            )


def _classes(root: str) -> tuple[str, ...]:
    """The class names of an image folder, in order."""
    try:
        found = subfolders(root)
    except OSError as error:
        raise UserError(f"cannot open the image folder {root}: {error.strerror}{sibling(root)}") from error
    if not found:
        raise UserError(
            f"{root} holds no class folders: put the images into {root}/CLASS/, or learn without labels, from "
            f"images:{root}"
        )
    listing = os.path.join(root, "classes.txt")
    if not os.path.exists(listing):
        check_case(found, root, listing)
        return class_order(found)
    wanted = read_classes(listing)
    for name in wanted:
        if name not in found:
            raise UserError(f"{listing} names {name!r}, which is no folder of {root}: {nearest(name, found)}")
    for name in found:
        if name not in wanted:
            raise UserError(f"{listing} lacks {name!r}, a folder of {root}: add the line or move it away")
    return wanted
