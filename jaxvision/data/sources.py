"""From a URI to a random-access source of samples. A new kind: a class here and a line in SCHEMES."""

from __future__ import annotations

import difflib
import gzip
import importlib.util
import io
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from jaxvision.errors import UserError, nearest

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class Source(Protocol):
    """Samples by number. `source[i]` must be safe to call from several threads."""

    uri: str
    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> dict[str, Any]:
        """{"image": uint8 [H, W, C] or encoded bytes, "label": int, "index": int}; IndexError outside."""

    def where(self, i: int) -> str:
        """The place of sample i, for people: a path where there is one."""


def open_source(uri: str) -> Source:
    """The source that a URI names.

    `digits:train|test|all` · `folder:/path` · `tfds:NAME[/CONFIG][:VERSION]/SPLIT[?data_dir=/path]` ·
    `fake:COUNTxSIZE[?classes=10]`

    Raises:
      UserError: unknown scheme, malformed URI, or data that is not there; says what to do.
    """
    scheme, colon, rest = uri.partition(":")
    if not colon or scheme not in SCHEMES:
        if os.path.isdir(os.path.expanduser(uri)):
            raise UserError(f"data source {uri!r} has no scheme: did you mean 'folder:{uri}'?")
        raise UserError(f"unknown data source {uri!r}, wanted SCHEME:...: {nearest(scheme, list(SCHEMES))}")
    return SCHEMES[scheme](rest)


# --------------------------------------------------------------------------- digits:


class Digits:
    """The 1,797 handwritten digits of UCI (8 x 8, grey repeated to 3 channels, 0..16 scaled to 0..255).

    Sample k of the original order is in `test` if k % 5 == 0 (360), else in `train` (1,437). `index` is k.
    They come with scikit-learn; its file is read without importing `sklearn.datasets`, which takes seconds.
    """

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
        self._labels = table[self._rows, 64]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"image": self._images[i], "label": int(self._labels[i]), "index": int(self._rows[i])}

    def where(self, i: int) -> str:
        return f"{self.uri}, sample {i}"


# --------------------------------------------------------------------------- folder:


class Folder:
    """Images in one folder a class: ROOT/CLASS/.../IMAGE. Hidden names (a leading dot) are left out.

    Classes are the folders' names, sorted, or the lines of ROOT/classes.txt, which must name them all.
    Samples are ordered by class, then by path. The listing takes the bytes of the names and 12 more a file.
    """

    def __init__(self, path: str) -> None:
        self.uri = f"folder:{path}"
        self.root = os.path.expanduser(path)
        self.classes = _classes(self.root)
        names: list[bytes] = []
        counts = []
        for name in self.classes:
            folder = os.path.join(self.root, name)
            found = sorted(os.fsencode(n) for n in _images(folder, "", set()))
            if not found:
                raise UserError(
                    f"class folder {folder} holds no image ({' '.join(e[1:] for e in EXTENSIONS)}): "
                    "add images or remove the folder"
                )
            names += found
            counts.append(len(found))
        self._labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        self._ends = np.cumsum([0, *map(len, names)])  # name i is bytes ends[i] to ends[i + 1]
        self._names = b"".join(names)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, i: int) -> dict[str, Any]:
        i = range(len(self))[i]
        path = self.where(i)
        try:
            with open(path, "rb") as file:
                return {"image": file.read(), "label": int(self._labels[i]), "index": i}
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error

    def where(self, i: int) -> str:
        i = range(len(self))[i]
        name = os.fsdecode(self._names[self._ends[i] : self._ends[i + 1]])
        return os.path.join(self.root, self.classes[self._labels[i]], name)


def _subfolders(path: str) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())


def _images(folder: str, below: str, seen: set[tuple[int, int]]) -> Iterator[str]:
    """Paths of the images in folder/below, relative to folder. `seen` stops circles of symbolic links."""
    here = os.path.join(folder, below)
    try:
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(here) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    yield from _images(folder, os.path.join(below, entry.name), seen)
                elif entry.name.lower().endswith(EXTENSIONS):
                    yield os.path.join(below, entry.name)
    except OSError as error:
        raise UserError(f"cannot list {here}: {error.strerror}") from error


