"""A part of any source: `?split=0:90%&per_class=5&seed=1`."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from jaxvision.data.order import permutation
from jaxvision.data.sources.common import Source
from jaxvision.errors import UserError


class Subset:
    """The samples whose place in permutation(seed, 0) lies in `split`; of them, with `per_class`, the first so many of
    each class; of those, with `part`, this share of each class. All in the source's own order.

    Shuffled first, since most sources are ordered by class. With one seed, 0:90% and 90%:100% share no sample and
    leave none out, and a smaller `per_class` is a part of a larger one; so it is with `part`, which goes by class, so
    that a small held-out part has all classes, too. `index` stays that of the whole source.
    """

    def __init__(self, whole: Source, split: str = "", per_class: str = "", part: str = "", seed: str = "0") -> None:
        asked = {"split": split, "per_class": per_class, "part": part, "seed": seed}
        query = "&".join(f"{key}={value}" for key, value in asked.items() if value)
        self.uri = f"{whole.uri}{'&' if '?' in whole.uri else '?'}{query}"
        if not seed.isdecimal():
            raise UserError(f"{self.uri!r}: seed must be a whole number, got {seed!r}")
        start, stop = _bounds(self.uri, split, len(whole)) if split else (0, len(whole))
        chosen = permutation(int(seed), 0, len(whole))[start:stop]
        if not len(chosen):
            raise UserError(f"{self.uri!r} leaves none of the {len(whole)} samples: widen split={split}")
        chosen = _of_each_class(self.uri, whole, chosen, per_class) if per_class else chosen
        self._whole = whole
        self._chosen = np.sort(_share_of_each(self.uri, whole, chosen, part) if part else chosen)
        self.kind, self.classes = whole.kind, whole.classes

    def __len__(self) -> int:
        return len(self._chosen)

    @property
    def labels(self) -> np.ndarray:
        return self._whole.labels[self._chosen]

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self._whole[int(self._chosen[i])]

    def where(self, i: int) -> str:
        return self._whole.where(int(self._chosen[i]))


def _of_each_class(uri: str, whole: Source, chosen: np.ndarray, per_class: str) -> np.ndarray:
    """The first `per_class` of each class among the samples `chosen`, int64."""
    if whole.kind != "class":
        raise UserError(f"{uri!r}: per_class needs one class a sample, and the labels of {whole.uri} are {whole.kind}")
    if not per_class.isdecimal() or int(per_class) < 1:
        raise UserError(f"{uri!r}: per_class must be a whole number from 1 on, got {per_class!r}")
    wanted, labels = int(per_class), whole.labels[chosen]
    counts = np.bincount(labels, minlength=len(whole.classes))
    if counts.min() < wanted:
        rarest = int(np.argmin(counts))
        raise UserError(
            f"{uri!r}: per_class is {wanted}, and of class {whole.classes[rarest]!r} there are only {counts[rarest]}: "
            "lower per_class" + (", or widen split" if len(chosen) < len(whole) else "")
        )
    by_class = np.argsort(labels, kind="stable")  # within a class, in the order of `chosen`
    firsts = np.cumsum(counts) - counts
    return chosen[by_class[firsts[:, None] + np.arange(wanted)].ravel()]


def _share_of_each(uri: str, whole: Source, chosen: np.ndarray, part: str) -> np.ndarray:
    """Of the samples `chosen`, the share `part` of each class, in their order; of all where labels are no classes."""
    groups = [chosen]
    if whole.kind == "class":
        labels = whole.labels[chosen]
        groups = [chosen[labels == c] for c in np.unique(labels)]
    kept = []
    for group in groups:
        start, stop = _bounds(uri, part, len(group))
        if start == stop:
            name = whole.classes[whole.labels[group[0]]] if whole.kind == "class" else whole.uri
            raise UserError(f"{uri!r} leaves none of the {len(group)} samples of {name!r}: widen part={part}")
        kept.append(group[start:stop])
    return np.concatenate(kept)


def _bounds(uri: str, split: str, length: int) -> tuple[int, int]:
    """(start, stop) of START:STOP, each a number of samples, a percentage (of the length, rounded down) or empty."""
    match = re.fullmatch(r"(\d*)(%?):(\d*)(%?)", split)
    if not match or (match[2] and not match[1]) or (match[4] and not match[3]):
        raise UserError(f"{uri!r}: split must be like 0:90%, 90%:100% or 0:1000, got {split!r}")
    numbers = []
    for digits, percent, default in ((match[1], match[2], 0), (match[3], match[4], length)):
        number = int(digits) if digits else default
        if percent and number > 100:
            raise UserError(f"{uri!r}: {number}% is more than all")
        numbers.append(number * length // 100 if percent else number)
    if numbers[1] > length or numbers[0] > numbers[1]:
        raise UserError(f"{uri!r}: split={split} does not lie in the {length} samples")
    return numbers[0], numbers[1]
