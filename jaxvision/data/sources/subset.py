"""A part of any source: `?split=0:90%&per_class=5&seed=1`."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from jaxvision.data.order import permutation
from jaxvision.data.sample import VALUE, fields_of, label_field
from jaxvision.data.sources.common import Source
from jaxvision.errors import UserError


class Subset:
    """Part of a source: a split, so many samples of each class, or a share of each class.

    Taken are the samples whose place in permutation(seed, 0) lies in `split`; of these, with `per_class`, the first so
    many of each class; of these again, with `part`, the stated share of each class. All in the source's own order.

    Shuffled first, since most sources are ordered by class. With one seed, 0:90% and 90%:100% share no sample and
    leave none out, and a smaller `per_class` is a part of a larger one; so it is with `part`, which goes by class, so
    that a small held-out part has all classes, too. `index` stays that of the whole source.

    Where the source has `groups` (see `Source`), or `group` is a pattern that finds one in each path, `split` and
    `part` count groups instead of samples, so that all samples of a group are in one part. Among groups, one counts for
    the class that most of its samples have.

    `chosen` are the places, int64, rising, in the source `whole`.
    """

    def __init__(
        self, whole: Source, split: str = "", per_class: str = "", part: str = "", group: str = "", seed: str = "0"
    ) -> None:
        asked = {"split": split, "per_class": per_class, "part": part, "group": group, "seed": seed}
        query = "&".join(f"{key}={value}" for key, value in asked.items() if value)
        self.uri = f"{whole.uri}{'&' if '?' in whole.uri else '?'}{query}"
        if not seed.isdecimal():
            raise UserError(f"{self.uri!r}: seed must be a whole number, got {seed!r}")
        if not len(whole):
            raise UserError(f"{self.uri!r} is a part of nothing: {whole.uri} holds no sample")
        self.kind, self.classes, self.left_out = whole.kind, whole.classes, getattr(whole, "left_out", {})
        self.fields = fields_of(whole)
        groups = _groups(self.uri, whole, group) if group else getattr(whole, "groups", None)
        units = len(whole) if groups is None else int(groups.max()) + 1  # groups are numbered from 0 without gaps
        chosen = permutation(int(seed), 0, len(whole))
        if split:
            counted = "samples" if groups is None else "groups"
            start, stop = _bounds(self.uri, "split", split, units, counted)
            if start == stop:
                raise UserError(f"{self.uri!r} leaves none of the {units} {counted}: widen split={split}")
            if groups is None:
                chosen = chosen[start:stop]
            else:
                chosen = chosen[np.isin(groups[chosen], permutation(int(seed), 0, units)[start:stop])]
        chosen = _of_each_class(self.uri, whole, chosen, per_class) if per_class else chosen
        self.reads_for_labels = getattr(whole, "reads_for_labels", False)
        self.whole = whole
        self.chosen = np.sort(_share_of_each(self.uri, whole, chosen, part, groups) if part else chosen)
        if hasattr(whole, "objects"):
            self.objects = whole.objects[self.chosen]
        if groups is not None:
            self.groups = np.unique(groups[self.chosen], return_inverse=True)[1].astype(np.int32)

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def labels(self) -> np.ndarray:
        return self.whole.labels[self.chosen]

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.whole[int(self.chosen[i])]

    def where(self, i: int) -> str:
        return self.whole.where(int(self.chosen[i]))


def _by_class(whole: Source) -> bool:
    """Whether each sample has one class."""
    field = label_field(whole)
    return field is not None and field.classes == VALUE


def _of_each_class(uri: str, whole: Source, chosen: np.ndarray, per_class: str) -> np.ndarray:
    """The first `per_class` of each class among the samples `chosen`, int64."""
    if not _by_class(whole):
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


def _share_of_each(
    uri: str, whole: Source, chosen: np.ndarray, part: str, groups: np.ndarray | None = None
) -> np.ndarray:
    """Share `part` of each class among the samples `chosen`, in their order; of all where labels are no classes.

    With `groups` it is the share of the groups of each class, and all samples of those.
    """
    labels = whole.labels[chosen] if _by_class(whole) else np.zeros(len(chosen), np.int32)
    units, counted = chosen, "samples"  # what is shared out, and the class of each
    if groups is not None:
        units, labels = _classes_of_groups(groups[chosen], labels)
        counted = "groups"
    kept = []
    for c in np.unique(labels):
        of_class = units[labels == c]
        start, stop = _bounds(uri, "part", part, len(of_class), counted)
        if start == stop:
            name = whole.classes[c] if _by_class(whole) else whole.uri
            raise UserError(f"{uri!r} leaves none of the {len(of_class)} {counted} of {name!r}: widen part={part}")
        kept.append(of_class[start:stop])
    together = np.concatenate(kept)
    return together if groups is None else chosen[np.isin(groups[chosen], together)]


def _classes_of_groups(groups: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(groups in the order in which they come, the class that most samples of each have, the lowest of several)."""
    pairs, counts = np.unique(np.stack([groups, labels], 1), axis=0, return_counts=True)
    best = np.lexsort((pairs[:, 1], -counts, pairs[:, 0]))  # by group, then the most frequent class
    found, first = np.unique(pairs[best, 0], return_index=True)
    order = np.argsort(np.unique(groups, return_index=True)[1])
    return found[order], pairs[best, 1][first][order]


def _groups(uri: str, whole: Source, pattern: str) -> np.ndarray:
    """int32 [N]: samples with the same text where the pattern matches their path have the same number.

    The text is that of the pattern's brackets, or all that it matches if it has none. Paths are those below the
    source's folder or in its tar. Raises UserError for a path without a match, and for a source without paths.
    """
    path_of = getattr(whole, "member", None)
    if path_of is None:
        raise UserError(
            f"{uri!r}: group is searched in the paths of images, and {whole.uri} has none: remove it, or name the "
            "files themselves, by folder:, images:, tar: or csv:"
        )
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"{uri!r}: group is no regular expression ({error}): correct it") from error
    numbers: dict[tuple[str, ...], int] = {}
    found = np.empty(len(whole), np.int32)
    for i in range(len(whole)):
        path = path_of(i)
        match = compiled.search(path)
        text = (match.groups("") or (match[0],)) if match else ("",)
        if not any(text):
            raise UserError(f"{uri!r}: group={pattern} finds nothing in {path!r}: correct the pattern")
        found[i] = numbers.setdefault(text, len(numbers))
    return found


def _bounds(uri: str, key: str, share: str, length: int, counted: str) -> tuple[int, int]:
    """(start, stop) of START:STOP, each a number of samples, a percentage (of the length, rounded down) or empty.

    `key`: of the URI, whose value is `share`; `counted`: what there are `length` of.
    """
    match = re.fullmatch(r"(\d*)(%?):(\d*)(%?)", share)
    if not match or (match[2] and not match[1]) or (match[4] and not match[3]):
        raise UserError(f"{uri!r}: {key} must be like 0:90%, 90%:100% or 0:1000, got {share!r}")
    numbers = []
    for digits, percent, default in ((match[1], match[2], 0), (match[3], match[4], length)):
        number = int(digits) if digits else default
        if percent and number > 100:
            raise UserError(f"{uri!r}: {number}% is more than all")
        numbers.append(number * length // 100 if percent else number)
    if numbers[1] > length or numbers[0] > numbers[1]:
        raise UserError(f"{uri!r}: {key}={share} does not lie in the {length} {counted}")
    return numbers[0], numbers[1]
