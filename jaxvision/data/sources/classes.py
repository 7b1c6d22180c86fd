"""A source whose classes are numbered otherwise: by the names of another list, such as the training data's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxvision.data.sample import AXIS, LABEL, VALUE, Field, fields_of, label_field
from jaxvision.data.sources.common import Source, check_label, class_order
from jaxvision.errors import UserError, look_alike


class Renumbered:
    """The samples of a source, with labels that count in `classes` instead of the source's own list.

    Names are what connects both lists. Of "tags" a name that the source does not have is unknown in every sample: NaN.
    Every name of the source that a sample has must be in `classes`.
    """

    def __init__(self, whole: Source, classes: Sequence[str]) -> None:
        self.uri, self.kind, self.classes = whole.uri, whole.kind, tuple(classes)
        self.fields = fields_of(whole)
        self.reads_for_labels = getattr(whole, "reads_for_labels", False)
        theirs = set(whole.classes)
        self.unnamed = tuple(name for name in self.classes if name not in theirs)
        places = {name: k for k, name in enumerate(self.classes)}
        self.whole = whole
        self._new = np.array([places.get(name, -1) for name in whole.classes], np.int32)

    def __len__(self) -> int:
        return len(self.whole)

    @property
    def labels(self) -> np.ndarray:
        return self._renumbered(LABEL[self.kind], self.whole.labels)

    def __getitem__(self, i: int) -> dict[str, Any]:
        sample = self.whole[i]
        for field in self.fields:
            for value in np.ravel(sample[field.name]) if field.classes == VALUE else ():
                check_label(self.whole, value, self.where(i))
            sample = {**sample, field.name: self._renumbered(field, sample[field.name])}
        return sample

    def where(self, i: int) -> str:
        return self.whole.where(i)

    def _renumbered(self, field: Field, values: Any) -> Any:
        """A field of one sample, or of many."""
        if field.classes == VALUE:
            return int(self._new[values]) if np.ndim(values) == 0 else self._new[values]
        if field.classes == AXIS:
            table = np.full((*values.shape[:-1], len(self.classes)), field.unknown, field.dtype)
            table[..., self._new] = values
            return table
        return values


def with_classes(source: Source, classes: Sequence[str], of: str) -> Source:
    """The source with its labels as places in `classes`, matched by name; itself where its own list equals `classes`.

    `of`: whose list `classes` is, for messages.

    A source may lack classes and have them in another order. Raises UserError for one that `classes` do not have, and
    for values of which one is missing.
    """
    if tuple(source.classes) == tuple(classes):
        return source
    unknown, missing = set(source.classes) - set(classes), set(classes) - set(source.classes)
    whole = any(field.classes == AXIS and field.unknown is None for field in fields_of(source))
    if unknown or (missing and whole):
        differ = classes_differ(source.classes, tuple(classes), "there", of)
        raise UserError(f"the classes of {source.uri} are not those of {of}: {differ}")
    return Renumbered(source, classes)


def classes_differ(theirs: tuple[str, ...], mine: tuple[str, ...], there: str, here: str) -> str:
    """How two lists of class names differ, for a message; `there` and `here` say whose each is."""
    found = "there" if there == "there" else f"in {there}"
    if set(theirs) == set(mine):
        place = next(k for k, pair in enumerate(zip(theirs, mine)) if pair[0] != pair[1])
        as_text = {tuple(sorted(mine)), class_order(mine)} == {theirs, mine}
        return (
            f"the same names in another order, class {place} is {theirs[place]!r} {found} and {mine[place]!r} in {here}"
            + (": names that are integers count as numbers now, and were sorted as text before" if as_text else "")
            + ". To pin an order, write it into classes.txt of the folder, or name such a file by classes= (csv:, tar:)"
        )
    only, lacking = sorted(set(theirs) - set(mine))[:5], sorted(set(mine) - set(theirs))[:5]
    alike = any(look_alike(a, b) for a in only for b in lacking)  # then they are shown so that they differ
    show = ascii if alike else repr
    looks = (
        ". Some look the same and are spelt otherwise (accents as one or two characters): rename them" if alike else ""
    )
    return f"only {found}: {show(only)}; only in {here}: {show(lacking)}{looks}"


def absent(source: Source) -> tuple[str, ...]:
    """Names of the classes without a sample; of tags those without a known positive or without a known negative.

    Where only the records themselves hold the labels, those that the source's own class list does not name.
    """
    if getattr(source, "reads_for_labels", False):
        return getattr(source, "unnamed", ())
    field = label_field(source)
    if field is not None and field.classes == VALUE:
        there = np.isin(range(len(source.classes)), source.labels).tolist()
    elif field is not None and field.unknown is not None:
        labels = source.labels
        there = np.logical_and((labels > 0.5).any(0), (labels <= 0.5).any(0)).tolist()
    else:
        return ()
    return tuple(name for name, here in zip(source.classes, there) if not here)


def only_present(source: Source) -> Source:
    """The source with a list of those classes alone that have a sample, in their order.

    It reads all records where only they hold the labels.
    """
    there = np.isin(range(len(source.classes)), source.labels).tolist()
    return source if all(there) else Renumbered(source, [c for c, here in zip(source.classes, there) if here])
