"""images: a folder of images that nobody has labelled."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import numpy as np

from jaxvision.data.sources.common import ENDINGS, Names, counted, images, read_image, sibling
from jaxvision.errors import UserError


class Images:
    """All images below a folder, at any depth, in the order of their paths. Hidden names (a leading dot) are left out.

    Labels are of kind "none". The listing takes the bytes of the names and 12 more a file.
    """

    kind = "none"
    classes: tuple[str, ...] = ()

    def __init__(self, path: str) -> None:
        self.uri = f"images:{path}"
        self.root = os.path.expanduser(path)
        if not os.path.isdir(self.root):
            raise UserError(f"cannot open the image folder {self.root}: no such folder{sibling(self.root)}")
        left_out: Counter[str] = Counter()
        found = sorted(os.fsencode(name) for name in images(self.root, "", set(), left_out=left_out))
        if not found:
            there = f", only {counted(left_out)}" if left_out else ""
            raise UserError(f"{self.root} holds no image ({ENDINGS}), at any depth{there}")
        self._names = Names(found)
        self.left_out = dict(left_out)  # the other files by their endings
        self.labels = np.zeros(len(found), np.int32)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, Any]:
        i = range(len(self))[i]
        return {"image": read_image(self.where(i)), "label": 0, "index": i}

    def where(self, i: int) -> str:
        return os.path.join(self.root, self.member(i))

    def member(self, i: int) -> str:
        return self._names[range(len(self))[i]]
