"""fake: noise, for benchmarks."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from jaxvision.data.sources.common import parse_query
from jaxvision.errors import UserError


class Fake:
    """`COUNT` images of `SIZE` x `SIZE` random pixels, for benchmarks: the same every time, all different.

    Label i % classes. An image is a window of one buffer of noise with its number in the first bytes.
    """

    kind = "class"
    _WINDOWS = 1 << 16

    def __init__(self, rest: str) -> None:
        self.uri = f"fake:{rest}"
        shape, query = parse_query(self.uri, rest, ("classes",))
        match = re.fullmatch(r"(\d+)x(\d+)", shape)
        classes = query.get("classes", "10")
        if not match or int(match[2]) == 0 or not classes.isdecimal() or int(classes) == 0:
            raise UserError(f"{self.uri!r} is malformed: wanted fake:COUNTxSIZE[?classes=N], e.g. fake:9x224")
        self._count, self._size = int(match[1]), int(match[2])
        self.classes = tuple(f"class {c}" for c in range(int(classes)))
        noise = np.random.Generator(np.random.Philox(key=0))
        self._noise = noise.integers(0, 256, 3 * self._size**2 + self._WINDOWS, np.uint8)

    def __len__(self) -> int:
        return self._count

    @property
    def labels(self) -> np.ndarray:
        return np.arange(self._count, dtype=np.int32) % len(self.classes)

    def __getitem__(self, i: int) -> dict[str, Any]:
        i = range(self._count)[i]
        start = i * 40503 % self._WINDOWS  # an odd factor: neighbours are far apart, and none is skipped
        image = self._noise[start : start + 3 * self._size**2].copy()
        number = np.frombuffer(i.to_bytes(8, "little"), np.uint8)
        image[:8] = number[: image.size]
        return {
            "image": image.reshape(self._size, self._size, 3),
            "label": i % len(self.classes),
            "index": i,
        }

    def where(self, i: int) -> str:
        return f"{self.uri}, sample {range(len(self))[i]}"
