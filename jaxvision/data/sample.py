"""What samples and batches hold: which arrays, of which shape, and how each follows the pixels of its image.

A sample is a dict of named arrays and values: `image` (bytes or pixels), `index`, and the fields that its source
declares. Loader, compiled step, evaluator, plan and export read one specification, `batch_spec`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

CLASSES, OBJECTS = "classes", "objects"  # sides of a field: as many as the source has classes, the sample objects
VALUE, AXIS = "value", "axis"  # where a field holds places in the source's list of classes

GEOMETRIES = ("none", "boxes", "points", "masks", "map")


class Field(NamedTuple):
    """An array that every sample of a source has, beside its image.

    Attributes:
      name: in the sample and in the batch.
      shape: of a sample; a side is a number, CLASSES or OBJECTS.
      dtype: NumPy's name of it.
      pad: what slots hold in a batch that no object fills.
      geometry: how the field follows the pixels where an image is resized, cropped or turned: "none" (not at all),
        "boxes" [..., 4] (x0, y0, x1, y1: edges), "points" [..., 2 or more] (x, y, ...), "masks" [..., H, W], "map"
        [H, W]. Coordinates are in pixels of the upright file.
      per_object: whether a row belongs to an object, and goes where its object is dropped.
      classes: where the field holds places in the source's list of classes: "" nowhere, VALUE each integer is one,
        AXIS the last axis has an entry for each.
      unknown: with AXIS, the entry for a class that the source does not know; None: there cannot be one.
    """

    name: str
    shape: tuple[int | str, ...] = ()
    dtype: str = "float32"
    pad: float = 0
    geometry: str = "none"
    per_object: bool = False
    classes: str = ""
    unknown: float | None = None

    def sides(self, classes: int, slots: int) -> tuple[int, ...]:
        """The shape in numbers."""
        return tuple({CLASSES: classes, OBJECTS: slots}[s] if isinstance(s, str) else s for s in self.shape)

    @property
    def in_file(self) -> bool:
        """Whether the field is told in the file's pixels, or object by object: no evaluation batch holds it."""
        return self.geometry != "none" or self.per_object


# The field `label` of the sources that have one label a sample, by their `kind`. Without labels it is 0.
LABEL = {
    "none": Field("label", (), "int32"),
    "class": Field("label", (), "int32", classes=VALUE),
    "tags": Field("label", (CLASSES,), "float32", classes=AXIS, unknown=np.nan),
    "values": Field("label", (CLASSES,), "float32", classes=AXIS),
}


def fields_of(source: Any) -> tuple[Field, ...]:
    """The fields that a source declares: those of its `fields`, else its label, by its `kind`."""
    declared = getattr(source, "fields", None)
    return (LABEL[source.kind],) if declared is None else declared


def label_field(source: Any) -> Field | None:
    """The field `label` of a source; None where it has none."""
    return next((field for field in fields_of(source) if field.name == "label"), None)


def fields_for(source: Any, needed: Iterable[Field]) -> tuple[Field, ...]:
    """Of a source's fields those that are `needed`, by name, and the label, which costs nothing."""
    names = {"label", *(field.name for field in needed)}
    return tuple(field for field in fields_of(source) if field.name in names)


class Spec(NamedTuple):
    """An array of a batch: its shape with the rows, and its dtype."""

    shape: tuple[int, ...]
    dtype: str


def batch_spec(
    images: Mapping[str, tuple[int, ...]],
    fields: Iterable[Field],
    rows: int,
    *,
    classes: int = 0,
    slots: int = 0,
) -> dict[str, Spec]:
    """The arrays of a batch of so many rows, by name.

    Args:
      images: shape of each array of pixels, without the rows.
      fields: what else it holds; where one is `per_object`, also `valid` bool [rows, slots].
      classes: how many the source has; slots: for the objects of a sample.
    """
    fields = tuple(fields)
    made = {name: Spec((rows, *shape), "uint8") for name, shape in images.items()}
    made |= {field.name: Spec((rows, *field.sides(classes, slots)), field.dtype) for field in fields}
    if any(field.per_object for field in fields):
        made["valid"] = Spec((rows, slots), "bool")
    return made | {"index": Spec((rows,), "int64"), "mask": Spec((rows,), "bool")}
