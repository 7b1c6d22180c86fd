"""digits: the handwritten digits of scikit-learn."""

from __future__ import annotations

import gzip
import importlib.util
import io
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxvision.errors import UserError, nearest


class Digits:
    """The 1,797 handwritten digits of UCI (8 x 8, grey repeated to 3 channels, 0..16 scaled to 0..255).

    Sample k of the original order is in `test` if k % 5 == 0 (360), else in `train` (1,437). `index` is k.
    They come with scikit-learn; its file is read without importing `sklearn.datasets`, which takes seconds.
    """

    kind = "class"
    classes = tuple("0123456789")

    def __init__(self, split: str) -> None:
        self.uri = f"digits:{split}"
        wanted: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            "train": lambda k: k % 5 != 0,
            "test": lambda k: k % 5 == 0,
            "all": lambda k: k >= 0,
        }
        if split not in wanted:
            raise UserError(f"unknown split in {self.uri!r}: {nearest(split, list(wanted))}")
        package = importlib.util.find_spec("sklearn")
        if package is None or not package.submodule_search_locations:
            raise UserError("digits: comes with scikit-learn, which is missing: pip install scikit-learn")
        path = os.path.join(package.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
        try:
            with gzip.open(path) as file:
                table = np.loadtxt(io.BytesIO(file.read()), delimiter=",", dtype=np.uint8)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {path} ({error}): reinstall scikit-learn") from error
        rows = np.arange(len(table))
        self._rows = rows[wanted[split](rows)]
        grey = np.rint(table[self._rows, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
        self._images = np.repeat(grey, 3, axis=3)
        self.labels = table[self._rows, 64].astype(np.int32)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"image": self._images[i].copy(), "label": int(self.labels[i]), "index": int(self._rows[i])}

    def where(self, i: int) -> str:
        return f"{self.uri}, sample {range(len(self))[i]}"
