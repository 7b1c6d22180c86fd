"""tfds: data sets that TensorFlow Datasets prepared."""

from __future__ import annotations

import difflib
import functools
import itertools
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from jaxvision.data.decode import decode
from jaxvision.data.sources.common import parse_query, sibling, subfolders
from jaxvision.data.sources.vtab import BINARY, COMPUTED
from jaxvision.errors import UserError


class Tfds:
    """A data set that TensorFlow Datasets prepared as ArrayRecord, read without TensorFlow.

    Images stay encoded. The features must be called `image` and `label`, the label a ClassLabel. The order is
    that of the records, and `index` the position in the split. `?label=` takes another ClassLabel, or one of the labels
    that VTAB computes (sources/vtab.py); `?classes=16` joins neighbouring classes until so many are left;
    `?square=1` gives the whole image stretched to a square, as VTAB does. The pixels of dsprites, 0 and 1, become 0 and
    255.
    """

    kind = "class"
    reads_for_labels = True

    def __init__(self, rest: str) -> None:
        self.uri = f"tfds:{rest}"
        path, query = parse_query(self.uri, rest, ("data_dir", "label", "classes", "square"))
        name, slash, split = path.rpartition("/")
        if not slash or not name or not split:
            raise UserError(f"{self.uri!r} is malformed: wanted tfds:NAME/SPLIT, e.g. tfds:cifar10/train")
        data_dir = os.path.expanduser(query["data_dir"]) if "data_dir" in query else None

        import tensorflow_datasets as tfds  # here: half a second
        from absl import logging

        verbosity = logging.get_verbosity()
        logging.set_verbosity(logging.ERROR)  # it reports each file that it opens
        try:
            builder = _tfds_builder(tfds, self.uri, name, data_dir)
            features = builder.info.features
            label = query.get("label", "label")
            self._computed = COMPUTED.get(builder.name, {}).get(label)
            self._label = self._computed.feature if self._computed else label
            for key in ("image", self._label):
                if key not in features:
                    raise UserError(f"{self.uri} has no feature {key!r}, only {', '.join(sorted(features))}")
            if not self._computed and not isinstance(features[label], tfds.features.ClassLabel):
                raise UserError(f"the {label} of {self.uri} is {features[label]}: wanted a ClassLabel")
            names = self._computed.classes if self._computed else tuple(features[label].names)
            skipped = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
            try:
                self._records = builder.as_data_source(
                    split=split, decoders={key: tfds.decode.SkipDecoding() for key in skipped}
                )
            except ValueError as error:
                raise UserError(f"cannot open {self.uri}: {error}") from error
        finally:
            logging.set_verbosity(verbosity)
        self._binary = builder.name in BINARY
        if query.get("square", "1") != "1":
            raise UserError(f"{self.uri}: square={query['square']} must be square=1, or left out")
        self._square = "square" in query
        self.classes = _joined(self.uri, names, query["classes"]) if "classes" in query else names
        self._had = len(names)

    def __len__(self) -> int:
        return len(self._records)

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """Read from all records at the first use, since TFDS keeps labels nowhere else."""
        return np.array([self._class(self._records[i]) for i in range(len(self))], np.int32)

    def __getitem__(self, i: int) -> dict[str, Any]:
        i = range(len(self))[i]
        record = self._records[i]
        image = record["image"]
        if self._binary:
            image = 255 * decode(image, 1, self.where(i))
        if self._square:
            pixels = decode(image, 3, self.where(i))
            side = min(pixels.shape[:2])
            image = np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR))
        return {"image": image, "label": self._class(record), "index": i}

    def _class(self, record: Mapping[str, Any]) -> int:
        value = record[self._label]
        label = self._computed.of(value) if self._computed else int(value)
        return label * len(self.classes) // self._had

    def where(self, i: int) -> str:
        return f"{self.uri}, record {range(len(self))[i]}"


def _joined(uri: str, names: tuple[str, ...], count: str) -> tuple[str, ...]:
    """Neighbours joined into `count` names: i goes to i * count // len(names)."""
    if not count.isdecimal() or not 2 <= int(count) <= len(names):
        raise UserError(f"{uri}: classes={count} must be a number from 2 to {len(names)}, which it has")
    groups = itertools.groupby(range(len(names)), lambda i: i * int(count) // len(names))
    return tuple("|".join(names[i] for i in group) for _, group in groups)


def _tfds_builder(tfds: Any, uri: str, name: str, data_dir: str | None) -> Any:
    """The builder of a prepared data set; UserError with the next step if it is unknown or not prepared."""
    folder = data_dir or "~/tensorflow_datasets (or $TFDS_DATA_DIR)"
    if data_dir and "://" not in data_dir and not os.path.isdir(data_dir):
        raise UserError(f"cannot open {uri}: {data_dir} is no folder{sibling(data_dir)}")
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except Exception as error:
        # Its message lists all data sets there are; the first line says it.
        base = re.split("[/:]", name)[0]
        local = subfolders(data_dir) if data_dir and os.path.isdir(data_dir) else []
        near = difflib.get_close_matches(
            base, [*local, *tfds.list_builders(with_community_datasets=False)], n=1, cutoff=0.6
        )
        hint = f"did you mean {near[0]!r}?" if near and near[0] != base else "check name, config and version"
        raise UserError(f"cannot open {uri} in {folder}: {str(error).splitlines()[0]} {hint}") from error
    formats = builder.info.available_file_formats() if builder.is_prepared() else ()
    prepared = sorted(f.value for f in formats)
    if "array_record" not in prepared:
        have = f"prepared only as {', '.join(prepared)}" if prepared else "not prepared"
        place = f", data_dir={data_dir!r}" if data_dir else ""
        by_hand = " ".join((builder.MANUAL_DOWNLOAD_INSTRUCTIONS or "").split())
        raise UserError(
            f"{uri} is {have} in {folder}. Prepare it once with\n"
            f'  python -c "import tensorflow_datasets as t; t.builder({name!r}{place}, '
            "file_format='array_record').download_and_prepare()\"\n"
            + (
                f"It cannot be downloaded freely: {by_hand} (manual_dir is downloads/manual in {folder})\n"
                if by_hand
                else ""
            )
            + "Preparing most data sets needs TensorFlow (pip install tensorflow-cpu, in any environment); "
            "reading them does not"
        )
    return builder
