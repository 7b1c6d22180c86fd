"""Fields of samples and arrays of batches: their shapes, and how each follows the pixels of its image.

A sample is a dict of named arrays and values: `image` (bytes or pixels), `index`, and the fields that its source
declares. Loader, compiled step, evaluator, plan and export read one specification, `batch_spec`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxvision.data.warp import Move, Warp, moved_map

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
    """The fields of a source that are `needed`, by name, and its label, which costs nothing."""
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
    train: bool = True,
) -> dict[str, Spec]:
    """The arrays of a batch of so many rows, by name.

    Args:
      images: shape of each array of pixels, without the rows.
      fields: what else the batch holds. Where one is `per_object`, so do `valid` bool [rows, slots], the slots that an
        object fills, and `dropped` int32 [rows], how many objects the transforms left without a place.
      classes: how many the source has; slots: for the objects of a sample.
      train: whether it is a training batch. An evaluation batch holds no field that is told in the file's pixels, but
        `size` int32 [rows, 2], (height, width) of the file: the truth is the source's own.
    """
    told = tuple(fields)
    kept = tuple(field for field in told if train or not field.in_file)
    made = {name: Spec((rows, *shape), "uint8") for name, shape in images.items()}
    made |= {field.name: Spec((rows, *field.sides(classes, slots)), field.dtype) for field in kept}
    if any(field.per_object for field in kept):
        made |= {"valid": Spec((rows, slots), "bool"), "dropped": Spec((rows,), "int32")}
    if len(kept) < len(told):
        made["size"] = Spec((rows, 2), "int32")
    return made | {"index": Spec((rows,), "int64"), "mask": Spec((rows,), "bool")}


def known(source: Any, place: int) -> dict[str, Any]:
    """All that a source knows of a sample but its image; the source's own `known(place)` reads no image for it."""
    read = getattr(source, "known", None)
    sample = source[place] if read is None else read(place)
    return without_image(sample)


def without_image(sample: Mapping[str, Any]) -> dict[str, Any]:
    """A sample's fields and its index."""
    return {name: value for name, value in sample.items() if name != "image"}


# --------------------------------------------------------------------------- fields that follow the pixels


def stepped(sample: dict[str, Any], move: Move, size: tuple[int, int]) -> dict[str, Any]:
    """A sample whose image one step of a transform moved: its warp goes on, maps and masks with the pixels."""
    made = {**sample, "warp": sample["warp"].then(move, size)}
    for field in sample["fields"]:
        if field.geometry in ("map", "masks"):
            made[field.name] = moved_map(sample[field.name], move, size, field.pad)
    return made


def settled(sample: dict[str, Any]) -> dict[str, Any]:
    """A sample with boxes and points where its warp puts them, not yet clipped: its canvas is the file from here on.

    A transform over several samples is given such samples, and then moves each by itself.
    """
    warp, made = sample["warp"], dict(sample)
    for field in sample["fields"]:
        if field.geometry == "boxes":
            made[field.name] = warp.boxes(sample[field.name])
        elif field.geometry == "points":
            made[field.name] = warp.points(sample[field.name])
    return {**made, "warp": Warp.identity(*warp.size)}


def placed(sample: dict[str, Any], keep: float) -> tuple[dict[str, np.ndarray], int]:
    """The fields of a sample on its canvas, and how many objects were dropped.

    Boxes are clipped to the canvas; an object goes where its box keeps less than the share `keep` of its area or
    nothing, or, of one without a box, where its first point lies outside.
    """
    sample = settled(sample)
    height, width = sample["warp"].size
    values = {field.name: np.asarray(sample[field.name]) for field in sample["fields"]}
    objects = [field for field in sample["fields"] if field.per_object]
    stays = np.ones(len(values[objects[0].name]) if objects else 0, bool)
    for field in objects:
        if field.geometry == "boxes":
            whole, limits = values[field.name], (width, height, width, height)
            clipped = np.clip(whole, 0, limits)
            area, left = (np.prod(box[..., 2:] - box[..., :2], -1) for box in (whole, clipped))
            stays &= (left > 0) & (left >= keep * area)
            values[field.name] = clipped
    if not any(field.geometry == "boxes" for field in objects):
        for field in objects:
            if field.geometry == "points":
                first = values[field.name][..., :2]
                while first.ndim > 2:
                    first = first[:, 0]
                stays &= ((first >= 0) & (first <= (width, height))).all(-1)
    for field in objects:
        values[field.name] = values[field.name][stays]
    return values, int((~stays).sum())