def _classes(root: str) -> tuple[str, ...]:
    """The class names of an image folder, in order."""
    try:
        found = _subfolders(root)
    except OSError as error:
        raise UserError(f"cannot open the image folder {root}: {error.strerror}{_sibling(root)}") from error
    if not found:
        raise UserError(f"{root} holds no class folders: put the images into {root}/CLASS/")
    listing = os.path.join(root, "classes.txt")
    if not os.path.exists(listing):
        return tuple(found)
    with open(listing, encoding="utf-8", errors="surrogateescape") as file:
        wanted = [line for line in file.read().splitlines() if line.strip()]
    for name in wanted:
        if name not in found:
            raise UserError(f"{listing} names {name!r}, which is no folder of {root}: {nearest(name, found)}")
        if wanted.count(name) > 1:
            raise UserError(f"{listing} names {name!r} twice: remove one of the lines")
    for name in found:
        if name not in wanted:
            raise UserError(f"{listing} lacks {name!r}, a folder of {root}: add the line or move it away")
    return tuple(wanted)


def _sibling(path: str) -> str:
    """The tail of an error about an absent folder: what is beside it."""
    parent, name = os.path.split(os.path.abspath(path))
    if os.path.exists(path) or not os.path.isdir(parent):
        return ""
    near = difflib.get_close_matches(name, _subfolders(parent), n=1, cutoff=0.5)
    if near:
        return f"; did you mean {os.path.join(parent, near[0])}?"
    return f"; {parent} exists, see what it holds"


# --------------------------------------------------------------------------- tfds:


class Tfds:
    """A data set that TensorFlow Datasets prepared as ArrayRecord, read without TensorFlow.

    Images stay encoded. The features must be called `image` and `label`, the label a ClassLabel. The order is
    that of the records, and `index` the position in the split.
    """

    def __init__(self, rest: str) -> None:
        self.uri = f"tfds:{rest}"
        path, query = _query(self.uri, rest, ("data_dir",))
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
            for key in ("image", "label"):
                if key not in features:
                    raise UserError(f"{self.uri} has no feature {key!r}, only {', '.join(sorted(features))}")
            if not isinstance(features["label"], tfds.features.ClassLabel):
                raise UserError(f"the label of {self.uri} is {features['label']}: wanted a ClassLabel")
            try:
                skip = {"image": tfds.decode.SkipDecoding()}
                self._records = builder.as_data_source(split=split, decoders=skip)
            except ValueError as error:
                raise UserError(f"cannot open {self.uri}: {error}") from error
        finally:
            logging.set_verbosity(verbosity)
        self.classes = tuple(features["label"].names)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> dict[str, Any]:
        i = range(len(self))[i]
        record = self._records[i]
        return {"image": record["image"], "label": int(record["label"]), "index": i}

    def where(self, i: int) -> str:
        return f"{self.uri}, record {i}"


def _tfds_builder(tfds: Any, uri: str, name: str, data_dir: str | None) -> Any:
    """The builder of a prepared data set; UserError with the next step if it is unknown or not prepared."""
    folder = data_dir or "~/tensorflow_datasets (or $TFDS_DATA_DIR)"
    if data_dir and "://" not in data_dir and not os.path.isdir(data_dir):
        raise UserError(f"cannot open {uri}: {data_dir} is no folder{_sibling(data_dir)}")
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except Exception as error:
        # Its message lists all data sets there are; the first line says it.
        base = re.split("[/:]", name)[0]
        local = _subfolders(data_dir) if data_dir and os.path.isdir(data_dir) else []
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


# --------------------------------------------------------------------------- fake:


class Fake:
    """`COUNT` images of `SIZE` x `SIZE` random pixels, for benchmarks: the same every time, all different.

    Label i % classes. An image is a window of one buffer of noise with its number in the first bytes.
    """

    _WINDOWS = 1 << 16

    def __init__(self, rest: str) -> None:
        self.uri = f"fake:{rest}"
        shape, query = _query(self.uri, rest, ("classes",))
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
        return f"{self.uri}, sample {i}"


def _query(uri: str, rest: str, known: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """("path", {"key": "value"}) of path?key=value&key=value, taken literally (no %-escapes)."""
    path, _, tail = rest.partition("?")
    query = {}
    for item in tail.split("&") if tail else []:
        key, equals, value = item.partition("=")
        if key not in known:
            raise UserError(f"unknown key {key!r} in {uri!r}: {nearest(key, known)}")
        if not equals or not value:
            raise UserError(f"{uri!r}: {key} has no value, wanted {key}=...")
        query[key] = value
    return path, query


SCHEMES: dict[str, Callable[[str], Source]] = {
    "digits": Digits,
    "folder": Folder,
    "tfds": Tfds,
    "fake": Fake,
}
